"""Checkpoints: the whole state, whole or not at all, and only for the run that they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file

from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint, manifest, remembered
from coreg_ray.training.fit import fit
from coreg_ray.training.manifest import Entry, no_entries, tensor_files
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import pack
from coreg_ray.training.state import State, build_state

# Contrast is on in the last two epochs; the queue is of a size that the steps do not fill evenly.
SETTINGS: dict[str, Any] = {"epochs": 5, "warmup_epochs": 1, "queue_size": 50, "learning_rate": 0.05}
DATA: dict[str, Any] = {"count": 100}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Folder]:
    """A finished run and its checkpoints, one of each epoch."""
    folder = Folder.at(tmp_path_factory.mktemp("run") / "checkpoints")
    data = toy.toy(**DATA)
    state, rows = toy.start(data, Mesh(), **SETTINGS)
    for _ in fit(state, rows, data.scored, Mesh(), coreg):
        checkpoint.save(state, folder, "mark", Mesh())
    return state, folder


@pytest.fixture
def copied(whole: tuple[State, Folder], tmp_path: Path) -> Path:
    """A copy of the checkpoints that a test may spoil."""
    return Path(shutil.copytree(whole[1].path, tmp_path / "checkpoints"))


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_resuming_equals_not_stopping(whole: tuple[State, Folder], epoch: int) -> None:
    finished, folder = whole
    data = toy.toy(**DATA)
    state, rows = toy.start(data, Mesh(), seed=0, **SETTINGS)
    checkpoint.resume(state, folder / f"epoch-{epoch:06d}", Mesh())
    assert state.epoch == epoch + 1
    list(fit(state, rows, data.scored, Mesh(), coreg))
    toy.same(state.history, finished.history)
    for one, other in zip(state.learners, finished.learners, strict=True):
        assert torch.equal(pack(one.student), pack(other.student))
        assert one.memory.keys is not None
        assert other.memory.keys is not None
        assert torch.equal(pack(one.memory.keys), pack(other.memory.keys))
        assert torch.equal(one.memory.prototypes, other.memory.prototypes)
        torch.testing.assert_close(one.memory.losses, other.memory.losses, atol=0, rtol=0, equal_nan=True)
        assert torch.equal(one.memory.choices, other.memory.choices)
        assert torch.equal(
            one.memory.queue.keys[one.memory.queue.valid], other.memory.queue.keys[other.memory.queue.valid]
        )


def test_a_checkpoint_holds_nothing_that_unpickling_is_needed_for(whole: tuple[State, Folder]) -> None:
    files = sorted(Path((whole[1] / "epoch-000004").path).iterdir())
    assert [file.name for file in files] == [
        "manifest.json", "network_a.safetensors", "network_b.safetensors", "rows_a_0.safetensors",
        "rows_b_0.safetensors", "state.json",
    ]  # fmt: skip
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert load_file(file)


def _truncate(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("rows_b_0.safetensors", "rows_b_0.safetensors has"),
        ("network_a.safetensors", "network_a.safetensors has"),
        ("state.json", "cannot be read"),
        ("manifest.json", "cannot be read"),
        (None, "it has no manifest"),
    ],
)
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(
    copied: Path, name: str | None, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = copied / "epoch-000004"
    if name is None:
        (newest / "manifest.json").unlink()
    else:
        _truncate(newest, name)
    with caplog.at_level(logging.WARNING):
        newest_whole = checkpoint.newest(Folder.at(copied))
    assert newest_whole is not None
    assert newest_whole.name == "epoch-000003"
    assert "epoch-000004 is not whole" in caplog.text
    assert fault in caplog.text
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.describe(Folder.at(newest))


def test_a_missing_file_is_noticed(copied: Path) -> None:
    (copied / "epoch-000004/rows_a_0.safetensors").unlink()
    newest_whole = checkpoint.newest(Folder.at(copied))
    assert newest_whole is not None
    assert newest_whole.name == "epoch-000003"


def _manifest(folder: Path, name: str = "epoch-000004") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name / "manifest.json").read_text())
    return content


def test_the_manifest_has_size_and_digest_of_every_file(copied: Path) -> None:
    files = {file.name: file.read_bytes() for file in (copied / "epoch-000004").iterdir()}
    del files["manifest.json"]
    expected = {
        name: {"size": len(content), "digest": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    assert _manifest(copied) == {"format": 2, "files": expected}


@pytest.mark.parametrize("lost", ["rows_b_0.safetensors", "network_a.safetensors", "state.json"])
@pytest.mark.parametrize("number", [1, 2])
def test_files_that_no_manifest_lists_are_missed(copied: Path, lost: str, number: int) -> None:
    """As when the process that wrote it did not see those of another."""
    newest = copied / "epoch-000004"
    if number == 1:
        _as_format_1(newest)
    content = _manifest(copied)
    del (content["files"] if number == 2 else content)[lost]
    (newest / "manifest.json").write_text(json.dumps(content))
    if lost != "state.json":
        (newest / lost).unlink()
    whole = checkpoint.newest(Folder.at(copied))
    assert whole is not None
    assert whole.name == "epoch-000003"


def _as_format_1(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": 1}))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(sizes))


def test_format_1_is_read(whole: tuple[State, Folder], copied: Path) -> None:
    for folder in copied.iterdir():
        _as_format_1(folder)
    newest = checkpoint.newest(Folder.at(copied), digests=True)
    assert newest is not None
    assert newest.name == "epoch-000004"
    state = _other()
    checkpoint.resume(state, newest, Mesh())
    assert state.epoch == 5
    assert torch.equal(pack(state.learners[0].student), pack(whole[0].learners[0].student))
    _truncate(copied / "epoch-000004", "network_b.safetensors")
    assert (checkpoint.newest(Folder.at(copied)) or newest).name == "epoch-000003"


def test_a_later_format_is_refused_not_passed_over(copied: Path) -> None:
    (copied / "epoch-000004/manifest.json").write_text(json.dumps(_manifest(copied) | {"format": 3}))
    with pytest.raises(UserError, match="format 3, this version reads up to 2; upgrade"):
        checkpoint.newest(Folder.at(copied))


def test_other_bytes_of_the_same_number_are_noticed(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = copied / "epoch-000004/rows_a_0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    folder = Folder.at(copied)
    with caplog.at_level(logging.WARNING):
        whole = checkpoint.newest(folder, digests=True)
    assert whole is not None
    assert whole.name == "epoch-000003"
    assert "rows_a_0.safetensors has other bytes than were written" in caplog.text
    with pytest.raises(UserError, match=r"rows_a_0.safetensors holds other bytes.*the one before it is taken"):
        checkpoint.resume(_other(), folder / "epoch-000004", Mesh())


class _OfTwo(Mesh):
    """Rank 0 of a world of two whose other process writes somewhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = (0,)

    def world_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        told = no_entries(1)
        names = tensor_files(1)
        for name in ("network_b.safetensors", "rows_b_0.safetensors"):
            told[names.index(name)] = Entry.of(b"written elsewhere").as_row()
        return tensor + told if tensor.shape == told.shape else tensor


def test_what_another_process_wrote_on_another_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_SEEN_WITHIN_S", 0.0)
    state = _other()
    del state.learners[1]
    with pytest.raises(UserError, match=r"lacks network_b.safetensors, rows_b_0.safetensors, .*all nodes share"):
        checkpoint.save(state, Folder.at(tmp_path), "mark", _OfTwo())
    assert checkpoint.newest(Folder.at(tmp_path)) is None


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.newest(Folder.at(tmp_path / "none")) is None


def _with_scores(folder: Path, label_free: list[float], test: list[float]) -> None:
    """Rewrite what the newest checkpoint remembers of each epoch's scores."""
    file = folder / "epoch-000004/state.json"
    stored = json.loads(file.read_text())
    for metrics, criterion, accuracy in zip(stored["history"], label_free, test, strict=True):
        metrics |= {"criterion/combined": criterion, "test/accuracy": accuracy}
    file.write_text(json.dumps(stored))
    manifest = json.loads((folder / "epoch-000004/manifest.json").read_text())
    manifest["files"]["state.json"] = asdict(Entry.of(file.read_bytes()))
    (folder / "epoch-000004/manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("keep", "label_free", "kept"),
    [(2, [0.1, 0.9, 0.2, 0.3, 0.4], [1, 3, 4]), (1, [0.5, 0.1, 0.1, 0.1, 0.6], [4]), (3, [0.9] * 5, [2, 3, 4])],
)
def test_the_last_ones_and_the_best_without_labels_are_kept(
    copied: Path, keep: int, label_free: list[float], kept: list[int]
) -> None:
    _with_scores(copied, label_free, test=[1.0, 0.0, 0.0, 0.0, 0.0])
    checkpoint.prune(Folder.at(copied), keep)
    assert sorted(folder.name for folder in copied.iterdir()) == [f"epoch-{epoch:06d}" for epoch in kept]


def test_pruning_counts_whole_checkpoints_only(copied: Path) -> None:
    """Two later ones cut short must neither stop the run nor count as the newest."""
    _truncate(copied / "epoch-000004", "state.json")
    _truncate(copied / "epoch-000003", "state.json")
    checkpoint.prune(Folder.at(copied), keep=1)
    newest_whole = checkpoint.newest(Folder.at(copied))
    assert newest_whole is not None
    assert newest_whole.name == "epoch-000002"


def _other(**changes: Any) -> State:
    data = toy.toy(**DATA)
    student = toy.STUDENT.model_copy(update=changes.pop("student", {}))
    class_names = changes.pop("class_names", toy.CLASSES)
    return build_state(toy.method(**SETTINGS), student, 0, class_names, data.rows, Mesh(), coreg.remember)


def test_other_classes_are_refused(whole: tuple[State, Folder]) -> None:
    other, newest = _other(class_names=["horizontal", "vertical", "cross", "dot"]), whole[1] / "epoch-000004"
    message = r"knows 4 classes \(horizontal, .*this run has 4 .*same names"
    with pytest.raises(UserError, match=message):
        checkpoint.resume(other, newest, Mesh())
    with pytest.raises(UserError, match=message):
        checkpoint.start_from(other, newest)


@pytest.mark.parametrize("changes", [{"width": 8}, {"resolution": 16}, {"projection": 16}])
def test_another_architecture_is_refused(whole: tuple[State, Folder], changes: dict[str, int]) -> None:
    other = _other(student=changes)
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=rf"'{name}': .*'{name}': {value}.*choose another checkpoint"):
        checkpoint.resume(other, whole[1] / "epoch-000004", Mesh())
    with pytest.raises(UserError, match="choose another checkpoint"):
        checkpoint.start_from(other, whole[1] / "epoch-000004")


def test_starting_from_takes_the_networks_and_nothing_else(whole: tuple[State, Folder]) -> None:
    finished, folder = whole
    state = _other()
    checkpoint.start_from(state, folder / "epoch-000004")
    assert state.epoch == 0
    assert state.history == []
    for learner, other in zip(state.learners, finished.learners, strict=True):
        assert torch.equal(pack(learner.student), pack(other.student))
        assert torch.equal(pack(learner.peer), pack(other.peer))
        assert learner.memory.keys is None
        assert learner.memory.mean is None
        assert not learner.memory.prototypes.any()
        assert not learner.memory.queue.valid.any()
        assert learner.memory.losses.isnan().all()
        assert not learner.optimizer.momenta


def test_what_belongs_to_a_row_is_found_by_its_number() -> None:
    parts = [
        {"numbers": torch.tensor([7, 3]), "losses": torch.tensor([[0.7, 0.3]]).half(), "choices": torch.tensor([1, 0])},
        {"numbers": torch.tensor([5]), "losses": torch.tensor([[0.5]]).half(), "choices": torch.tensor([2])},
    ]
    numbers = torch.tensor([3, 4, 5, 9])
    losses = remembered.of_rows(numbers, parts, "losses", torch.nan)
    expected = torch.tensor([[0.3, torch.nan, 0.5, torch.nan]]).half()
    torch.testing.assert_close(losses, expected, equal_nan=True, atol=0, rtol=0)
    assert remembered.of_rows(numbers, parts, "choices", -1).tolist() == [0, -1, 2, -1]


def test_a_checkpoint_of_another_kind_gives_its_networks_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = toy.toy(count=40)
    state, _ = toy.start(data, Mesh(), epochs=2, kind="dividemix")
    state.epoch = 1
    saved = checkpoint.save(state, Folder.at(str(tmp_path)), "toy", Mesh())
    other, _ = toy.start(data, Mesh(), seed=1, epochs=2)
    with pytest.raises(UserError, match=r"by method.kind=dividemix, this run is method.kind=coreg; .*start_from"):
        checkpoint.resume(other, saved, Mesh())
    with caplog.at_level(logging.INFO):
        checkpoint.start_from(other, saved)
    assert "trained by method.kind=dividemix; its networks are taken, and coreg trains on" in caplog.text
    assert torch.equal(pack(other.learners[0].student), pack(state.learners[0].student))
