"""What one prompt of a run says of every row, for a network that learns it alone (`method.distil.prompt`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finished_run
import pytest
import torch
import toy
from finished_run import PROMPTS
from pydantic import ValidationError
from torch import Tensor

from coreg_ray.annotation.card import TEXT
from coreg_ray.annotation.clip import TextTable
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.methods import distil
from coreg_ray.pure.candidates import synthetic_candidates
from coreg_ray.pure.rng import generator
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.embeddings import labels_of_prompt, refuse_lacking, refuse_unasked
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.worker import Task, load_data, soft_labels_in_words, train

SCALE = 10.0
TEXTS = torch.stack([torch.eye(4, 8), torch.eye(4, 8)[[1, 0, 2, 3]]])  # the second takes two classes for one another


def configured(run: RunFolder, prompt: str | None) -> Config:
    method = toy.method(kind="distil", epochs=2, warmup_epochs=0, distil={"prompt": prompt})
    return finished_run.run_config(run, finished_run.NAMES, method=method.model_dump())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Annotated by two prompts; the sets that were made of it have no soft labels."""
    run = RunFolder.at(tmp_path)
    ids, answers = finished_run.annotated_split(run, "pool", 60)
    sets = synthetic_candidates(answers, len(finished_run.NAMES), 0.2, 0.1, generator(3))
    finished_run.candidates(run, ids, sets, finished_run.NAMES)
    finished_run.annotated_split(run, "test", 20)
    (folder,) = run.read_used("pool")
    folder.write(TEXT, TextTable(TEXTS, torch.zeros(0, 8), SCALE, 0.0).to_bytes())
    return run


def by_hand(run: RunFolder, numbers: Tensor, prompt: int) -> Tensor:
    (folder,) = run.read_used("pool")
    table = finished_run.parquet(folder)
    stored = dict(zip(row_numbers(table["image_id"].to_pylist()).tolist(), table["embedding"].to_pylist(), strict=True))
    embedding = torch.tensor([stored[number] for number in numbers.tolist()], dtype=torch.float32)
    return (SCALE * embedding @ TEXTS[prompt].T).softmax(1)


@pytest.mark.parametrize("number", [0, 1])
def test_labels_are_the_probabilities_of_that_prompt(number: int, run: RunFolder) -> None:
    config = configured(run, f" {PROMPTS[number]} ")
    rows, scored = load_data(config, run, Task.read(config, run), Mesh())
    assert rows.soft is not None
    dense = rows.soft.dense(torch.arange(len(rows)), 4, "cpu")
    torch.testing.assert_close(dense, by_hand(run, rows.numbers, number), atol=2e-3, rtol=1e-3)
    assert scored.held_out is not None
    assert soft_labels_in_words(config) == f"the probabilities of the prompt {config.method.distil.prompt!r}"


def test_manual_labels_stay_certain(run: RunFolder) -> None:
    config = configured(run, PROMPTS[1])
    rows, _ = load_data(config, run, Task.read(config, run), Mesh())
    single = rows.sizes == 1
    rows.trusted[single] = True
    soft = labels_of_prompt(run, PROMPTS[1], rows)
    own = rows.candidates(torch.arange(len(rows)), torch.device("cpu"))[single].float()
    assert 0 < len(own) < len(rows)
    torch.testing.assert_close(soft.dense(single.nonzero()[:, 0], 4, "cpu"), own)


def test_the_prompt_decides_what_is_learnt_and_is_in_the_fingerprint(run: RunFolder) -> None:
    one, other = (configured(run, prompt) for prompt in PROMPTS)
    assert Task.read(one, run).fingerprint != Task.read(other, run).fingerprint
    assert Task.read(other, run).fingerprint not in Task.read(one, run).older_fingerprints
    agreement = []
    for config in (one, other):
        place = RunFolder.at(f"{run.path}/{config.method.distil.prompt.split()[0]}")  # type: ignore[union-attr]
        place.link(**{name: run.resolve(name) for name in ("annotations", "candidates", "rows", "labels")})
        config = config.model_copy(update={"output": place.path})
        refuse_lacking(config, place)
        *_, last = train(config, Mesh(), distil)
        agreement.append(last.metrics["loss/a"])
    assert agreement[0] != agreement[1]


def test_a_prompt_that_was_not_asked_and_annotators_without_prompts_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompt='my \{\}' is none of the prompts of .*\('a \{\}', 'the \{\}'\)"):
        refuse_lacking(configured(run, "my {}"), run)
    method = toy.method(kind="distil", distil={"prompt": "a {}"})
    bare = toy.prepare_run(tmp_path / "bare", toy.toy(count=20), method=method)
    with pytest.raises(UserError, match="holds no embeddings"):
        refuse_lacking(bare, RunFolder.at(tmp_path / "bare"))
    many = [f"{number} {{}}" for number in range(27)]
    with pytest.raises(UserError, match=r"of this run \(.*'4 \{\}' and 22 more\); name one of these"):
        refuse_unasked("no {}", many, "this run")
    refuse_unasked("4 {}", many, "this run")
    refuse_unasked(None, [], "this run")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"method": {"labels": "single"}}, "labels=single: that learns one class"),
        ({"candidates": {"align": "uniform"}}, "align=uniform: one prompt's probabilities are learnt as they are"),
        ({"annotator": {"kind": "votes", "votes": "v.csv"}}, "kind=votes: nothing tells its prompts' probabilities"),
        ({"method": {"kind": "coreg"}}, "is a setting of method.kind=distil"),
    ],
)
def test_what_contradicts_it_is_refused(more: dict[str, Any], reason: str) -> None:
    method = {"kind": "distil", "distil": {"prompt": "a {}"}, **more.get("method", {})}
    with pytest.raises(ValidationError, match=reason):
        Config.model_validate({**more, "method": method})
