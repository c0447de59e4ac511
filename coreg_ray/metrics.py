"""The names of all figures, in `metrics.json`, `history.csv`, TensorBoard, Tune and Ray's metrics alike.

A figure of one network ends in its name: `loss/a`, `test/accuracy_b`.
"""

from __future__ import annotations

NETWORKS = ("a", "b")

# Of an epoch.
EPOCH, PHASE = "epoch", "phase"
WARMUP = "warmup"  # the phase in which each network is alone; the others are named by the kinds of methods
LOSS, CLEAN, CHURN = "loss", "clean", "churn"  # of each network: `of(LOSS, "a")`
AGREEMENT = "agreement"
PASSES = "passes_per_row"  # forward passes of images through a network, one with gradient counting as three
EPOCH_S, TRAIN_EPOCH_S, STEP_S = "time/epoch_s", "time/train_s", "time/step_s"
ASSESS_S, EVALUATE_S, EXCHANGE_S = "time/assess_s", "time/evaluate_s", "time/exchange_s"

# On labelled test images.
TEST = "test/"
ACCURACY, ACCURACY_A, ACCURACY_B = "test/accuracy", "test/accuracy_a", "test/accuracy_b"
ZERO_SHOT = "test/zero_shot_accuracy"
CALIBRATION_ERROR, TEST_IMAGES = "test/calibration_error", "test/images"
TEST_IN_POOL = "test/images_in_pool"  # of those, byte for byte

# Of the purified labels, against true ones where these are known.
PURIFIED_IMAGES, PURIFIED_CHANGED, PURIFIED_ACCURACY = "purified/images", "purified/changed", "purified/accuracy"

# Whether purified labels are to be trusted above the votes' own, and why (pure/trust.py).
TRUST = "trust/"  # before all of them
VOTES_IMPROVED, TRUST_BELIEVED = "trust/votes_improved", "trust/label_model_believed"
TRUST_REVIEWED = "trust/reviewed_images"  # where there are enough of them, with what they say was gained
TRUST_GAIN_LOW, TRUST_GAIN_HIGH = "trust/reviewed_gain_low", "trust/reviewed_gain_high"  # 95 %
TRUST_SURENESS, TRUST_TIED = "trust/sureness", "trust/tied"
TRUST_UNSOUND, TRUST_AGREEMENT, TRUST_IMAGES = "trust/unsound", "trust/agreement", "trust/images"

# Of the deployed model's eight-bit file beside its float one, and of the threshold below which it says "unknown".
INT8_AGREEMENT, INT8_SPEEDUP, INT8_SIZE = "int8/agreement", "int8/speedup", "int8/size"  # the last two are ratios
INT8_ACCURACY, FLOAT_ACCURACY = "int8/accuracy", "int8/float_accuracy"  # on labelled test images
ABSTAIN_ANSWERED, ABSTAIN_IMAGES = "abstain/answered", "abstain/images"  # of held-out images

# Without labels (pure/label_free.py says what they are).
CRITERION = "criterion/"
LABEL_FREE, STABILITY = "criterion/label_free", "criterion/stability"
APPROXIMATED = "criterion/approximated_accuracy"
CANDIDATES, CLASSES, COMBINED = "criterion/candidates", "criterion/classes", "criterion/combined"

# Of a whole run.
ANNOTATION = "annotation/"  # before the names of run/records.py
WORLD_SIZE, START_EPOCH = "train/world_size", "train/start_epoch"
FEATURES_S = "time/features_s"  # of a frozen backbone, and part of the time to annotate
ANNOTATE_S, TRAIN_S, EXPORT_S, COMPARE_S = "time/annotate_s", "time/train_s", "time/export_s", "time/compare_s"
PURIFY_S = "time/purify_s"
MEMORY = "memory_mb"  # most that a run's process has held, of the GPU's memory where there is one
TIME = "time/"

# The columns that every `history.csv` begins with; all others follow by name, times last.
HISTORY = (
    EPOCH, PHASE, "loss/a", "loss/b", "clean/a", "clean/b", AGREEMENT, ACCURACY, ACCURACY_A, ACCURACY_B, LABEL_FREE,
)  # fmt: skip


def of(figure: str, network: str) -> str:
    """The name of a figure of one network, e.g. `loss/a`."""
    return f"{figure}/{network}"


def macro_f1_of(accuracy: str) -> str:
    """The name of the macro-F1 beside an accuracy, e.g. `test/macro_f1_a` beside `test/accuracy_a`."""
    return accuracy.replace("accuracy", "macro_f1")


def recall_of(accuracy: str) -> str:
    """The name of the recall of each class beside an accuracy, e.g. `test/recall_a` beside `test/accuracy_a`."""
    return accuracy.replace("accuracy", "recall")
