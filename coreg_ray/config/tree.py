"""The whole configuration: one typed tree for all commands, checked when it is built.

A preset (a YAML file in `presets/`) lies over the defaults, a `--config` file over that, and command-line overrides
over everything:

    coreg-ray pipeline --config run.yaml --method.epochs 40 --seed 1 --output runs/x
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, Field, model_validator

from coreg_ray.config.method import MethodSettings
from coreg_ray.config.older import ADDED, alike
from coreg_ray.config.outputs import CheckpointConfig, ExportConfig, ReportConfig
from coreg_ray.config.sections import (
    KNOWS_CLASSES,
    AnnotatorConfig,
    CandidatesConfig,
    ClusterConfig,
    Section,
    SourceConfig,
    TestConfig,
    decides,
    running,
    starting,
)
from coreg_ray.config.student import ANNOTATOR, StudentConfig


class Config(Section):
    """Everything a run depends on. Build it with `load` (command line) or directly (it checks itself)."""

    CLASSES_ARE_NAMED: ClassVar[bool] = True  # False where a trained model brings its classes along

    seed: int = Field(0, ge=0, description="seed of everything random")
    output: str = running("runs/default", words=(), description="run folder: a path or a URI")
    start_from: str | None = starting(
        None, words=(), description="run or checkpoint folder whose networks a new run starts from"
    )
    source: SourceConfig = SourceConfig()
    test: TestConfig = TestConfig()
    annotator: AnnotatorConfig = AnnotatorConfig()
    further_annotators: list[AnnotatorConfig] = Field([], description="more annotators, whose votes are added")
    candidates: CandidatesConfig = CandidatesConfig()
    method: MethodSettings = MethodSettings()
    student: StudentConfig = StudentConfig()
    cluster: ClusterConfig = running(ClusterConfig())
    checkpoint: CheckpointConfig = running(CheckpointConfig())
    export: ExportConfig = running(ExportConfig())
    report: ReportConfig = running(ReportConfig())

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.method.order == "sequential" and self.cluster.num_workers > 1:
            raise ValueError(
                f"method.order=sequential with cluster.num_workers={self.cluster.num_workers}: the sequential order "
                "needs both networks in one worker; use cluster.num_workers 1 or method.order concurrent"
            )
        epochs, warm_start = self.method.epochs, self.student.warm_start
        if epochs is not None and warm_start >= epochs:
            raise ValueError(
                f"student.warm_start={warm_start} with method.epochs={epochs}: the backbone would never learn; lower "
                "warm_start, raise epochs, or set student.frozen true"
            )
        if self.candidates.weighted and (self.method.kind == "ill" or self.method.elr.plus):
            kind = self.method.kind + (" with method.elr.plus" if self.method.elr.plus else "")
            raise ValueError(
                f"candidates.weighted=true with method.kind={kind}: it counts all candidates of a set alike; use "
                "candidates.weighted false or another kind (docs/methods.md says which take weights)"
            )
        annotators = self.annotators
        if self.student.name == ANNOTATOR and not any(annotator.kind == "clip" for annotator in annotators):
            raise ValueError(
                f"student.name=annotator with annotator.kind={self.annotator.kind}: it stores no embeddings to learn "
                "from; name a timm model with student.frozen true, or use an annotator of kind clip"
            )
        self._needs_embeddings()
        if self.source.descriptions and not any(annotator.kind == "clip" for annotator in annotators):
            raise ValueError(
                f"source.descriptions={self.source.descriptions} with annotator.kind={self.annotator.kind}: only "
                "annotators of kind clip compare images with texts; leave it out"
            )
        for name, section in (("source", self.source), ("test", self.test)):
            if section.kind not in (None, "digits") and not section.path:
                raise ValueError(f"{name}.kind={section.kind} needs {name}.path, the folder or file of the images")
            if section.kind == "digits" and section.path:
                raise ValueError(
                    f"{name}.kind=digits takes no {name}.path={section.path}; add {name}.kind, e.g. folder"
                )
        return self

    def _needs_embeddings(self) -> None:
        """Raises ValueError where a method looks at an annotator's embeddings and there will be none."""
        prompt, count, kind = self.method.distil.prompt, self.method.neighbours, self.annotator.kind
        if prompt is not None and self.candidates.align != "none":
            raise ValueError(
                f"method.distil.prompt={prompt!r} with candidates.align={self.candidates.align}: one prompt's "
                "probabilities are learnt as they are; use candidates.align none, or leave the prompt out"
            )
        if any(annotator.kind == "clip" for annotator in self.annotators):
            return
        if prompt is not None:
            raise ValueError(
                f"method.distil.prompt={prompt!r} with annotator.kind={kind}: nothing tells its prompts' probabilities "
                "apart; leave it out, or use an annotator of kind clip"
            )
        if count and not self.student.on_features:
            raise ValueError(
                f"method.neighbours={count} with annotator.kind={kind}: it stores no embeddings to find neighbours in; "
                "use method.neighbours 0, name a timm model with student.frozen true, or use an annotator of kind clip"
            )

    @model_validator(mode="after")
    def _classes(self) -> Config:
        if self.CLASSES_ARE_NAMED and self.source.kind not in KNOWS_CLASSES and self.source.classes is None:
            raise ValueError(
                f"source.kind={self.source.kind} needs source.classes, a file with one class name a line or a list"
            )
        return self

    @property
    def annotators(self) -> list[AnnotatorConfig]:
        """All who answer."""
        return [self.annotator, *self.further_annotators]

    def settings(self) -> dict[str, Any]:
        """The tree as plain values that JSON, YAML and `model_validate` take; a job's own fields are left out."""
        return self.model_dump(mode="json", include=set(Config.model_fields))

    def decisive(self, start: bool = True) -> dict[str, Any]:
        """All that decides the result: data, annotation, method, student and seed; of other kinds of methods nothing.

        Args:
            start: whether that includes where a run begins.
        """
        tree = self.settings()
        _prune(tree, Config, {"nothing"} if start else {"nothing", "start"})
        for name in self.method.of_others():
            tree["method"].pop(name)
        return tree

    def fingerprint(self) -> str:
        """32 hex digits over `decisive`."""
        return digest(self.decisive())


def digest(content: Any) -> str:
    """32 hex digits over anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def as_older_versions(decisive: dict[str, Any]) -> list[dict[str, Any]]:
    """A decisive tree as the versions before this one wrote it, newest first: without the settings that they lacked.

    A version counts only if what it lacked has the value that reproduces it (`older.ADDED`).
    """
    forms: list[dict[str, Any]] = []
    tree = decisive
    for key, value in reversed(ADDED.items()):
        tree = json.loads(json.dumps(tree))
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.get(section, {})
        others = [one.pop(name) for one in [branch, *alike(tree, sections)] if name in one]
        if any(other != value for other in others):
            break
        if others:  # a setting of another kind of method is not there, and no version lacks it
            forms.append(tree)
    return forms


def _prune(tree: dict[str, Any], section: type[BaseModel], without: set[str]) -> None:
    """Take the settings that decide something in `without` out of a section's tree."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if decides(field) in without:
            tree.pop(name)
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            _prune(tree[name], inner, without)
        elif get_origin(inner) is list and issubclass(get_args(inner)[0], BaseModel):
            for entry in tree[name]:
                _prune(entry, get_args(inner)[0], without)
