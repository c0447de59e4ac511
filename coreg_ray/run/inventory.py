"""Every file and folder of a run: what it holds, who writes it, and when a person may delete it.

`coreg-ray show` tells it of what lies in a folder, docs/reference/run-folder.md of all there may be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

KEEP = ""
STEPS = {  # who writes -> the commands that take this step
    "annotation": "annotate, pipeline, tune",
    "training": "pipeline, train, compare, tune",
    "export": "pipeline, train",
    "report": "annotate, pipeline, train",
    "review": "review",
    "search": "tune",
    "comparison": "compare",
    "prediction": "predict",
    "any": "every command that writes into a run",
}
_AGAIN = "(the same command makes them again from the source)"
_TRAINED = "once nothing shall go on or start from this run"


@dataclass(frozen=True)
class Entry:
    """One file or folder that a run may have.

    Attributes:
        path: below the run folder, a folder with a slash at its end; `<...>` stands for one name. what: what it holds.
            by: the step that writes it, of `STEPS`. may_go: when or why it may be deleted; "" where it should stay.
    """

    path: str
    what: str
    by: str
    may_go: str = KEEP

    @property
    def top(self) -> str:
        """The name directly in the run folder."""
        return self.path.split("/")[0]

    @property
    def is_top(self) -> bool:
        """Whether it lies directly in the run folder."""
        return self.path.rstrip("/") == self.top


ENTRIES = (
    Entry("config.yaml", "the settings", "any"),
    Entry("versions.json", "versions of what made the run", "any"),
    Entry(".lock", "which command works here at the moment: machine, process, since when", "any", "once it is dead"),
    Entry("borrowed.json", "which folders lie in another run", "training"),
    Entry("annotations/", "what the annotators answered", "annotation", "only if the pool may be annotated again"),
    Entry("annotations/<split>/annotators.json", "whose votes count", "annotation"),
    Entry("annotations/<split>/source.json", "where the images came from; edited where they have moved", "annotation"),
    Entry("annotations/<split>/<annotator>/manifest.json", "model, weights, prompts, class names", "annotation"),
    Entry("annotations/<split>/<annotator>/text.safetensors", "the prompts' embeddings", "annotation"),
    Entry("annotations/<split>/<annotator>/<part>.parquet", "votes and embedding of 512 images", "annotation"),
    Entry("annotations/<split>/<annotator>/spent/<call>.json", "requests and tokens of a chat model", "annotation"),
    Entry("rejects/", "images that could not be decoded, and why", "annotation"),
    Entry("rejects/<split>/<part>.parquet", "ids and reasons", "annotation"),
    Entry("rejects/<part>.parquet", "the same, beside predictions", "prediction"),
    Entry("labels/", "true labels, which only score", "annotation"),
    Entry("labels/<split>/<part>.parquet", "row, id and label", "annotation"),
    Entry("candidates/", "candidate sets", "annotation", "(the same command makes them again from annotations/)"),
    Entry("candidates/manifest.json", "what the sets were made from, and figures about them", "annotation"),
    Entry("candidates/before.json", "the same of the sets before, while they are made again", "annotation"),
    Entry("candidates/test.json", "zero-shot figures of the test images", "annotation"),
    Entry("candidates/voters.json", "what the report says of each voter", "annotation"),
    Entry("candidates/<part>.parquet", "candidates, votes, scores and weights of each image", "annotation"),
    Entry("voters.csv", "how far each voter can be trusted", "annotation"),
    Entry("rows/", "images at the student's resolution", "annotation", _AGAIN),
    Entry("rows/<split>/manifest.json", "which images these are", "annotation"),
    Entry("rows/<split>/<part>.parquet", "pixels, uint8", "annotation"),
    Entry("features/", "features of a frozen backbone", "training", _AGAIN),
    Entry("features/manifest.json", "which backbone and which views", "training"),
    Entry("features/backbone.safetensors", "the backbone's weights", "training"),
    Entry("features/<split>/<part>.parquet", "features of each image and of its views, float16", "training"),
    Entry("checkpoints/", "the state of both networks", "training", _TRAINED),
    Entry("checkpoints/<epoch>/manifest.json", "the files of this checkpoint, sizes and digests", "training"),
    Entry("checkpoints/<epoch>/state.json", "epoch, fingerprint, classes, student, history", "training"),
    Entry("checkpoints/<epoch>/network_<network>.safetensors", "weights, optimiser, key encoder", "training"),
    Entry("checkpoints/<epoch>/rows_<network>_<replica>.safetensors", "what is remembered of each row", "training"),
    Entry("history.csv", "figures of every epoch", "training"),
    Entry("tensorboard/", "curves for TensorBoard", "training", "(history.csv has the figures)"),
    Entry("tensorboard/<events>", "one process's events", "training"),
    Entry("ray/", "Ray Train's own records", "training", "(nothing continues from them)"),
    Entry("metrics.json", "all figures", "any"),
    Entry("model/", "the classifier and its card", "export"),
    Entry("model/model.safetensors", "weights", "export"),
    Entry("model/model.json", "architecture, classes, resolution, normalisation, provenance", "export"),
    Entry("model/README.md", "the model card, for people", "export"),
    Entry("model/README-new.md", "a fresh one beside a card that a person has edited", "export"),
    Entry("model/model.onnx", "images in, probabilities out (extra `onnx`)", "export"),
    Entry("model/model-int8.onnx", "the same in eight bits, where it is as right and faster here", "export"),
    Entry("model/model.pt2", "a torch.export program (`export.program`)", "export"),
    Entry("purified/", "the pool's labels as the networks settled them", "export"),
    Entry("purified/manifest.json", "what they were made from, and figures about them", "export"),
    Entry("purified/<part>.parquet", "a label for each image, and how far to trust it", "export"),
    Entry("probabilities/", "how probable the networks find the classes of every image", "export"),
    Entry("probabilities/<part>.parquet", "float16, in the order of the file of that name in purified/", "export"),
    Entry("baselines.json", "what the method was compared with", "report"),
    Entry("report.html", "the report", "report"),
    Entry("review.csv", "images to look at, with a person's labels", "report"),
    Entry("review-new.csv", "images to look at, beside a file that could not be read", "report"),
    Entry("review.jsonl", "labels as they were given on the page", "review", "once review.csv is all that counts"),
    Entry("review-train.log", "what the training said that the review page started", "review", "at any time"),
    Entry("predictions.json", "which model said them", "prediction"),
    Entry("predictions/", "what a model said of images", "prediction"),
    Entry("predictions/<part>.parquet", "class, probability, the best five", "prediction"),
    Entry("comparison.csv", "methods compared on this run's rows", "comparison"),
    Entry("comparison.html", "the same as a page", "comparison"),
    Entry("methods/", "the runs of a comparison", "comparison", "all but those that comparison.csv shall lead to"),
    Entry("methods/<name>/", "one run, a run folder", "comparison"),
    Entry("search.json", "which search this is", "search"),
    Entry("trials.csv", "all trials of a search", "search"),
    Entry("trials.svg", "a picture of the search", "search"),
    Entry("best.yaml", "the best settings of a search", "search"),
    Entry("trials/", "the runs of a search", "search", "all but those that best.yaml and trials.csv shall lead to"),
    Entry("trials/<name>/", "one trial, a run folder", "search"),
    Entry("data/", "candidate sets and images that trials share", "search", "once the search is over"),
    Entry("data/<mark>/", "those of some trials, as in a run folder", "search"),
    Entry("tune/", "Ray Tune's own record", "search", "once the search shall not be resumed"),
    Entry("failure.txt", "why a trial ended without a result", "search"),
)
_NESTED = ("methods/", "trials/", "data/")  # folders of run folders
_FOREIGN = ("ray/", "tune/")  # whose insides are Ray's


def of_top(name: str) -> Entry | None:
    """The entry of a name directly in the run folder; None: it is none of ours."""
    return {entry.top: entry for entry in ENTRIES if entry.is_top}.get(name)


def of_file(path: str) -> Entry | None:
    """The entry of a file; `path`: below the run folder. None: it is none of ours."""
    for folder in _NESTED:
        if path.startswith(folder):
            inner = path.split("/", 2)
            return of_file(inner[2]) if len(inner) == 3 else None
    if path.startswith(_FOREIGN):
        return of_top(path.split("/")[0])
    return next((entry for entry in ENTRIES if not entry.path.endswith("/") and _pattern(entry.path).match(path)), None)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """`<...>` of a path as one name, or a part of one."""
    parts = re.split(r"(<\w+>)", path)
    return re.compile("".join("[^/]+" if part.startswith("<") else re.escape(part) for part in parts) + r"\Z")
