"""A real command that is told to end while it works, and goes on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_sigterm_ends_a_run_in_words_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, str(JOBS / "pipeline.py"), "--preset", "smoke", "--output", str(run),
        "--student.resolution", "8", "--student.width", "4", "--export.onnx", "false", "--report.pictures", "0",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 300
        while not (run / "history.csv").exists():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (run / ".lock").exists()
        job.send_signal(signal.SIGTERM)
        _, shown = job.communicate(timeout=180)
    assert job.returncode == 143
    assert "SIGTERM" not in shown
    assert "Traceback" not in shown
    assert shown.endswith("\nstopped; the same command continues this run\n")
    assert not (run / ".lock").exists()
    assert not list(run.rglob("*.partial"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert (run / "model/model.json").exists()
