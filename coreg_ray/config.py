"""The configuration: one typed tree for all jobs, checked when it is built.

The defaults are the constants of the paper (arXiv 2406.18550) and of its authors' published settings. A preset (a YAML
file in `presets/`) lies over them, a `--config` file over that, and command-line overrides over everything:

    python jobs/pipeline.py --config run.yaml --method.epochs 40 --seed 1 --output runs/x
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceConfig(Section):
    """Where the unlabelled images come from, and what may be in them."""

    kind: Literal["digits", "folder", "parquet"] = Field("digits", description="kind of image source")
    path: str | None = Field(None, description="folder, file or URI of the images (not for digits)")
    classes: str | list[str] | None = Field(None, description="class names: a text or YAML file, or a list")
    prompts: str | list[str] | None = Field(None, description="prompt templates with {}: a file, or a list")
    holdout: float = Field(0.05, ge=0, le=0.5, description="share of images annotated but not trained on")


class TestConfig(Section):
    """Labelled images that only score the result; leave `kind` empty when there are none."""

    kind: Literal["digits", "folder", "parquet"] | None = Field(None, description="kind of image source")
    path: str | None = Field(None, description="folder, file or URI of the labelled images")


class AnnotatorConfig(Section):
    """The vision-language model that answers several prompts about every image."""

    kind: Literal["clip"] = Field("clip", description="kind of annotator")
    model: str = Field("ViT-B-32", description="open_clip model name, hf-hub id, or `embedded` (the tiny CLIP)")
    pretrained: str | None = Field(None, description="open_clip pretrained tag or path of a checkpoint")
    batch_size: int = Field(256, ge=1, description="images per batch")
    min_actors: int = Field(1, ge=1, description="smallest size of the actor pool")
    max_actors: int = Field(1, ge=1, description="largest size of the actor pool")
    num_gpus: float = Field(0, ge=0, description="GPUs per actor, fractions allowed; 0 runs on CPUs")

    @model_validator(mode="after")
    def _pool(self) -> AnnotatorConfig:
        if self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors={self.max_actors} is below min_actors={self.min_actors}; raise max_actors or lower min_actors"
            )
        return self


class CandidatesConfig(Section):
    """How the annotator's answers become candidate sets (METHOD: section 1)."""

    mode: Literal["union", "single", "top_k", "threshold", "ratio", "cumulative"] = Field(
        "union", description="rule that turns prompt probabilities into a set"
    )
    k: int = Field(5, ge=1, description="top_k: set size; ratio: largest set")
    threshold: float = Field(0.1, gt=0, le=1, description="threshold: least probability")
    ratio: float = Field(0.5, gt=0, le=1, description="ratio: least share of the highest probability")
    mass: float = Field(0.9, gt=0, le=1, description="cumulative: probability mass to reach")


class MethodConfig(Section):
    """Co-Reg's schedule and constants (paper, sections 3 and 4; epochs count from 0)."""

    epochs: int = Field(100, ge=1, description="passes over the rows, warm-up included")
    warmup_epochs: int = Field(50, ge=0, description="epochs of partial cross-entropy, each network alone")
    contrast_delay: int = Field(10, ge=0, description="epochs after warm-up before the contrastive branch joins")
    batch_size: int = Field(256, ge=2, description="labelled rows per step and network")
    warmup_batch_size: int = Field(512, ge=2, description="rows per warm-up step and network")
    learning_rate: float = Field(0.01, gt=0, description="SGD learning rate at the start of the cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay")
    clean_threshold: float = Field(0.5, ge=0, lt=1, description="rows with a higher clean probability are labelled")
    temperature: float = Field(0.5, gt=0, description="sharpening temperature of pseudo-labels")
    lambda_u: float = Field(1.0, ge=0, description="weight of the consistency term")
    ramp_epochs: int = Field(16, ge=0, description="epochs over which lambda_u ramps up after warm-up")
    mixup_alpha: float = Field(4.0, gt=0, description="both parameters of mixup's beta distribution")
    loss_history: int = Field(5, ge=1, le=100, description="epochs of losses averaged before the mixture is fitted")
    prototype_weight: float = Field(0.1, ge=0, description="weight of the prototype loss")
    prototype_momentum: float = Field(0.999, ge=0, lt=1, description="momentum of the class prototypes")
    prototype_temperature: float = Field(0.3, gt=0, description="temperature of prototype similarities")
    contrast_weight: float = Field(0.1, ge=0, description="weight of the noise-tolerant contrastive loss")
    contrast_temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss")
    key_momentum: float = Field(0.999, ge=0, lt=1, description="momentum of the key encoder; 0.99 for small sets")
    queue_size: int = Field(8192, ge=0, description="keys kept for contrast, per network")
    prior: str = Field("uniform", description="class prior of alignment: uniform, annotator, or a JSON file")
    order: Literal["concurrent", "sequential"] = Field("concurrent", description="how the networks take turns")
    exchanges: int = Field(4, ge=1, description="rounds per epoch after which concurrent networks swap weights")
    trusted_share: float = Field(0.25, ge=0, le=1, description="share of manually labelled rows in a labelled batch")

    @model_validator(mode="after")
    def _schedule(self) -> MethodConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} exceeds epochs={self.epochs}; lower warmup_epochs or raise epochs"
            )
        return self


class StudentConfig(Section):
    """The small classifier that is trained, twice."""

    name: str = Field("preact_resnet18", description="preact_resnet18, or any timm model by name")
    pretrained: str | None = Field(None, description="timm only: `hub` for the model's hub weights, or a local file")
    resolution: int = Field(32, ge=8, le=512, description="side of the images it sees, in pixels")
    width: int = Field(64, ge=4, le=512, description="channels of preact_resnet18's first stage")
    projection: int = Field(128, ge=2, description="size of the projected features")
    views: Literal["auto", "randaugment", "hole"] = Field("auto", description="strong views; auto follows the source")
    flip: bool | None = Field(None, description="mirror images in views; empty: not where it changes the class")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 on GPU, float32 on CPU")
    compile: bool = Field(False, description="torch.compile the networks")


class ClusterConfig(Section):
    """What Ray Train is asked for; the names are Ray's own. Never part of a run's fingerprint."""

    num_workers: int = Field(1, ge=1, description="1: both networks in one worker; 2k: k replicas of each network")
    use_gpu: bool | None = Field(None, description="one GPU per worker; empty: when the cluster has enough of them")
    resources_per_worker: dict[str, float] | None = Field(None, description='e.g. {"CPU": 4}')
    threads: int | None = Field(None, ge=1, description="CPU threads per network held; empty: all, or 1 if several")
    wait_s: float = Field(0, ge=0, description="seconds to wait for an autoscaler to bring missing resources")
    max_failures: int = Field(3, ge=0, description="times a failed worker group is started again")
    memory_share: float = Field(0.5, gt=0, le=1, description="share of memory above which rows are memory-mapped")

    @model_validator(mode="after")
    def _teams(self) -> ClusterConfig:
        if self.num_workers > 1 and self.num_workers % 2:
            raise ValueError(f"num_workers={self.num_workers} cannot hold two equal teams; use 1 or an even number")
        return self


class CheckpointConfig(Section):
    """When the state of the method is written; the best by the label-free criterion is kept besides the last ones."""

    every: int = Field(1, ge=1, description="epochs between checkpoints")
    keep: int = Field(2, ge=1, description="last checkpoints kept")


class Config(Section):
    """Everything a run depends on. Build it with `load` (command line) or directly (it checks itself)."""

    seed: int = Field(0, ge=0, description="seed of everything random")
    output: str = Field("runs/default", description="run folder: a path or a URI")
    start_from: str | None = Field(None, description="checkpoint folder whose networks a new run starts from")
    source: SourceConfig = SourceConfig()
    test: TestConfig = TestConfig()
    annotator: AnnotatorConfig = AnnotatorConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    method: MethodConfig = MethodConfig()
    student: StudentConfig = StudentConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.method.order == "sequential" and self.cluster.num_workers > 1:
            raise ValueError(
                f"method.order=sequential with cluster.num_workers={self.cluster.num_workers}: the sequential order "
                "needs both networks in one worker; use cluster.num_workers 1 or method.order concurrent"
            )
        for name, section in (("source", self.source), ("test", self.test)):
            if section.kind not in (None, "digits") and not section.path:
                raise ValueError(f"{name}.kind={section.kind} needs {name}.path, the folder or file of the images")
        if self.source.kind != "digits" and self.source.classes is None:
            raise ValueError(
                f"source.kind={self.source.kind} needs source.classes, a file with one class name a line or a list"
            )
        return self

    def decisive(self) -> dict[str, Any]:
        """All that decides the result: data, annotation, method, student and seed.

        Cluster, checkpoint and output settings are left out: the same run may go on elsewhere.
        """
        decisive = self.model_dump(include=set(Config.model_fields) - {"output", "cluster", "checkpoint"})
        for pool_setting in ("batch_size", "min_actors", "max_actors", "num_gpus"):
            decisive["annotator"].pop(pool_setting)
        return decisive

    def fingerprint(self) -> str:
        """32 hex digits over `decisive`."""
        return hashlib.blake2b(json.dumps(self.decisive(), sort_keys=True).encode(), digest_size=16).hexdigest()
