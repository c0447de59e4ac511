"""The configuration tree: what it refuses, and what a run's fingerprint covers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coreg_ray.config import Config
from coreg_ray.images.paper_sets import explicit_student

CHAT = {"kind": "chat", "endpoint": "http://localhost:8000/v1"}


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def built(dotted: str, value: Any) -> Config:
    return Config.model_validate(nested(dotted, value))


def test_the_defaults_are_the_papers_constants() -> None:
    method = Config().method
    assert (method.epochs, method.warmup_epochs, method.contrast_delay, method.ramp_epochs) == (100, 50, 10, 16)
    assert (method.batch_size, method.warmup_batch_size, method.learning_rate, method.momentum) == (256, 512, 0.01, 0.9)
    assert (method.weight_decay, method.clean_threshold, method.temperature, method.lambda_u) == (5e-4, 0.5, 0.5, 1.0)
    assert (method.key_momentum, method.queue_size, method.mixup_alpha, method.loss_history) == (0.999, 8192, 4.0, 5)
    assert (method.prototype_momentum, method.prototype_temperature, method.contrast_temperature) == (0.999, 0.3, 0.07)
    assert (method.prototype_weight, method.contrast_weight, method.prior) == (0.1, 0.1, "uniform")
    assert Config().student.projection == 128


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("seed", -1),
        ("method.epochs", 0),
        ("method.warmup_epochs", -1),
        ("method.batch_size", 1),
        ("method.learning_rate", 0),
        ("method.momentum", 1),
        ("method.clean_threshold", 1),
        ("method.temperature", 0),
        ("method.mixup_alpha", 0),
        ("method.key_momentum", 1),
        ("method.prototype_momentum", 1.5),
        ("method.queue_size", -1),
        ("method.order", "both"),
        ("method.exchanges", 0),
        ("method.trusted_share", 0.95),
        ("method.loss_history", 101),
        ("student.resolution", 7),
        ("student.width", 3),
        ("student.precision", "float16"),
        ("student.views", "weak"),
        ("source.kind", "tar"),
        ("source.holdout", 0.6),
        ("candidates.mode", "all"),
        ("candidates.mass", 0),
        ("candidates.noise_rate", 1.1),
        ("annotator.batch_size", 0),
        ("annotator.num_cpus", 0),
        ("cluster.num_workers", 0),
        ("cluster.threads", 0),
        ("cluster.wait_s", -1),
        ("cluster.memory_share", 0),
        ("checkpoint.every", 0),
        ("export.network", "c"),
        ("report.pictures", 201),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(dotted: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        built(dotted, value)
    (problem,) = refusal.value.errors()
    assert ".".join(map(str, problem["loc"])) == dotted
    assert problem["input"] == value


@pytest.mark.parametrize("dotted", ["epochs", "method.epoch", "source.labels", "annotator.questionss"])
def test_unknown_keys_are_refused(dotted: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        built(dotted, 1)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": {"epochs": 3, "warmup_epochs": 4}}, "warmup_epochs=4 exceeds epochs=3; lower warmup_epochs or"),
        ({"cluster": {"num_workers": 3}}, "num_workers=3 cannot hold two equal teams; use 1 or an even number"),
        ({"annotator": {"min_actors": 4, "max_actors": 2}}, "max_actors=2 is below min_actors=4; raise max_actors"),
        ({"annotator": {"kind": "chat"}}, "annotator.kind=chat needs annotator.endpoint"),
        ({"further_annotators": [{"kind": "chat"}]}, "annotator.kind=chat needs annotator.endpoint"),
        (
            {"method": {"order": "sequential"}, "cluster": {"num_workers": 2}},
            "method.order=sequential with cluster.num_workers=2.*use cluster.num_workers 1 or method.order concurrent",
        ),
        ({"source": {"kind": "folder", "classes": ["a", "b"]}}, "source.kind=folder needs source.path"),
        ({"source": {"path": "/data/birds"}}, "source.path=/data/birds"),
        ({"test": {"kind": "parquet"}}, "test.kind=parquet needs test.path"),
        ({"source": {"kind": "folder", "path": "x"}}, "source.kind=folder needs source.classes"),
    ],
)
def test_contradictions_name_values_and_the_way_out(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(tree)


@pytest.mark.parametrize("workers", [1, 2, 4, 6])
def test_one_worker_or_two_equal_teams(workers: int) -> None:
    assert built("cluster.num_workers", workers).cluster.num_workers == workers


@pytest.mark.parametrize("kind", ["huggingface", "torchvision"])
def test_sources_that_know_their_classes_need_none(kind: str) -> None:
    assert Config.model_validate({"source": {"kind": kind, "path": "x"}}).source.classes is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("names.txt", "names.txt"),
        (["names.txt"], "names.txt"),
        (["cat", "dog"], ["cat", "dog"]),
        ("a photo of a {}", ["a photo of a {}"]),
        (["a photo of a {}"], ["a photo of a {}"]),
        (None, None),
    ],
)
def test_files_and_lists_are_told_apart(given: Any, meant: Any) -> None:
    assert built("source.prompts", given).source.prompts == meant


def test_a_configuration_does_not_change() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.method.epochs = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("source", "flip", "views"),
    [
        ({"kind": "digits"}, False, "randaugment"),
        ({"kind": "torchvision", "path": "x", "name": "svhn"}, False, "randaugment"),
        ({"kind": "torchvision", "path": "x", "name": "gtsrb"}, False, "randaugment"),
        ({"kind": "torchvision", "path": "x", "name": "cifar10"}, True, "randaugment"),
        ({"kind": "torchvision", "path": "x", "name": "fer2013"}, True, "hole"),
        ({"kind": "torchvision", "path": "x", "name": "fashion_mnist"}, True, "hole"),
    ],
)
def test_views_follow_the_source_unless_told(source: dict[str, Any], flip: bool, views: str) -> None:
    student = explicit_student(Config.model_validate({"source": source}))
    assert (student.flip, student.views) == (flip, views)
    told = {"flip": not flip, "views": "hole"}
    student = explicit_student(Config.model_validate({"source": source, "student": told}))
    assert (student.flip, student.views) == (not flip, "hole")


def test_settings_give_the_same_configuration_back() -> None:
    config = Config.model_validate({"method": {"epochs": 60}, "source": {"classes": ["a", "b"]}, "annotator": CHAT})
    assert Config.model_validate(config.settings()) == config


DECISIVE = {
    "seed": 1,
    "start_from": "old/checkpoints/epoch-000009",
    "source.classes": ["a", "b"],
    "source.prompts": ["a {}"],
    "source.holdout": 0.1,
    "source.manual_labels": "labels.csv",
    "test.kind": "digits",
    "annotator.model": "embedded",
    "annotator.pretrained": "laion2b",
    "annotator.image_side": 224,
    "candidates.mode": "single",
    "method.epochs": 200,
    "method.exchanges": 2,
    "method.order": "sequential",
    "student.width": 32,
    "student.flip": True,
    "further_annotators": [{"model": "embedded"}],
}
UNDECISIVE = {
    "output": "runs/other",
    "cluster.num_workers": 4,
    "cluster.threads": 2,
    "checkpoint.every": 5,
    "export.network": "b",
    "report.pictures": 0,
    "annotator.batch_size": 8,
    "annotator.max_actors": 4,
    "annotator.num_gpus": 1,
    "annotator.num_cpus": 2,
    "annotator.endpoint": "http://other/v1",
    "annotator.allow_upload": True,
    "annotator.key_variable": "KEY",
    "annotator.concurrency": 1,
    "annotator.timeout_s": 5,
    "annotator.retries": 0,
    "annotator.max_requests": 10,
    "annotator.price_input": 1,
    "annotator.price_output": 1,
}


@pytest.mark.parametrize("dotted", DECISIVE)
def test_what_decides_the_result_changes_the_fingerprint(dotted: str) -> None:
    assert built(dotted, DECISIVE[dotted]).fingerprint() != Config().fingerprint()


@pytest.mark.parametrize("dotted", UNDECISIVE)
def test_where_and_how_a_run_goes_on_leaves_the_fingerprint(dotted: str) -> None:
    changed = built(dotted, UNDECISIVE[dotted])
    assert changed != Config()
    assert changed.fingerprint() == Config().fingerprint()


def test_other_images_are_another_run() -> None:
    one, other = ({"kind": "folder", "path": path, "classes": ["a", "b"]} for path in ("here", "elsewhere"))
    assert built("source", one).fingerprint() != built("source", other).fingerprint()


def test_every_setting_is_either_decisive_or_about_running() -> None:
    """A new section or annotator setting has to be put on one side: these lists are the whole tree."""
    decisive = Config().decisive()
    assert set(decisive) == {
        *("seed", "start_from", "source", "test", "annotator", "further_annotators", "candidates", "method", "student"),
    }
    assert set(decisive["annotator"]) == {"kind", "model", "pretrained", "questions", "image_side"}
    assert built("student.compile", True).fingerprint() == Config().fingerprint()
    assert built("method.weak_views", 2).fingerprint() != Config().fingerprint()


def test_further_annotators_are_fingerprinted_like_the_first() -> None:
    one = built("further_annotators", [CHAT])
    elsewhere = built("further_annotators", [CHAT | {"endpoint": "http://other/v1", "concurrency": 1}])
    other = built("further_annotators", [CHAT | {"model": "another"}])
    assert one.fingerprint() == elsewhere.fingerprint() != other.fingerprint()


def test_a_fingerprint_does_not_depend_on_how_a_value_was_written() -> None:
    assert built("source.classes", ["a.txt"]).fingerprint() == built("source.classes", "a.txt").fingerprint()
    assert built("method.learning_rate", "1e-1").fingerprint() == built("method.learning_rate", 0.1).fingerprint()
    assert len(Config().fingerprint()) == 32
