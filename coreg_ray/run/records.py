"""What one stage hands to the next and leaves in the run folder: plain values under fixed names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from coreg_ray import metrics

R = TypeVar("R")


def from_json(kind: type[R], content: dict[str, Any]) -> R:
    """A record from its JSON form; what another version has written besides is passed over."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in content.items() if name in known})


@dataclass(frozen=True)
class Spent:
    """What a chat model took: in this run, and in all runs over the same images together.

    Attributes:
        cost: in the unit of `annotator.price_input`.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    requests_in_all: int = 0
    cost_in_all: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))


@dataclass(frozen=True)
class SplitAnnotation:
    """What annotation did for one split.

    Attributes:
        images: in the source. encoded_images: answered for in this run. rejected_images: in all. missing_images: that a
            spent budget or a failing server left open. seconds: of the whole call. spent: None without a chat model.
    """

    images: int
    encoded_images: int
    rejected_images: int
    missing_images: int
    seconds: float
    spent: Spent | None = None


@dataclass(frozen=True)
class AnnotateResult:
    """What annotation did for the pool and, where there are some, the test images."""

    pool: SplitAnnotation
    test: SplitAnnotation | None = None

    def metrics(self) -> dict[str, Any]:
        """The pool's figures for `metrics.json`. What was paid covers all splits: images of either cost the same."""
        kept = ("images", "encoded_images", "rejected_images", "missing_images")
        figures: dict[str, Any] = {name: getattr(self.pool, name) for name in kept}
        paid = [split.spent for split in (self.pool, self.test) if split is not None and split.spent is not None]
        if paid:
            figures |= asdict(sum(paid[1:], paid[0]))
        return {metrics.ANNOTATION + name: value for name, value in figures.items()}


@dataclass(frozen=True)
class Overlap:
    """Test images that lie in the pool too, byte for byte.

    Attributes:
        images: test images with a label. in_pool: of these.
    """

    images: int
    in_pool: int

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Overlap:
        """What `metrics.json` says; nothing overlaps where it says nothing."""
        return cls(figures.get(metrics.TEST_IMAGES, 0), figures.get(metrics.TEST_IN_POOL, 0))

    def metrics(self) -> dict[str, Any]:
        """The figures for `metrics.json`."""
        return {metrics.TEST_IMAGES: self.images, metrics.TEST_IN_POOL: self.in_pool}

    def words(self) -> str:
        """One sentence for a person; empty where nothing overlaps."""
        if not self.in_pool:
            return ""
        return (
            f"{self.in_pool} of the {self.images} test images ({self.in_pool / self.images:.0%}) lie in the pool too, "
            "byte for byte, so accuracy on the test images flatters; leave them out of one of the two."
        )


@dataclass(frozen=True)
class CandidateFigures:
    """How far the candidate sets can be trusted. K classes, P prompts; None where nothing was there to judge by.

    Attributes:
        rows: images with a candidate set. rows_without_vote: of these. mean_candidates: |S|. singletons: share of rows
            with |S| = 1. agreement: share of pairs of prompts that agree. votes_per_class: (K,).
        classes_without_votes: class numbers. vote_entropy: nats. prompt_dissent: (P,) shares of rows.
        swallowed_classes: see `annotation.quality.Score`. outlier_share, background_share: of rows. warnings: in plain
            words.
        prompt_accuracy (P,), coverage, eta, zero_shot_accuracy, zero_shot_macro_f1, zero_shot_recall (K,; None where a
            class has no row), class_accuracy (K,), class_coverage (K,): on rows whose true label is known.
        majority_accuracy, label_model_accuracy: of the most votes (ties: the lowest class) and of the label model,
            where there is one, on such rows with a vote. union_coverage, union_mean_candidates: of the union of the
            votes, whatever the mode is, on rows with a vote.
    """

    rows: int
    rows_without_vote: int = 0
    mean_candidates: float | None = None
    singletons: float | None = None
    agreement: float | None = None
    votes_per_class: list[int] | None = None
    classes_without_votes: list[int] | None = None
    vote_entropy: float | None = None
    prompt_dissent: list[float] | None = None
    swallowed_classes: list[dict[str, Any]] | None = None
    outlier_share: float | None = None
    background_share: float | None = None
    prompt_accuracy: list[float] | None = None
    coverage: float | None = None
    eta: float | None = None
    zero_shot_accuracy: float | None = None
    zero_shot_macro_f1: float | None = None
    zero_shot_recall: list[float | None] | None = None
    class_accuracy: list[float] | None = None
    class_coverage: list[float] | None = None
    warnings: list[str] | None = None
    majority_accuracy: float | None = None
    label_model_accuracy: float | None = None
    union_coverage: float | None = None
    union_mean_candidates: float | None = None

    _KNOWN_BY_LABELS = (
        *("prompt_accuracy", "coverage", "eta"),
        *("zero_shot_accuracy", "zero_shot_macro_f1", "zero_shot_recall", "class_accuracy", "class_coverage"),
        *("majority_accuracy", "label_model_accuracy", "union_coverage"),
    )

    def as_json(self) -> dict[str, Any]:
        """The figures by name, without those that need labels where there are none."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None or name not in self._KNOWN_BY_LABELS
        }

    def metrics(self) -> dict[str, Any]:
        """The figures for `metrics.json`."""
        return {metrics.ANNOTATION + name: value for name, value in self.as_json().items()}


@dataclass(frozen=True)
class CandidateManifest:
    """`candidates/manifest.json`: what the candidate sets are.

    Attributes:
        class_names: K. names: of every class all names that labels may use. fingerprint: of all that decides the sets.
        prior: (K,) mean of the annotators' probabilities. quality: figures. made_from: mark of all that the sets were
            made from. parts: files; None in sets of an earlier version, which did not count them. sets: mark of the
            sets themselves, None likewise. known_as: by the mark of sets that were here before, these among them where
            another version made them, the fingerprints that they had.
    """

    class_names: list[str]
    fingerprint: str | None
    quality: CandidateFigures
    prior: list[float]
    names: list[list[str]] | None = None
    made_from: str | None = None
    parts: int | None = None
    sets: str | None = None
    known_as: dict[str, list[str]] | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CandidateManifest:
        """The manifest that `as_json` wrote."""
        quality = from_json(CandidateFigures, content["quality"])
        return from_json(cls, {"fingerprint": None, **content, "quality": quality})

    @property
    def fingerprints(self) -> list[str | None]:
        """What these sets are known by: their fingerprint, and what earlier versions called the same."""
        others = (self.known_as or {}).get(self.sets or "", [])
        return [self.fingerprint, *(name for name in others if name != self.fingerprint)]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `manifest.json`."""
        return {**asdict(self), "num_classes": len(self.class_names), "quality": self.quality.as_json()}


@dataclass(frozen=True)
class RowsManifest:
    """`rows/<split>/manifest.json`: side in pixels, and 16 hex digits over ids and contents of the images."""

    side: int
    images: str


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Attributes:
        figures: of the last epoch, by name. world_size: processes of the last worker group.
        start_epoch: the first epoch that it trained; the number of epochs when none was left.
        memory_mb: most that one of those processes held; None where none was left.
    """

    figures: dict[str, float | str]
    world_size: int
    start_epoch: int
    memory_mb: float | None = None

    def metrics(self) -> dict[str, Any]:
        """The figures for `metrics.json`: what scores the last epoch, and how it was trained."""
        scores = {
            name: value for name, value in self.figures.items() if name.startswith((metrics.TEST, metrics.CRITERION))
        }
        return {**scores, metrics.WORLD_SIZE: self.world_size, metrics.START_EPOCH: self.start_epoch}


@dataclass(frozen=True)
class PurifiedManifest:
    """`purified/manifest.json`: what the purified labels are.

    Attributes:
        made_from: mark of checkpoint, candidate sets and settings. parts: files. doubt: share of the candidate sets
            that was taken for unsound. temperature: of the networks. figures: what `metrics.json` says of the labels,
            and of the test images that were scored on the way.
    """

    made_from: str
    parts: int
    doubt: float
    temperature: float
    figures: dict[str, Any]


@dataclass(frozen=True)
class Baseline:
    """A way to a classifier that the method is compared with.

    Attributes:
        accuracy: None where it was left out; note says why or how. images: test images that it was scored on.
    """

    name: str
    accuracy: float | None
    seconds: float | None
    note: str
    images: int | None = None


@dataclass(frozen=True)
class PredictResult:
    """What a batch prediction did.

    Attributes:
        images: in the source. predicted_images: in this run. rejected_images: in all.
    """

    images: int
    predicted_images: int
    rejected_images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.predicted_images / self.seconds
