"""Labels as cleanlab takes them: NumPy arrays whose rows belong together.

labels.npy             (N,) int64, the labels
annotator_labels.npy   (N,) int64, what the annotator said: with `pred_probs` they show which of them are wrong
pred_probs.npy         (N, K) float32, what both networks say (the annotator, where there are none); rows sum to 1
image_ids.csv, classes.json

cleanlab.filter.find_label_issues(np.load("annotator_labels.npy"), np.load("pred_probs.npy"))
"""

from __future__ import annotations

import csv
import io
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib import format as npy
from numpy.typing import NDArray

from coreg_ray.deploy.labels.base import Pictures, PoolLabels
from coreg_ray.run.cells import neutral
from coreg_ray.run.storage import Folder

FILE: str | None = None
HAS_PICTURES = False


def write(labels: PoolLabels, folder: Folder, name: str, pictures: Pictures) -> int:
    """Write the arrays in one pass; their length is counted before, since their headers say it."""
    count, classes = labels.count(), len(labels.class_names)
    folder.write_json("classes.json", labels.class_names)
    with ExitStack() as stack:

        def opened(file: str) -> pa.NativeFile:
            return stack.enter_context(folder.filesystem.open_output_stream(f"{folder.path}/{file}"))

        ids = opened("image_ids.csv")
        ids.write(b"image_id\n")
        chosen, given, probs = (opened(f"{file}.npy") for file in ("labels", "annotator_labels", "pred_probs"))
        chosen.write(_header((count,), "<i8"))
        given.write(_header((count,), "<i8"))
        probs.write(_header((count, classes), "<f4"))
        for table, distributions in labels.with_probabilities():
            chosen.write(_numbers(table["label"], labels.class_names))
            said_first = pc.coalesce(table["annotator_label"], table["label"])  # a manual label stands in its place
            given.write(_numbers(said_first, labels.class_names))
            probs.write(distributions.astype("<f4").tobytes())
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([neutral(entry)] for entry in table["image_id"].to_pylist())
            ids.write(text.getvalue().encode())
    return count


def _header(shape: tuple[int, ...], kind: str) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _numbers(names: pa.ChunkedArray, class_names: list[str]) -> bytes:
    """Class numbers (B,) of class names as int64."""
    places: NDArray[Any] = pc.index_in(names, pa.array(class_names, pa.string())).to_numpy()
    return places.astype("<i8").tobytes()
