"""What the review page needs of a run, without training one; and the command that shows it, as a person starts it."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from coreg_ray.config import Config
from coreg_ray.review.items import read_items, read_table_of
from coreg_ray.review.pictures import Pictures
from coreg_ray.review.proceed import Continuation
from coreg_ray.review.server import ReviewServer, listening
from coreg_ray.review.session import Session
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import CandidateFigures, CandidateManifest

ROOT = Path(__file__).parents[1]
ANIMALS = ["cat", "dog", "fox"]
COLUMNS = ("image_id", "label", "suggestion", "confidence", "network_a", "confidence_a", "network_b", "confidence_b",
           "annotator")  # fmt: skip
_PROGRAM = """
import atexit, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests that run in the background are without
atexit.register(lambda: print("loaded", *({"torch", "ray"} & set(sys.modules)), flush=True))
from coreg_ray.cli import main
main()
"""


def png(number: int, size: tuple[int, int] = (120, 90)) -> bytes:
    """A picture that says its number."""
    image = Image.new("RGB", size, (60 + number * 37 % 160, 90 + number * 53 % 140, 120 + number * 71 % 110))
    ImageDraw.Draw(image).text((size[0] // 3, size[1] // 3), str(number), fill="white", font_size=30)
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def pool(folder: Path, count: int) -> list[str]:
    """A folder of pictures; their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"{number:05d}.png" for number in range(count)]
    for number, name in enumerate(ids):
        (folder / name).write_bytes(png(number))
    return ids


def parquet_pool(path: Path, count: int) -> list[str]:
    """The same in one Parquet file, with small pictures."""
    ids = [f"{number:05d}" for number in range(count)]
    some = [png(number, (40, 30)) for number in range(50)]
    images = pa.array([some[number % 50] for number in range(count)], pa.binary())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_id": ids, "image": images}), path, row_group_size=500)
    return ids


def answers(ids: Sequence[str], class_names: Sequence[str]) -> list[dict[str, str]]:
    """Rows of review.csv: image n is taken for class n; every fourth divides the networks, every fifth was changed."""
    rows = []
    for number, name in enumerate(ids):
        k = len(class_names)
        main, other = class_names[number % k], class_names[(number + 1) % k]
        rows.append(
            {
                "image_id": name,
                "label": "",
                "suggestion": main,
                "confidence": f"{0.5 + number % 40 / 100:.4f}",
                "network_a": main,
                "confidence_a": "0.6100",
                "network_b": other if number % 4 == 0 else main,
                "confidence_b": "0.5200",
                "annotator": other if number % 5 == 0 else main,
            }
        )
    return rows


def as_csv(rows: Sequence[dict[str, str]]) -> str:
    """Rows as the file has them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def review_run(
    folder: RunFolder, source: dict[str, Any], ids: Sequence[str], class_names: Sequence[str] = ANIMALS
) -> RunFolder:
    """Write `config.yaml`, candidate sets and `review.csv`."""
    settings = {"output": folder.path, "source": {**source, "classes": list(class_names)}}
    folder.write_config(Config.model_validate(settings))
    folder.write("review.csv", as_csv(answers(ids, class_names)))
    k = len(class_names)
    table = pa.table(
        {
            "image_id": list(ids),
            "candidates": [[number % k, (number + 1) % k] for number in range(len(ids))],
            "scores": pa.array([[0.7, 0.2]] * len(ids), pa.list_(pa.float32())),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream)
    folder.candidates.write("0.parquet", stream.getvalue())
    figures = CandidateFigures(rows=len(ids))
    manifest = CandidateManifest(list(class_names), None, figures, [1 / k] * k)
    folder.candidates.write_json("manifest.json", manifest.as_json())
    return folder


def folder_run(tmp_path: Path, count: int, class_names: Sequence[str] = ANIMALS) -> RunFolder:
    """Such a run over a folder of pictures."""
    ids = pool(tmp_path / "pool", count)
    source = {"kind": "folder", "path": str(tmp_path / "pool")}
    return review_run(RunFolder.at(tmp_path / "run"), source, ids, class_names)


def labels_in(run: RunFolder) -> dict[str, str]:
    """Image id -> label in review.csv, of those that have one."""
    rows = csv.DictReader(io.StringIO(run.read("review.csv").decode()))
    return {row["image_id"]: row["label"] for row in rows if row["label"]}


def journal(run: RunFolder) -> list[dict[str, Any]]:
    """The labels in review.jsonl."""
    lines = run.read("review.jsonl").decode().splitlines() if run.exists("review.jsonl") else []
    return [entry for entry in map(json.loads, lines) if "image_id" in entry]


@dataclass
class Reviewing:
    """A review under way: its address, its process, and what it said on the terminal so far."""

    address: str
    process: subprocess.Popen[str]
    said: list[str]

    def stop(self) -> str:
        """Ctrl-C; returns the rest of what it says."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=120)
        return rest

    def kill(self) -> None:
        """As when the power goes."""
        self.process.kill()
        self.process.communicate(timeout=120)


@contextlib.contextmanager
def reviewing(run: str, *words: str) -> Iterator[Reviewing]:
    """`coreg-ray review RUN --browser false`; at its end it must have loaded neither torch nor Ray."""
    command = [sys.executable, "-c", _PROGRAM, "review", run, "--browser", "false", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if lines[-1].startswith("http://"):
                break
        else:
            raise AssertionError("\n".join(lines))
        review = Reviewing(lines[-1], process, lines)
        yield review
        if process.poll() is None:
            assert review.stop().splitlines()[-1] == "loaded"
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        process.stdout.close()


@contextlib.contextmanager
def reviewing_here(run: RunFolder, given: str = "") -> Iterator[str]:
    """The same server in a thread of this process, which is there at once; gives its address.

    Args:
        given: as a person has named the run.
    """
    items = read_items(run, read_table_of(run, run.path))
    config = run.read_config()
    session, pictures = Session(run, items), Pictures(config, items.ids)
    server = ReviewServer(given or run.path, session, pictures, Continuation(run, run.path, config, "coreg-ray train"))
    listener, up, loop = listening(0), threading.Event(), asyncio.new_event_loop()
    task = loop.create_task(server.run(listener, up.set))

    def serve() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert up.wait(20)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/{server.token}/"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)
        pictures.close()
        session.merge()


def resident_mb(pid: int) -> float:
    """Memory of a process that is not shared with its file, in MB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float(np.nan)
