"""The configuration tree: what it refuses, and what a run's fingerprint covers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from coreg_ray.commands.base import Command, load
from coreg_ray.config import AnnotatorConfig, Config, MethodConfig, SourceConfig, StudentConfig
from coreg_ray.config.method import FITTED
from coreg_ray.config.older import ADDED, alike, completed
from coreg_ray.config.paths import path_settings, with_absolute_paths
from coreg_ray.config.sections import decides
from coreg_ray.config.texts import flattened
from coreg_ray.config.tree import as_older_versions, digest
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.pure.label_model import MASS

CHAT = {"kind": "chat", "endpoint": "http://localhost:8000/v1"}


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def built(dotted: str, value: Any) -> Config:
    return Config.model_validate(nested(dotted, value))


def test_the_defaults_are_the_papers_constants() -> None:
    """But for those that are fitted to the pool, where the configuration leaves them to it."""
    method = MethodConfig()
    assert (method.epochs, method.warmup_epochs, method.contrast_delay, method.ramp_epochs) == (100, 50, 10, 16)
    assert (method.batch_size, method.warmup_batch_size, method.learning_rate, method.momentum) == (256, 512, 0.01, 0.9)
    assert (method.weight_decay, method.clean_threshold, method.temperature, method.lambda_u) == (5e-4, 0.5, 0.5, 1.0)
    assert (method.key_momentum, method.queue_size, method.mixup_alpha, method.loss_history) == (0.999, 8192, 4.0, 5)
    assert (method.prototype_momentum, method.prototype_temperature, method.contrast_temperature) == (0.999, 0.3, 0.07)
    assert (method.prototype_weight, method.contrast_weight, method.prior) == (0.1, 0.1, "uniform")
    assert Config().student.projection == 128
    assert {name for name, value in Config().method.model_dump().items() if value is None} == set(FITTED)
    others = method.model_dump(exclude=set(FITTED))
    assert Config().method.model_dump(exclude=set(FITTED)) == others


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
        ("student.frozen_views", 0),
        ("student.frozen_views", 5),
        ("student.dropout", 1),
        ("student.backbone_learning_rate", 0),
        ("student.batch_norm", "held"),
        ("student.warm_start", -1),
        ("student.precision", "float16"),
        ("student.views", "mild"),
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
        ({"annotator": {"kind": "votes"}}, "annotator.kind=votes needs annotator.votes"),
        ({"further_annotators": [{"kind": "chat"}]}, "annotator.kind=chat needs annotator.endpoint"),
        (
            {"method": {"order": "sequential"}, "cluster": {"num_workers": 2}},
            "method.order=sequential with cluster.num_workers=2.*use cluster.num_workers 1 or method.order concurrent",
        ),
        ({"source": {"kind": "folder", "classes": ["a", "b"]}}, "source.kind=folder needs source.path"),
        ({"source": {"path": "/data/birds"}}, "source.path=/data/birds"),
        ({"test": {"kind": "parquet"}}, "test.kind=parquet needs test.path"),
        ({"source": {"kind": "folder", "path": "x"}}, "source.kind=folder needs source.classes"),
        ({"student": {"frozen": True}}, "frozen=true with name=preact_resnet18: it has no published weights; name a"),
        (
            {"student": {"name": "annotator", "pretrained": "hub"}},
            "pretrained=hub with name=annotator: .* leave it out",
        ),
        (
            {"student": {"name": "annotator"}, "annotator": CHAT},
            "student.name=annotator with annotator.kind=chat: it stores no embeddings .*; name a timm model with",
        ),
        (
            {"source": {"descriptions": "looks.yaml"}, "annotator": CHAT},
            "source.descriptions=looks.yaml with annotator.kind=chat: only annotators of kind clip .*; leave it out",
        ),
        (
            {"student": {"name": "resnet18", "frozen": True, "backbone_learning_rate": 0.1}},
            "backbone_learning_rate=0.1 needs a timm model that learns; leave it out",
        ),
        ({"student": {"batch_norm": "frozen"}}, "batch_norm=frozen needs a timm model that learns; leave it out"),
        ({"student": {"name": "annotator", "warm_start": 2}}, "warm_start=2 needs a timm model that learns; leave it"),
        (
            {"student": {"name": "resnet18", "warm_start": 3}, "method": {"epochs": 3}},
            "student.warm_start=3 with method.epochs=3: the backbone would never learn; lower warm_start, raise epochs",
        ),
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
    "source.descriptions": "looks.yaml",
    "source.description_votes": "mean",
    "source.manual_labels": "labels.csv",
    "test.kind": "digits",
    "annotator.model": "embedded",
    "annotator.pretrained": "laion2b",
    "annotator.image_side": 224,
    "annotator.votes": "votes.csv",
    "annotator.voters": ["ann", "bob"],
    "annotator.scores": "logits",
    "candidates.mode": "single",
    "candidates.align": "uniform",
    "candidates.weighted": True,
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
    "annotator.retry_rejects": True,
    "source.unreadable": "reject",
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
    assert set(decisive["annotator"]) == {
        *("kind", "model", "pretrained", "questions", "image_side", "votes", "voters", "scores"),
    }
    assert built("student.compile", True).fingerprint() == Config().fingerprint()
    assert built("method.weak_views", 2).fingerprint() != Config().fingerprint()


def test_further_annotators_are_fingerprinted_like_the_first() -> None:
    one = built("further_annotators", [CHAT])
    elsewhere = built("further_annotators", [CHAT | {"endpoint": "http://other/v1", "concurrency": 1}])
    other = built("further_annotators", [CHAT | {"model": "another"}])
    assert one.fingerprint() == elsewhere.fingerprint() != other.fingerprint()


def test_runs_with_further_annotators_are_those_of_older_versions_too() -> None:
    one = built("further_annotators", [CHAT])
    forms = as_older_versions(one.decisive())
    assert [name for form in forms[-1:] for name in form["further_annotators"][0] if name in ("votes", "scores")] == []
    scored = built("further_annotators", [{**CHAT, "scores": "logits"}])
    assert len(as_older_versions(scored.decisive())) < len(forms)
    (entry,) = completed(forms[-1])["further_annotators"]
    assert (entry["votes"], entry["voters"], entry["scores"]) == (None, None, "votes")


def test_a_label_model_has_a_mass_of_its_own_unless_one_is_named() -> None:
    masses = [{"mode": "label_model"}, {"mode": "label_model", "mass": 0.9}, {"mode": "cumulative"}]
    assert [built("candidates", one).candidates.mass for one in masses] == [0.95, 0.9, 0.9]
    assert built("candidates", {"mode": "label_model"}).candidates.mass == MASS


def test_a_fingerprint_does_not_depend_on_how_a_value_was_written() -> None:
    assert built("source.classes", ["a.txt"]).fingerprint() == built("source.classes", "a.txt").fingerprint()
    assert built("method.learning_rate", "1e-1").fingerprint() == built("method.learning_rate", 0.1).fingerprint()
    assert len(Config().fingerprint()) == 32


# What earlier versions computed; a run that they began goes on only if it stays. The first had no `method.weak_views`.
DEFAULT_OF_THE_FIRST = "2a0479aa7f661171e3eb51152ad6c58a"
DIGITS = "b4ed071d348ee3e70d92539dc65ba988"
UNUSUAL_OF_THE_SECOND = "7972de6e5bd5e2bf1e08b2a3d7e82503"  # of the settings below
UNUSUAL_WITHOUT_ITS_START = "074fa59edaa3d56f0206bb0f8a18a244"
NAMES_OF_THE_FIRST = "ae4f805fb4214c060f1d42ee4a350da9"  # digest over the names of all that decides
OF_KINDS = [f"method.{kind}" for kind in get_args(MethodConfig.model_fields["kind"].annotation)]
COMMON = {name: value for name, value in ADDED.items() if name.rsplit(".", 1)[0] not in OF_KINDS}
LATER = list(COMMON)[1:]  # which the second had not

UNUSUAL: dict[str, Any] = {  # not one setting at its default, but for what would contradict another
    "seed": 7, "output": "elsewhere", "start_from": "old/run",
    "source": {
        "kind": "folder", "path": "pool", "name": "train", "subset": "en", "classes": ["cat", "dog"],
        "prompts": ["a {}", "the {}"], "folder_labels": True, "image_column": "pixels",
        "id_column": "key", "label_column": "class", "manual_labels": "labels.csv",
        "background": ["a blank page"], "holdout": 0.2, "unreadable": "reject",
        "descriptions": "looks.yaml", "description_votes": "mean",
    },
    "test": {"kind": "parquet", "path": "test.parquet", "name": "validation", "subset": "de"},
    "annotator": {
        "kind": "chat", "model": "eye", "pretrained": "tag", "batch_size": 3, "precision": "bf16", "min_actors": 2,
        "max_actors": 3, "num_gpus": 0.5, "num_cpus": 2, "endpoint": "http://localhost:8000/v1", "allow_upload": True,
        "questions": ["Is it {}?"], "key_variable": "KEY", "concurrency": 2, "timeout_s": 5, "retries": 1,
        "max_requests": 9, "retry_rejects": True, "image_side": 224, "price_input": 1, "price_output": 2,
        "votes": "votes.csv", "voters": ["ann"], "scores": "logits",
    },
    "further_annotators": [{"model": "embedded", "batch_size": 4}],
    "candidates": {
        "mode": "ratio", "partial_rate": 0.2, "noise_rate": 0.3, "k": 3, "threshold": 0.2, "ratio": 0.4, "mass": 0.8,
        "align": "uniform", "weighted": True,
    },
    "method": {
        "epochs": 30, "warmup_epochs": 9, "contrast_delay": 3, "batch_size": 32, "warmup_batch_size": 64,
        "learning_rate": 0.03, "momentum": 0.8, "weight_decay": 1e-4, "clean_threshold": 0.6, "temperature": 0.4,
        "weak_views": 2, "lambda_u": 2, "ramp_epochs": 5, "mixup_alpha": 3, "loss_history": 4, "prototype_weight": 0.2,
        "prototype_momentum": 0.99, "prototype_temperature": 0.2, "contrast_weight": 0.3, "contrast_temperature": 0.1,
        "key_momentum": 0.9, "queue_size": 256, "prior": "annotator", "order": "sequential", "exchanges": 2,
        "trusted_share": 0.5, "labels": "single", "clean": "confident", "neighbours": 5,
    },
    "student": {
        "name": "resnet18", "pretrained": "hub", "resolution": 64, "width": 32, "projection": 64, "views": "hole",
        "flip": True, "precision": "bf16", "compile": True, "frozen": True, "frozen_views": 4, "dropout": 0.5,
    },
    "cluster": {
        "use_gpu": True, "resources_per_worker": {"CPU": 2}, "label_selector": {"role": "train"}, "threads": 2,
        "wait_s": 9, "max_failures": 1, "memory_share": 0.4,
    },
    "checkpoint": {"every": 2, "keep": 3},
    "export": {"network": "b", "calibrate": False, "onnx": True, "program": True, "int8": False, "abstain": 0.9},
    "report": {"pictures": 1, "images": 9, "baselines": False, "review": 3},
}  # fmt: skip


def test_the_fingerprint_of_a_preset_is_the_one_that_it_always_was() -> None:
    then = "--student.name preact_resnet18 --method.epochs 20 --method.warmup_epochs 6 --method.batch_size 64"
    then += " --method.warmup_batch_size 64 --method.learning_rate 0.04 --method.contrast_delay 2"
    decisive = load(["--preset", "digits", *then.split()], Command).decisive()
    assert DIGITS in [digest(form) for form in (decisive, *as_older_versions(decisive))]


def test_what_decides_is_what_always_did() -> None:
    config, usual = Config.model_validate(UNUSUAL), flattened(Config().settings())
    same = {name for name, value in flattened(config.settings()).items() if value == usual.get(name)}
    # Several workers contradict the sequential order, and what is for a backbone that learns one that is frozen.
    # Settings of kinds that the method is not are refused.
    others = {
        f"method.{name}" for name in flattened(MethodConfig().model_dump(include=set(MethodConfig().of_others())))
    }
    tuned = {"student.backbone_learning_rate", "student.batch_norm", "student.warm_start"}
    assert same == {"cluster.num_workers", "method.kind", *tuned, *others}
    assert config.fingerprint() == digest(config.decisive())
    assert digest(without(config.decisive(), *LATER)) == UNUSUAL_OF_THE_SECOND
    assert digest(without(config.decisive(start=False), *LATER)) == UNUSUAL_WITHOUT_ITS_START


def test_settings_are_marked_with_what_they_decide() -> None:
    def marked(mark: str, section: type[BaseModel]) -> set[str]:
        return {name for name, field in section.model_fields.items() if decides(field) == mark}

    assert marked("nothing", Config) == {"output", "cluster", "checkpoint", "export", "report"}
    assert marked("nothing", StudentConfig) == {"compile"}
    assert marked("nothing", AnnotatorConfig) == {
        *("batch_size", "precision", "min_actors", "max_actors", "num_gpus", "num_cpus", "endpoint", "allow_upload"),
        *("key_variable", "concurrency", "timeout_s", "retries", "max_requests", "retry_rejects"),
        *("price_input", "price_output"),
    }
    assert marked("nothing", SourceConfig) == {"unreadable"}
    assert (marked("start", Config), marked("start", StudentConfig)) == ({"start_from"}, {"pretrained"})
    others = set(sections_of(Config)) - {Config, AnnotatorConfig, SourceConfig, StudentConfig}
    assert len(others) == 7 + len(MethodConfig().of_others())
    assert all(marked("result", section) == set(section.model_fields) for section in others)


def sections_of(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section, and all below it."""
    yield section
    for field in section.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections_of(kind)


def without(tree: dict[str, Any], *dotted: str) -> dict[str, Any]:
    """A copy of a tree that lacks some of its settings."""
    less = copy.deepcopy(tree)
    for key in dotted:
        *sections, name = key.split(".")
        branch = less
        for section in sections:
            branch = branch[section]
        for one in [branch, *alike(less, sections)]:
            del one[name]
    return less


def with_value(tree: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of a tree in which a setting has that value."""
    more = without(tree, dotted)
    *sections, name = dotted.split(".")
    branch = more
    for section in sections:
        branch = branch[section]
    branch[name] = value
    return more


def reproducing(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tree in which all that was ever added has the value that reproduces the versions without it."""
    for key, value in COMMON.items():
        tree = with_value(tree, key, value)
    return tree


@pytest.mark.parametrize("added", ADDED)
def test_a_stored_tree_is_completed_by_what_its_version_meant(added: str) -> None:
    stored = Config().settings()
    lacking = without(stored, added)
    whole = completed(lacking)
    assert whole == with_value(stored, added, ADDED[added])
    assert flattened(Config.model_validate(whole).settings())[added] == ADDED[added]
    assert lacking == without(stored, added)  # a copy was completed
    assert flattened(completed({}))[added] == ADDED[added]  # no section is there, either
    chosen = with_value(stored, added, "a value of its own")
    assert completed(chosen) == chosen


@pytest.mark.parametrize("added", COMMON)
def test_a_version_without_a_setting_called_the_same_run_by_a_fingerprint_that_is_known(added: str) -> None:
    today = reproducing(Config().decisive())
    lacked = list(COMMON)[list(COMMON).index(added) :]  # what came after it was unknown, too
    then = digest(without(today, *lacked))
    assert then in [digest(form) for form in as_older_versions(today)]
    assert digest(today) not in [digest(form) for form in as_older_versions(today)]
    for name in lacked:
        other = with_value(today, name, "a value that does something else")
        assert then not in [digest(form) for form in as_older_versions(other)]


def test_a_setting_of_one_kind_is_lacked_by_older_versions_of_runs_of_that_kind_alone() -> None:
    today = Config.model_validate({"method": {"kind": "distil"}}).decisive()
    then = digest(without(today, "method.distil.prompt"))
    assert then in [digest(form) for form in as_older_versions(today)]
    one = with_value(today, "method.distil.prompt", "a {}")
    assert then not in [digest(form) for form in as_older_versions(one)]


def test_older_forms_begin_with_the_newest_and_leave_the_tree_as_it_is() -> None:
    today = reproducing(Config().decisive())
    before = copy.deepcopy(today)
    forms = as_older_versions(today)
    assert today == before
    added = list(COMMON)
    assert forms == [without(today, *added[-count:]) for count in range(1, len(added) + 1)]


def test_the_first_version_called_its_default_by_a_fingerprint_that_is_known() -> None:
    today = reproducing(Config(method=MethodConfig()).decisive())  # whose defaults were the paper's
    assert digest(as_older_versions(today)[-1]) == DEFAULT_OF_THE_FIRST
    one_view = with_value(today, "method.weak_views", 1)
    assert DEFAULT_OF_THE_FIRST not in [digest(form) for form in as_older_versions(one_view)]


def test_a_new_decisive_setting_says_what_it_was_before() -> None:
    first = set(flattened(Config().decisive())) - set(ADDED)
    assert digest(sorted(first)) == NAMES_OF_THE_FIRST, "give the new setting its line in config.older.ADDED"


def test_settings_that_hold_paths_are_known() -> None:
    assert dict(path_settings()) == {
        "output": (),
        "start_from": (),
        "annotator.votes": (),
        "candidates.align": ("none", "uniform"),
        "method.prior": ("uniform", "annotator"),
        "student.pretrained": ("hub",),
    }


def test_paths_that_exist_are_made_absolute_and_words_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("uniform", "annotator", "hub", "prior.json", "weights.pt", "run"):
        (tmp_path / name).touch()

    def absolute(dotted: str, value: str | None) -> Any:
        return flattened(with_absolute_paths(built(dotted, value)).settings())[dotted]

    for dotted, value in (
        *(("method.prior", "uniform"), ("method.prior", "annotator"), ("student.pretrained", "hub")),
        *(("student.pretrained", None), ("method.prior", "none.json"), ("output", "s3://bucket/run")),
        *(("start_from", None), ("start_from", "/somewhere/else")),
    ):
        assert absolute(dotted, value) == value
    for dotted, value in (
        *(("method.prior", "prior.json"), ("student.pretrained", "weights.pt")),
        *(("output", "run"), ("start_from", "run")),
    ):
        assert absolute(dotted, value) == str(tmp_path.resolve() / value)
    config = Config.model_validate(UNUSUAL)
    assert with_absolute_paths(config) == config  # of what is no path, nothing changes
