"""One method in worlds of one, two and four processes: the same answers, whatever the rows are divided into."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import worlds
from torch import Tensor
from world import run_world

from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.manifest import tensor_files

# Rows that fall unequally on two replicas, and a queue that no number of steps fills evenly.
DATA: dict[str, Any] = {"count": 125}
SETTINGS: dict[str, Any] = {"epochs": 4, "warmup_epochs": 1, "queue_size": 50, "learning_rate": 0.05}
# Settings, data and seeds of trainings that are long enough to learn something.
TRAININGS = ({"epochs": 6, "warmup_epochs": 4, "learning_rate": 0.05}, {"count": 160, "noise": 0.05}, (0, 1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What both processes of a world of two answer; it also writes the checkpoint that the others resume."""
    return run_world(
        2,
        "worlds.several",
        {
            "full_history": (SETTINGS, DATA),
            "written": (SETTINGS, DATA, str(folder / "checkpoints"), 3),
            "resumed": (SETTINGS, DATA, str(folder / "checkpoints")),
            "chosen": (SETTINGS, DATA, str(folder)),
            "full": (SETTINGS, DATA, str(folder / "full")),
            "poisoned": (),
            "accuracies": TRAININGS,
        },
    )


@pytest.fixture(scope="module")
def four(two: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    return run_world(4, "worlds.fours", SETTINGS, DATA, str(folder), TRAININGS)


def test_one_process_and_two_give_the_same_history(two: list[dict[str, Any]]) -> None:
    alone = toy.history(toy.toy(**DATA), toy.Mesh(), **SETTINGS)
    assert alone[-1]["contrast/a"] > 0
    assert alone[-1]["prototype/b"] > 0
    for answer in two:
        toy.same(alone, answer["full_history"], tolerance=1e-4)


def test_members_of_all_teams_report_the_same(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    for answers, kind in ((two, "full_history"), (four, "all"), (four, "one replica")):
        for answer in answers[1:]:
            first, other = answers[0][kind], answer[kind]
            toy.same(*((h["metrics"] if isinstance(h, dict) else h) for h in (first, other)))


def test_four_judge_rows_as_two_do(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    for network, name in enumerate("ab"):
        pair = two[network]["resumed"]
        team = [answer["resumed"] for answer in four[2 * network : 2 * network + 2]]
        sizes = [len(part["numbers"]) for part in team]
        assert sizes[0] != sizes[1]
        order = torch.cat([part["numbers"] for part in team]).argsort()
        assert torch.equal(torch.cat([part["numbers"] for part in team])[order], pair["numbers"])
        clean = torch.cat([part[f"clean {name}"] for part in team])[order]
        torch.testing.assert_close(clean, pair[f"clean {name}"], atol=2e-3, rtol=0)
        labels = [values for part in team for values in part[f"labels {name}"]]
        for position, values in zip(order.tolist(), pair[f"labels {name}"], strict=True):
            torch.testing.assert_close(labels[position], values, atol=2e-3, rtol=0)
        for part in team:
            torch.testing.assert_close(part[f"mean {name}"], pair[f"mean {name}"], atol=1e-6, rtol=0)


def test_four_take_as_many_steps_as_two_and_score_alike(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    for network, name in enumerate("ab"):
        pair = two[network]["resumed"]
        for part in (answer["resumed"] for answer in four[2 * network : 2 * network + 2]):
            assert part[f"steps {name}"] == pair[f"steps {name}"]
            for counts, expected in zip(part[f"team rows {name}"], pair[f"team rows {name}"], strict=True):
                assert sum(counts) == pytest.approx(sum(expected), abs=2 * len(expected))
                assert max(abs(a - b) for a, b in zip(counts, expected, strict=True)) <= 2
            assert part["scores"] == pytest.approx(pair["scores"], abs=1e-9)


def test_two_and_four_end_alike(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    """Batches and batch-norm statistics differ, so single runs do too; over seeds they overlap."""
    pair, team = two[0]["accuracies"], four[0]["accuracies"]
    assert max(pair) >= min(team), f"two {pair}, four {team}"
    assert max(team) >= min(pair), f"two {pair}, four {team}"
    assert sum(pair + team) / 6 > 0.4, f"little better than chance: two {pair}, four {team}"


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_checkpoint_of_two_is_resumed_at_one_and_four(
    two: list[dict[str, Any]], four: list[dict[str, Any]], folder: Path, name: str
) -> None:
    alone = worlds.resumed(toy.Mesh(), SETTINGS, DATA, str(folder / "checkpoints"))
    network = "ab".index(name)
    pair = two[network]["resumed"]
    team = [answer["resumed"] for answer in four[2 * network : 2 * network + 2]]
    assert not pair[f"losses {name}"][:, -1].isnan().any()
    assert _equal(alone[f"losses {name}"], pair[f"losses {name}"])
    assert torch.equal(alone[f"queue {name}"], pair[f"queue {name}"])
    assert torch.equal(alone[f"clean {name}"], pair[f"clean {name}"])
    assert alone["scores"] == pair["scores"]
    order = torch.cat([part["numbers"] for part in team]).argsort()
    assert _equal(torch.cat([part[f"losses {name}"] for part in team])[order], pair[f"losses {name}"])
    redistributed = torch.cat([part[f"queue {name}"] for part in team])
    assert len(redistributed) == len(pair[f"queue {name}"]) == 50
    assert _equal(redistributed.sort(0).values, pair[f"queue {name}"].sort(0).values)


def test_a_checkpoint_of_four_is_resumed_at_one(four: list[dict[str, Any]], folder: Path) -> None:
    alone = worlds.resumed(toy.Mesh(), SETTINGS, DATA, str(folder / "of four"))
    for network, name in enumerate("ab"):
        team = [answer["again"] for answer in four[2 * network : 2 * network + 2]]
        order = torch.cat([part["numbers"] for part in team]).argsort()
        assert _equal(torch.cat([part[f"losses {name}"] for part in team])[order], alone[f"losses {name}"])
        assert len(alone[f"queue {name}"]) == sum(len(part[f"queue {name}"]) for part in team)
        torch.testing.assert_close(team[0][f"mean {name}"], alone[f"mean {name}"], atol=1e-6, rtol=0)
        assert team[0]["scores"] == pytest.approx(alone["scores"], abs=1e-9)


@pytest.mark.parametrize("kind", ["all", "none", "one replica", "small replica"])
def test_unequal_and_one_sided_parts_train(four: list[dict[str, Any]], kind: str) -> None:
    answers = [answer[kind] for answer in four]
    assert [answer["rows"] for answer in answers] == [55, 5, 55, 5]
    for answer in answers:
        assert len(answer["metrics"]) == 2
        for metrics in answer["metrics"]:
            assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
        (weights,) = answer["weights"].values()
        assert weights.isfinite().all()
    for team in (answers[:2], answers[2:]):
        (first,), (second,) = (answer["weights"].values() for answer in team)
        assert torch.equal(first, second)
    warnings = [message for answer in answers for message in answer["warnings"]]
    if kind == "none":
        assert all("no clean row" in message for message in warnings)
        assert all(metrics["partial/a"] > 0 for metrics in answers[0]["metrics"])
    else:
        assert warnings == []
        assert all(metrics["label/a"] > 0 for metrics in answers[0]["metrics"])
        assert (answers[0]["metrics"][0]["consistency/a"] > 0) == (kind != "all")


def test_a_world_of_one_without_a_clean_row_says_so() -> None:
    answer = worlds.forced(toy.Mesh(), "none")
    assert [message.split(":")[0] for message in answer["warnings"]] == [
        f"epoch {epoch}, network {name}" for epoch in (1, 2) for name in "ab"
    ]


def test_a_team_adds_up_the_gradients_of_its_batch(four: list[dict[str, Any]]) -> None:
    for answer in four:
        for reduced, whole in zip(*answer["gradients"], strict=True):
            if whole is None:
                assert reduced is None
            else:
                torch.testing.assert_close(reduced, whole, atol=1e-6, rtol=1e-5)
    assert sum(whole is None for whole in four[0]["gradients"][1]) == 4


def test_every_process_stops_at_a_loss_that_is_no_number(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    messages = [answer["poisoned"] for answer in (*two, *four)]
    assert messages[0].startswith("epoch 0, step 0, network b: the partial loss is not finite")
    assert len(set(messages)) == 1


def test_all_are_refused_when_one_is(four: list[dict[str, Any]]) -> None:
    messages = {answer["refused"] for answer in four}
    assert len(messages) == 1
    assert "replica 1 of 2 has no rows; use fewer workers (said by worker 1 of 4" in messages.pop()


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


def test_the_first_process_chooses_the_checkpoint_for_all(two: list[dict[str, Any]]) -> None:
    for answer in two:
        epoch, refusal = answer["chosen"]
        assert epoch == 3
        assert "checkpoints of another run (fingerprint toy, this is other)" in refusal


def test_a_full_disk_of_one_process_stops_all(two: list[dict[str, Any]], folder: Path) -> None:
    for answer in two:
        assert "rows_b_0.safetensors cannot be written (said by worker 1 of 2" in answer["full"] or (
            "network_b.safetensors cannot be written (said by worker 1 of 2" in answer["full"]
        )
    assert checkpoint.newest(Folder.at(folder / "full")) is None


@pytest.mark.parametrize("number", [2, 4])
def test_a_checkpoint_lists_the_files_of_all_processes(
    two: list[dict[str, Any]], four: list[dict[str, Any]], folder: Path, number: int
) -> None:
    newest = checkpoint.newest(Folder.at(folder / ("checkpoints" if number == 2 else "of four")), digests=True)
    assert newest is not None
    listed = newest.read_json("manifest.json")["files"]
    assert sorted(listed) == sorted([*tensor_files(number // 2), "state.json"])
    assert sorted([*listed, "manifest.json"]) == newest.entries()
    assert all(len(entry["digest"]) == 64 for entry in listed.values())
