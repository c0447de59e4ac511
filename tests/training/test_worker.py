"""A training run from a run folder, in one process and without Ray."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from coreg_ray.config import ClusterConfig, Config, MethodConfig
from coreg_ray.config.tree import as_older_versions, digest
from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.fit import NonFiniteLossError
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import build_student
from coreg_ray.training.state import State
from coreg_ray.training.worker import Task, load_data, refuse_other_run, soft_labels_in_words, train

DATA: dict[str, Any] = {"count": 80}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    settings = toy.method(epochs=4, warmup_epochs=1)
    return toy.prepare_run(tmp_path / "run", toy.toy(**DATA), method=settings)


def csv_of(config: Config) -> list[list[str]]:
    """`history.csv` without the times."""
    lines = [line.split(",") for line in Path(config.output, "history.csv").read_text().splitlines()]
    kept = [column for column, name in enumerate(lines[0]) if not name.startswith("time/")]
    return [[line[column] for column in kept] for line in lines]


def test_a_run_broken_off_ends_like_one_that_was_not(config: Config, tmp_path: Path) -> None:
    for epoch in train(config, Mesh(), coreg):
        if epoch.number == 1:
            break
    assert len(csv_of(config)) == 1 + 2
    assert [epoch.number for epoch in train(config, Mesh(), coreg)] == [2, 3]
    assert list(train(config, Mesh(), coreg)) == []  # a finished run has nothing left to do
    undisturbed = toy.prepare_run(tmp_path / "other", toy.toy(**DATA), method=config.method)
    assert [epoch.number for epoch in train(undisturbed, Mesh(), coreg)] == [0, 1, 2, 3]
    assert csv_of(config) == csv_of(undisturbed)
    columns = csv_of(config)[0]
    assert columns[:11] == [
        "epoch", "phase", "loss/a", "loss/b", "clean/a", "clean/b", "agreement", "test/accuracy", "test/accuracy_a",
        "test/accuracy_b", "criterion/label_free",
    ]  # fmt: skip
    assert not {"world_size", "start_epoch"} & set(columns)
    assert all(epoch == str(number) for number, (epoch, *_) in enumerate(csv_of(config)[1:]))


def test_a_checkpoint_cut_short_costs_one_epoch(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    for epoch in train(config, Mesh(), coreg):
        if epoch.number == 2:
            break
    file = Path(config.output, "checkpoints/epoch-000002/network_b.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert [epoch.number for epoch in train(config, Mesh(), coreg)] == [2, 3]
    assert "epoch-000002 is not whole (network_b.safetensors has 1000 of" in caplog.text


def test_checkpoints_are_written_every_few_epochs_and_at_the_end(config: Config) -> None:
    changed = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 3, "keep": 1})})
    list(train(changed, Mesh(), coreg))
    kept = {path.name for path in Path(config.output, "checkpoints").iterdir()}
    assert "epoch-000003" in kept
    assert kept <= {"epoch-000002", "epoch-000003"}


def test_another_fingerprint_is_refused(config: Config) -> None:
    next(iter(train(config, Mesh(), coreg)))
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match=r"holds checkpoints of another run .* --start_from"):
        list(train(other, Mesh(), coreg))
    moved = config.model_copy(update={"cluster": ClusterConfig(max_failures=7)})
    assert next(iter(train(moved, Mesh(), coreg))).number == 1  # where it runs decides nothing


def test_annotating_anew_makes_another_run(config: Config) -> None:
    before = Task.read(config, RunFolder.at(config.output))
    manifest = Path(config.output, "candidates/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "other prompts"}))
    assert Task.read(config, RunFolder.at(config.output)).fingerprint != before.fingerprint


def test_sets_that_are_the_same_by_another_name_are_trained_on(config: Config) -> None:
    run = RunFolder.at(config.output)
    stored, begun = run.read_candidate_manifest(), Task.read(config, run).fingerprint
    assert stored is not None

    def now(**changes: Any) -> Task:
        run.candidates.write_json("manifest.json", replace(stored, fingerprint="new formula", **changes).as_json())
        return Task.read(config, run)

    for sets, known_as in (("S", {"T": ["toy"]}), (None, None), ("S", None)):
        with pytest.raises(UserError, match=r"candidate sets \(manual labels, votes, class names\) .* --start_from"):
            refuse_other_run(run, now(sets=sets, known_as=known_as), begun)
    refuse_other_run(run, now(sets="S", known_as={"S": ["older still", "toy"]}), begun)
    weak = config.model_copy(update={"method": config.method.model_copy(update={"weak_views": 2})})
    older = digest([as_older_versions(weak.decisive(start=False))[-1], "toy", stored.class_names, ""])
    assert Task.read(weak, run).is_of(older)  # settings and sets of an earlier version, together


def test_starting_from_another_run(config: Config, tmp_path: Path) -> None:
    list(train(config, Mesh(), coreg))
    last = str(Path(config.output, "checkpoints/epoch-000003"))
    settings = {"method": toy.method(epochs=1, warmup_epochs=1, learning_rate=1e-9), "seed": 5, "start_from": last}
    second = toy.prepare_run(tmp_path / "second", toy.toy(**DATA), **settings)
    (epoch,) = train(second, Mesh(), coreg)
    assert epoch.number == 0
    of_run = toy.prepare_run(tmp_path / "of run", toy.toy(**DATA), **(settings | {"start_from": config.output}))
    (same,) = train(of_run, Mesh(), coreg)  # a run folder stands for its newest checkpoint
    assert same.metrics["loss/a"] == epoch.metrics["loss/a"]
    start = toy.prepare_run(tmp_path / "third", toy.toy(**DATA), **(settings | {"start_from": None}))
    (fresh,) = train(start, Mesh(), coreg)
    assert epoch.metrics["loss/a"] != fresh.metrics["loss/a"]
    wrong = second.model_copy(update={"output": config.output, "start_from": str(tmp_path)})
    Path(config.output, "checkpoints").rename(tmp_path / "moved away")
    with pytest.raises(UserError, match=r"no whole checkpoint .*give a folder like"):
        list(train(wrong, Mesh(), coreg))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coreg_ray.training import steps

    healthy = steps.losses.partial_cross_entropy
    spoiled = toy.method(epochs=3, warmup_epochs=3)
    config = config.model_copy(update={"method": spoiled})
    epochs = train(config, Mesh(), coreg)
    assert next(epochs).number == 0
    monkeypatch.setattr(steps.losses, "partial_cross_entropy", lambda *a, **k: healthy(*a, **k) * torch.inf)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 0, network a: the partial loss .*learning_rate"):
        next(epochs)
    monkeypatch.undo()
    assert [path.name for path in Path(config.output, "checkpoints").iterdir()] == ["epoch-000000"]
    assert [epoch.number for epoch in train(config, Mesh(), coreg)] == [1, 2]


@pytest.mark.parametrize("part", ["weights", "momenta", "batch-norm statistics"])
def test_what_the_last_step_spoiled_is_never_saved(config: Config, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The loss of that step was finite; the next one, which would not be, is of the next epoch."""
    from coreg_ray.training.optimizer import SGD

    config = config.model_copy(update={"method": toy.method(epochs=3, warmup_epochs=3)})
    steps, last, step = [0], [0], SGD.step

    def spoiling(optimizer: SGD) -> None:
        step(optimizer)
        steps[0] += 1
        if steps[0] == last[0]:
            tensors = optimizer._parameters if part == "weights" else optimizer.momenta.values()
            next(iter(tensors)).data.fill_(torch.inf)

    monkeypatch.setattr(SGD, "step", spoiling)
    epochs = train(config, Mesh(), coreg)
    next(epochs)
    last[0] = 2 * steps[0]
    if part == "batch-norm statistics":
        last[0] = 0
        monkeypatch.setattr("coreg_ray.training.fit.exchange", _spoil_statistics)
    with pytest.raises(NonFiniteLossError, match=rf"epoch 1, after its last step, network [ab]: its {part} are not"):
        next(epochs)
    monkeypatch.undo()
    assert [path.name for path in Path(config.output, "checkpoints").iterdir()] == ["epoch-000000"]
    assert len(csv_of(config)) == 1 + 1
    assert [epoch.number for epoch in train(config, Mesh(), coreg)] == [1, 2]


def _spoil_statistics(state: State, *_: Any) -> None:
    for buffer in state.learners[1].student.buffers():
        if buffer.is_floating_point() and buffer.dim() == 1:
            buffer.fill_(torch.nan)


def test_an_absurd_learning_rate_stops(tmp_path: Path) -> None:
    settings = toy.method(epochs=3, warmup_epochs=3, learning_rate=1e30)
    config = toy.prepare_run(tmp_path / "run", toy.toy(**DATA), method=settings)
    with pytest.raises(NonFiniteLossError, match=r"epoch \d, step \d, network [ab]: the (partial|entropy) loss"):
        list(train(config, Mesh(), coreg))


def test_a_folder_without_candidates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no candidates/; annotate first"):
        list(train(toy.run_config(tmp_path), Mesh(), coreg))


def test_another_resolution_than_the_rows_is_refused(config: Config) -> None:
    student = toy.STUDENT.model_copy(update={"resolution": 16})
    with pytest.raises(UserError, match="does not hold 16 px images; remove it"):
        list(train(config.model_copy(update={"student": student}), Mesh(), coreg))


def test_rows_held_out_are_not_trained_on(config: Config) -> None:
    output = RunFolder.at(config.output)
    rows, scored = load_data(config, output, Task.read(config, output), Mesh())
    assert scored.held_out is not None
    assert scored.held_out.labels is None
    assert not set(rows.numbers.tolist()) & set(scored.held_out.numbers.tolist())
    assert len(rows) + len(scored.held_out) == DATA["count"]
    assert scored.test is not None
    assert scored.test.labels is not None


def test_rows_beyond_the_memory_share_are_mapped(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    small = config.model_copy(update={"cluster": ClusterConfig(memory_share=1e-9)})
    with caplog.at_level(logging.INFO):
        list(train(config.model_copy(update={"method": toy.method(epochs=1, warmup_epochs=1)}), Mesh(), coreg))
        in_memory = csv_of(config)
        Path(config.output, "checkpoints").rename(Path(config.output, "before"))
        list(train(small.model_copy(update={"method": toy.method(epochs=1, warmup_epochs=1)}), Mesh(), coreg))
    assert "in memory" in caplog.text
    assert "memory-mapped at" in caplog.text
    assert csv_of(config) == in_memory


def test_a_run_is_the_same_wherever_its_files_are_seen(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver knows them relative to its working directory, of which workers have a copy elsewhere."""
    marks = []
    for folder, content in (("one", "[1, 2, 3, 4]"), ("other", "[1, 2, 3, 4]"), ("changed", "[1, 2, 3, 5]")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prior.json").write_text(content)
        monkeypatch.chdir(tmp_path / folder)
        beside = config.model_copy(update={"start_from": folder})
        marks.append(task_with_prior(beside, Path("prior.json")).fingerprint)
        assert task_with_prior(config, tmp_path / folder / "prior.json").fingerprint == marks[-1]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize(("prior", "expected"), [("uniform", [0.25] * 4), ("annotator", [0.1, 0.2, 0.3, 0.4])])
def test_priors(config: Config, prior: str, expected: list[float]) -> None:
    method = MethodConfig(**(config.method.model_dump() | {"prior": prior}))
    task = Task.read(config.model_copy(update={"method": method}), RunFolder.at(config.output))
    assert (task.prior is None) == (prior == "uniform")
    if task.prior is not None:
        assert task.prior.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1, 2, 3], [1, 1, -1, 2], [0, 0, 0, 0], [1, 1, float("nan"), 2]])
def test_a_prior_of_other_classes_is_refused(config: Config, tmp_path: Path, values: list[float]) -> None:
    (tmp_path / "prior.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="needs one for each of the 4 classes, none negative"):
        task_with_prior(config, tmp_path / "prior.json")


def test_a_prior_in_a_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "prior.json").write_text("[1, 2, 3, 4]")
    prior = task_with_prior(config, tmp_path / "prior.json").prior
    assert prior is not None
    assert prior.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [None, "{", '["many", "few"]'])
def test_a_prior_that_cannot_be_read_is_refused(config: Config, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "prior.json").write_text(content)
    with pytest.raises(UserError, match=r"prior.json is no JSON list of numbers .*give uniform, annotator"):
        task_with_prior(config, tmp_path / "prior.json")


def task_with_prior(config: Config, file: Path) -> Task:
    method = config.method.model_copy(update={"prior": str(file)})
    return Task.read(config.model_copy(update={"method": method}), RunFolder.at(config.output))


def test_a_row_alone_in_a_batch_trains() -> None:
    """At 8 px the last stage has one pixel: batch norm would refuse a single row."""
    student = build_student(toy.STUDENT.model_copy(update={"resolution": 8}), 4).train()
    logits, features = student(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    (logits.sum() + features.sum()).backward()
    assert logits.shape == (1, 4)
    assert features.shape == (1, toy.STUDENT.projection)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"candidates": {"mode": "label_model"}}, "posterior"),
        ({"annotator": {"model": "embedded"}}, "mean of the annotators' probabilities"),
        ({"annotator": {"kind": "votes", "votes": "v.csv"}}, "shares of the votes"),
        ({"annotator": {"kind": "votes", "votes": "v.csv", "scores": "logits"}}, "probabilities"),
    ],
)
def test_what_soft_labels_are_is_said(given: dict[str, Any], words: str) -> None:
    assert words in soft_labels_in_words(Config.model_validate({"source": {"kind": "digits"}, **given}))
