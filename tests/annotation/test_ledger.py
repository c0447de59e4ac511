"""What a chat model's answers cost and what it refused: written with them, and counted again by every later run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from chat_server import chat_server

from coreg_ray.annotation import chat, ledger
from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.chat import ChatAnswers
from coreg_ray.annotation.factory import build_chat
from coreg_ray.annotation.ledger import Usage
from coreg_ray.annotation.parts import Part, annotation_table, drop_outdated, known_keys, parts
from coreg_ray.annotation.writer import Place, write_answers
from coreg_ray.config import AnnotatorConfig
from coreg_ray.ids import images_hash, row_numbers
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

CARD = Card("chat", "m", "e" * 32, ("{}?",), (("cat",), ("dog",)), {})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.at(tmp_path)


def place(run: RunFolder, split: Any, number: int = 0) -> Place:
    return Place(run.own("annotations", split) / CARD.folder, number, run.rejects(split))


def block(count: int, split: str = "pool") -> dict[str, Any]:
    """Dark and bright pictures in turn."""
    images = np.stack([np.full((32, 32, 3), 255 * (number % 2), np.uint8) for number in range(count)])
    names = np.array([f"{split}-{number}" for number in range(count)], dtype=object)
    return {"image_id": names, "content": names, "split": np.full(count, split, dtype=object), "image": images}


def table(folder: Folder, column: str) -> list[Any]:
    return [value for part in parts(folder) for value in read_table(folder, part.name)[column].to_pylist()]


def config(address: str, **settings: Any) -> AnnotatorConfig:
    return AnnotatorConfig(kind="chat", model="m", endpoint=address, allow_upload=True, **settings)


def test_requests_without_an_answer_stand_in_the_account(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setattr(chat, "_FIRST_WAIT_S", 0.01)
    places = {"pool": place(run, "pool"), "test": place(run, "test")}
    folders = [entry.folder for entry in places.values()]
    with chat_server(*["429"] * 20, words="slow down") as server:
        settings = config(server.address, retries=3, concurrency=1, max_requests=22)
        for _ in range(2):  # another run, in the same place
            annotator = build_chat(settings, CARD, folders)
            line = write_answers(annotator(block(6)), split="pool", places=places, card=CARD)
        assert server.requests == 22
    assert parts(folders[0])
    assert ledger.spent(folders[0]) == Usage(22, 20, 4)
    assert ledger.spent(folders[1]) == Usage()
    assert (line["pool/requests"], line["test/requests"], line["pool/images"]) == ([2], [0], [2])


def test_a_reject_has_the_servers_words_and_is_not_asked_about_again(run: RunFolder) -> None:
    pytest.importorskip("openai")
    places = {"pool": place(run, "pool"), "test": place(run, "test")}
    both = {name: np.concatenate([values, block(2, "test")[name]]) for name, values in block(13).items()}
    with chat_server(refuses={"dog": 400}, words="not this one") as server:
        annotator = build_chat(config(server.address), CARD, [entry.folder for entry in places.values()])
        line = write_answers(annotator(both), split="pool", places=places, card=CARD)
    folder, rejects = places["pool"].folder, run.rejects("pool")
    assert table(folder, "image_id") == [f"pool-{number}" for number in range(0, 13, 2)]
    assert table(rejects, "image_id") == [f"pool-{number}" for number in range(1, 13, 2)]
    assert table(run.rejects("test"), "image_id") == ["test-1"]
    assert all("status 400: not this one" in reason for reason in table(rejects, "reason"))
    assert len(known_keys(folder, rejects)) == 13
    assert {name: line[name] for name in ("images", "pool/images", "pool/refused", "test/refused")} == {
        "images": [8],
        "pool/images": [7],
        "pool/refused": [6],
        "test/refused": [1],
    }


def test_the_same_figures_twice_are_paid_twice_and_leave_with_no_image(run: RunFolder) -> None:
    here = place(run, "pool")
    nobody = {name: values[:0] for name, values in block(1).items() if name != "image"}
    none = {"votes": np.zeros((0, 1), np.int32), "answers": np.zeros((0, 1), object)}
    answers = ChatAnswers({**nobody, **none}, {**nobody, "reason": np.zeros(0, object)}, Usage(4, 3, 2))
    for _ in range(2):
        write_answers(answers, split="pool", places={"pool": here}, card=CARD)
    drop_outdated(row_numbers([]), here.folder)
    assert ledger.spent(here.folder) == Usage(8, 6, 4)


def test_the_figures_of_older_versions_count_once(run: RunFolder) -> None:
    here = place(run, "pool", 1)
    ids = ["a", "b"]
    older = annotation_table(ids, ids, CARD.folder, np.zeros((2, 1), np.int32))
    for name, values in {"requests": [5, 0], "input_tokens": [50, 0], "output_tokens": [9, 0]}.items():
        older = older.append_column(name, pa.array(values))
    write_table(here.folder, Part(0, images_hash(ids, ids), CARD.text).name, older)
    assert ledger.spent(here.folder) == Usage(5, 50, 9)
    ledger.record(here.folder, 1, Usage(1, 2, 3))
    assert ledger.spent(here.folder) == Usage(6, 52, 12)
