"""The sections of the configuration, their defaults and limits.

The defaults are the constants of the paper (arXiv 2406.18550) and of its authors' published settings, but for what
`methods/coreg.py` opens with. What a setting decides is marked at the setting: the result, unless it says `running`
(how or where it is computed) or `starting` (where a run begins; once it has a checkpoint, that no longer matters).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from coreg_ray.config.kinds import DivideMixConfig, ElrConfig, IllConfig, MethodKind, PicoConfig, is_of_a_kind

_DECIDES, _WORDS = "decides", "words"


def running(default: Any, **limits: Any) -> Any:
    """A field that says how or where something runs and decides no result; arguments as `_marked` takes them."""
    return _marked(default, decides="nothing", **limits)


def starting(default: Any, **limits: Any) -> Any:
    """A field that says where a run begins; arguments as `_marked` takes them."""
    return _marked(default, decides="start", **limits)


def file(default: Any, **limits: Any) -> Any:
    """A field that may name a file and decides the result by what lies there; arguments as `_marked` takes them."""
    return _marked(default, decides="result", **{"words": (), **limits})


def _marked(default: Any, *, decides: str, words: tuple[str, ...] | None = None, **limits: Any) -> Any:
    """pydantic's Field with marks; `words`: what in a field that holds a path is none. None: it holds no path."""
    marks: dict[str, Any] = {_DECIDES: decides} | ({} if words is None else {_WORDS: list(words)})
    return Field(default, json_schema_extra=marks, **limits)


def decides(field: FieldInfo) -> str:
    """What a setting decides: `result`, `start` or `nothing`."""
    return str(_marks(field).get(_DECIDES, "result"))


def words(field: FieldInfo) -> tuple[str, ...] | None:
    """Of a setting that holds a path: the words in its place that are none. None: it holds no path."""
    mark = _marks(field).get(_WORDS)
    return None if mark is None else tuple(mark)


def _marks(field: FieldInfo) -> dict[str, Any]:
    marks = field.json_schema_extra
    return dict(marks) if isinstance(marks, dict) else {}


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def file_or_list(value: Any) -> Any:
    """What stands for a file and what for a list, however it was written: a text with {} is a list of one template."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) and "{}" not in value[0]:
        return value[0]  # command lines make a list of one file name
    return [value] if isinstance(value, str) and "{}" in value else value


FileOrList = Annotated[str | list[str] | None, BeforeValidator(file_or_list)]
SourceKind = Literal["digits", "folder", "parquet", "webdataset", "huggingface", "torchvision"]
LABEL_MODEL_MASS = 0.95  # as pure.label_model measures it, which loads torch
KNOWS_CLASSES = ("digits", "huggingface", "torchvision")  # sources that bring their class names along


class SourceConfig(Section):
    """Where the unlabelled images come from, and what may be in them."""

    kind: SourceKind = Field("digits", description="kind of image source")
    path: str | None = Field(None, description="folder, file, glob or URI of the images (not for digits)")
    name: str | None = Field(None, description="torchvision: the set (cifar10, ...); huggingface: its split")
    subset: str | None = Field(None, description="huggingface: the set's configuration, where it has several")
    classes: FileOrList = Field(None, description="class names: a text or YAML file, or a list")
    prompts: FileOrList = Field(None, description="prompt templates with {}: a file, or a list")
    folder_labels: bool = Field(False, description="folder: sub-folders are labels, which only score")
    image_column: str = Field("image", description="parquet, huggingface: column of the images")
    id_column: str = Field("image_id", description="parquet, huggingface: column of the ids, if there is one")
    label_column: str = Field("label", description="parquet, huggingface: column of the labels, if there is one")
    manual_labels: str | None = Field(None, description="CSV or Parquet of image_id,label: rows that are trusted")
    background: list[str] = Field([], description="texts of images of no class, e.g. 'a blank page'; for warnings")
    holdout: float = Field(0.05, ge=0, le=0.5, description="share of images annotated but not trained on")
    unreadable: Literal["fail", "reject"] = running(
        "fail", description="what comes of a file that cannot be read after half a minute of attempts"
    )


class TestConfig(Section):
    """Labelled images that only score the result; leave `kind` empty when there are none."""

    kind: SourceKind | None = Field(None, description="kind of image source")
    path: str | None = Field(None, description="folder, file, glob or URI of the labelled images")
    name: str | None = Field(None, description="torchvision: the set (cifar10, ...); huggingface: its split")
    subset: str | None = Field(None, description="huggingface: the set's configuration, where it has several")


class AnnotatorConfig(Section):
    """The vision-language model that answers several prompts about every image."""

    kind: Literal["clip", "chat", "votes"] = Field(
        "clip", description="clip: embeds images; chat: answers questions; votes: answers that are in files"
    )
    model: str = Field("ViT-B-32", description="open_clip name, hf-hub id, `embedded`, or the chat model's name")
    pretrained: str | None = Field(None, description="clip: open_clip's pretrained tag or the path of a checkpoint")
    batch_size: int | None = running(None, ge=1, description="clip: images per batch; empty: found automatically")
    precision: Literal["auto", "float32", "bf16", "float16"] = running(
        "auto", description="clip: of the image encoder; auto: float16 on GPUs, float32 on CPUs"
    )
    min_actors: int = running(1, ge=1, description="clip: smallest size of the actor pool")
    max_actors: int = running(1, ge=1, description="clip: largest size of the actor pool")
    num_gpus: float = running(0, ge=0, description="clip: GPUs per actor, fractions allowed; 0 runs on CPUs")
    num_cpus: float = running(1, gt=0, description="clip: CPUs per actor that Ray reserves")
    endpoint: str | None = running(
        None, description="chat: address of an OpenAI-compatible server, http://host:port/v1"
    )
    allow_upload: bool = running(False, description="chat: images may be sent to the endpoint")
    questions: FileOrList = Field(None, description="chat: templates with {} for the classes: file or list")
    key_variable: str | None = running(
        None, description="chat: environment variable with the key; empty: OPENAI_API_KEY, for api.openai.com alone"
    )
    concurrency: int = running(8, ge=1, description="chat: requests under way at once")
    timeout_s: float = running(60, gt=0, description="chat: seconds to wait for an answer")
    retries: int = running(5, ge=0, description="chat: further attempts after 429, 5xx, time-outs and broken answers")
    max_requests: int | None = running(
        None, ge=1, description="chat: most requests in all, earlier runs and estimates included"
    )
    retry_rejects: bool = running(False, description="try all rejects again, also those whose files are as they were")
    image_side: int = Field(336, ge=32, le=2048, description="chat: side of the images sent, in pixels")
    votes: str | None = file(None, description="votes: Parquet, CSV or JSON Lines: a file, folder, glob or URI")
    voters: list[str] | None = Field(
        None, description="votes: whose count: columns, or names for the entries of lists; empty: all"
    )
    scores: Literal["votes", "probabilities", "logits"] = Field(
        "votes", description="votes: column of the voters' P x K numbers that is read too; votes: none"
    )
    price_input: float = running(0, ge=0, description="chat: price of a million input tokens, for the report")
    price_output: float = running(0, ge=0, description="chat: price of a million output tokens, for the report")

    @model_validator(mode="after")
    def _pool(self) -> AnnotatorConfig:
        if self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors={self.max_actors} is below min_actors={self.min_actors}; "
                "raise max_actors or lower min_actors"
            )
        if self.kind == "chat" and not self.endpoint:
            raise ValueError("annotator.kind=chat needs annotator.endpoint, for example http://localhost:8000/v1")
        if self.kind == "votes" and not self.votes:
            raise ValueError("annotator.kind=votes needs annotator.votes, the file or folder of the votes")
        return self


class CandidatesConfig(Section):
    """How the annotator's answers become candidate sets."""

    mode: Literal["union", "label_model", "cpl", "single", "top_k", "threshold", "ratio", "cumulative", "synthetic"] = (
        Field("union", description="rule that turns answers into a set (docs/annotation.md); synthetic: from labels")
    )
    partial_rate: float = Field(0.1, ge=0, le=1, description="synthetic: chance of a wrong class to enter a set")
    noise_rate: float = Field(0.1, ge=0, le=1, description="synthetic: chance of the truth to leave its set")
    k: int = Field(5, ge=1, description="top_k: set size; ratio: largest set")
    threshold: float = Field(0.1, gt=0, le=1, description="threshold: least probability")
    ratio: float = Field(0.5, gt=0, le=1, description="ratio: least share of the highest probability")
    mass: float = Field(
        0.9, gt=0, le=1, description="cumulative, label_model: probability to reach; label_model's own default is 0.95"
    )
    align: str = file(
        "none",
        words=("none", "uniform"),
        description="clip: class shares that the prompts' probabilities are brought to: none, uniform, or a JSON file",
    )

    @model_validator(mode="before")
    @classmethod
    def _mass(cls, given: Any) -> Any:
        """A label model's sets reach more, unless somebody says how much."""
        if isinstance(given, dict) and given.get("mode") == "label_model":
            return {"mass": LABEL_MODEL_MASS, **given}
        return given


class MethodConfig(Section):
    """Which method, its schedule and constants (Co-Reg's paper, sections 3 and 4; epochs count from 0)."""

    kind: MethodKind = Field("coreg", description="the method, a file of methods/")
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
    weak_views: int = Field(1, ge=1, le=2, description="weak views per network for pseudo-labels; the paper has 2")
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
    prior: str = file(
        "uniform", words=("uniform", "annotator"), description="class prior: uniform, annotator, or a JSON file"
    )
    order: Literal["concurrent", "sequential"] = Field("concurrent", description="how the networks take turns")
    exchanges: int = Field(4, ge=1, description="rounds per epoch after which concurrent networks swap weights")
    trusted_share: float = Field(0.25, ge=0.05, le=0.9, description="share of manual labels in a labelled batch")
    dividemix: DivideMixConfig = DivideMixConfig()
    pico: PicoConfig = PicoConfig()
    elr: ElrConfig = ElrConfig()
    ill: IllConfig = IllConfig()

    def of_others(self) -> list[str]:
        """The sections of kinds that this method is not."""
        fields = type(self).model_fields.items()
        return [name for name, field in fields if is_of_a_kind(field) and name != self.kind]

    @model_validator(mode="after")
    def _of_its_kind(self) -> MethodConfig:
        for name in self.of_others():
            given, untouched = getattr(self, name), type(self).model_fields[name].default
            changed = [key for key in type(given).model_fields if getattr(given, key) != getattr(untouched, key)]
            if changed:
                raise ValueError(
                    f"{name}.{changed[0]}={getattr(given, changed[0])} is a setting of method.kind={name}, and this is "
                    f"method.kind={self.kind}; leave it out or choose that kind"
                )
        return self

    @model_validator(mode="after")
    def _schedule(self) -> MethodConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} exceeds epochs={self.epochs}; lower warmup_epochs or raise epochs"
            )
        return self


class ClusterConfig(Section):
    """What Ray Train is asked for; the names are Ray's own. Never part of a run's fingerprint."""

    num_workers: int = Field(1, ge=1, description="1: both networks in one worker; 2k: k replicas of each network")
    use_gpu: bool | None = Field(None, description="one GPU per worker; empty: when the cluster has enough of them")
    resources_per_worker: dict[str, float] | None = Field(None, description='e.g. {"CPU": 4}')
    label_selector: dict[str, str] | None = Field(None, description='labels of its nodes, e.g. {"role": "train"}')
    threads: int | None = Field(
        None, ge=1, description="CPU threads per network; empty: all CPUs shared out, or 1 if workers are several"
    )
    wait_s: float = Field(0, ge=0, description="seconds to wait for an autoscaler to bring missing resources")
    max_failures: int = Field(3, ge=0, description="times a failed worker group is started again")
    memory_share: float = Field(0.5, gt=0, le=1, description="share of memory above which rows are memory-mapped")

    @model_validator(mode="after")
    def _teams(self) -> ClusterConfig:
        if self.num_workers > 1 and self.num_workers % 2:
            raise ValueError(f"num_workers={self.num_workers} cannot hold two equal teams; use 1 or an even number")
        return self


class CheckpointConfig(Section):
    """When the state of the method is written; the best by `criterion/combined` is kept besides the last ones."""

    every: int = Field(1, ge=1, description="epochs between checkpoints")
    keep: int = Field(2, ge=1, description="last checkpoints kept")


class ExportConfig(Section):
    """How the trained model is written; never part of a run's fingerprint."""

    network: Literal["auto", "a", "b", "ensemble"] = Field(
        "auto", description="which network is deployed; auto: the better one by what needs no labels"
    )
    calibrate: bool = Field(True, description="fit a temperature on the purified labels")
    onnx: bool | None = Field(None, description="also write model.onnx; empty: when the onnx extra is installed")
    program: bool = Field(False, description="also write model.pt2, a torch.export program")


class ReportConfig(Section):
    """What the report shows; never part of a run's fingerprint."""

    pictures: int = Field(12, ge=0, le=200, description="pictures in each gallery; 0 for private pools")
    images: int = Field(4096, ge=0, description="most images of a split that both networks are asked about")
    baselines: bool = Field(True, description="train a linear probe and a distilled student to compare with")
    review: int = Field(100, ge=0, description="images in review.csv, for a human look")
