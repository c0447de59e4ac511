"""Soundness by confident learning: halves in the warm-up, what is found and stays, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from pydantic import ValidationError

from coreg_ray.config.method import MethodSettings
from coreg_ray.methods import coreg
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.soundness import Soundness

SETTINGS: dict[str, Any] = {"clean": "confident", "epochs": 4, "warmup_epochs": 2}


def test_each_network_warms_up_on_its_half_and_on_what_is_trusted() -> None:
    data = toy.toy(count=80)
    data.rows.trusted[:10] = True
    state, rows = toy.start(data, Mesh(), **SETTINGS)
    turns = coreg.turns(state, rows, Mesh(), 0)
    seen = [torch.cat(turns.of[network].plan.labelled).sort().values for network in (0, 1)]
    halves = [((rows.numbers % 2 == network) | rows.trusted).nonzero()[:, 0] for network in (0, 1)]
    assert [one.tolist() for one in seen] == [half.tolist() for half in halves]
    assert 0 < len(seen[0]) < len(rows)


def test_what_is_found_after_the_warm_up_stays_and_is_what_a_checkpoint_knows(tmp_path: Path) -> None:
    data = frozen_toy.frozen(toy.toy(count=240, partial=0.0, noise=0.3))
    state, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, **SETTINGS)
    shares = []
    for epoch in fit(state, rows, data.scored, Mesh(), coreg):
        shares.append((epoch.metrics.get("clean/a"), epoch.metrics.get("clean/b")))
    assert shares[:2] == [(None, None)] * 2
    sound = state.learners[0].memory.sound.float()
    assert torch.equal(sound, state.learners[1].memory.sound.float())
    assert shares[2] == shares[3] == (pytest.approx(float(sound.mean())),) * 2
    assert 0.5 < float(sound.mean()) < 0.95  # 0.3 of the labels are wrong

    known = Soundness.of(checkpoint.save(state, Folder.at(tmp_path), "mark", Mesh()))
    assert known.clean[0].tolist() == sound.tolist()
    assert known.doubt == pytest.approx(1 - float(sound.mean()))


def test_who_cannot_use_it_is_told() -> None:
    with pytest.raises(ValidationError, match=r"clean=confident with method.kind=elr.*use clean=mixture"):
        MethodSettings.model_validate({"kind": "elr", "clean": "confident"})
    with pytest.raises(ValidationError, match=r"clean=confident with warmup_epochs=0.*raise warmup_epochs"):
        MethodSettings.model_validate({"clean": "confident", "warmup_epochs": 0})
