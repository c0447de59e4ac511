"""What a checkpoint says of every row's candidate set: that which training itself went by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from finished_run import POOL, finished_run
from safetensors.torch import load, save
from toy import method

from coreg_ray.ids import held_out, row_numbers
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.manifest import MANIFEST, rows_file
from coreg_ray.training.soundness import Soundness


def test_it_is_what_the_last_epoch_went_by(tmp_path: Path) -> None:
    run = finished_run(RunFolder.at(tmp_path))
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    sound = Soundness.of(newest)
    numbers = row_numbers([f"pool/{number:03d}.png" for number in range(POOL)])
    outside = held_out(numbers, 0.1)
    assert np.array_equal(sound.numbers, np.sort(numbers[~outside]))
    last = run.read_history()[-1]
    shares = (sound.clean > 0.5).mean(axis=1)
    np.testing.assert_allclose(shares, [last["clean/a"], last["clean/b"]], atol=1e-9)
    asked = sound.rows(numbers)
    assert asked[:, torch.from_numpy(outside)].isnan().all()
    place = int(np.flatnonzero(~outside)[3])
    at = int(np.flatnonzero(sound.numbers == numbers[place])[0])
    assert asked[:, place].tolist() == sound.clean[:, at].tolist()
    assert sound.doubt == 1 - float(sound.clean.mean(dtype=np.float64))
    _forget_losses(newest)
    nothing = Soundness.of(newest)
    assert nothing.doubt is None
    assert nothing.rows(numbers).isnan().all()


def test_a_kind_that_assesses_nothing_is_asked_by_the_losses_that_it_keeps(tmp_path: Path) -> None:
    settings = method(epochs=3, kind="pico", pico={"importance": "onehot"}).model_dump()
    run = finished_run(RunFolder.at(tmp_path), method=settings)
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    sound = Soundness.of(newest)
    assert sound.clean.shape == (2, len(sound.numbers))
    assert ((sound.clean >= 0) & (sound.clean <= 1)).all()
    assert np.ptp(sound.clean, axis=1).min() > 0.5  # some rows are told from others
    kept = load(newest.read(rows_file("a", 0)))
    losses = kept["losses"].float().numpy()[np.argsort(kept["numbers"].numpy())]
    surest, doubtful = losses.argsort()[[0, -1]]
    assert sound.clean[0, surest] > sound.clean[0, doubtful]


def _forget_losses(newest: Folder) -> None:
    """As the rows of a method that assesses none."""
    content = newest.read_json(MANIFEST)
    for network in "ab":
        name = rows_file(network, 0)
        kept = {key: value for key, value in load(newest.read(name)).items() if key != "losses"}
        newest.write(name, save(kept))
        content["files"][name] = {"size": newest.size(name), "digest": None}
    newest.write_json(MANIFEST, content)
