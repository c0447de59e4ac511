"""`pipeline --estimate true`: a sample is annotated, a few steps are taken, and the run then goes on as if begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreg_ray.cluster.forecast import forecast
from coreg_ray.commands.base import Command, load
from coreg_ray.commands.pipeline import main
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder


@pytest.mark.cluster
def test_every_stage_is_measured_and_nothing_is_trained(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "photos-smoke", "--output", str(tmp_path / "run"), "--method.epochs", "40"]
    main([*words, "--estimate", "true"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1,437 images, 360 to test, 40 epochs; measured")
    assert [line.split()[0] for line in lines[1:]] == ["annotation", "features", "training", "results", "start,", "in"]
    run = RunFolder.at(tmp_path / "run")
    assert len(run.annotations("pool").files(".parquet")) == 1
    assert run.candidates.entries() == run.checkpoints.entries() == []
    begun = run.read_config()
    assert begun is not None
    config = load(words, Command, continues=True)
    assert begun.decisive() == config.decisive()

    again = forecast(config, run)
    assert (again.images, again.tested, again.epochs) == (1437, 360, 40)
    *works, around = again.stages
    assert min(part for stage in works for part in (stage.seconds, stage.memory, stage.disk)) > 0
    assert around.seconds > 0
    with pytest.raises(UserError, match="holds a run with other settings"):
        forecast(load([*words, "--seed", "3"], Command), run)
