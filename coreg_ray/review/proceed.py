"""Training goes on with the labels of a review: the command that does it, and that command under way."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.run.folder import CONTINUED_LOG, REVIEW, RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import extended, without_credentials

EPOCHS = 6  # what docs/results.md has measured
_START = "from coreg_ray.cli import main; main()"
_SHOWN = 40  # lines of the log


class Continuation:
    """The training that goes on from a run with its reviewed labels, and its process where it was started here."""

    def __init__(self, folder: RunFolder, given: str, config: Config | None, program: str) -> None:
        """`given`: the run as the user named it. `program`: how `train` is called here, for people."""
        self._folder, self._given, self._config, self._program = folder, given, config, program
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self.output: str | None = None

    def words(self) -> list[str]:
        """What follows `train` on the command line."""
        self.output = self.output or free_output(self._given)
        rate = (self._config.method.learning_rate if self._config else None) or 0.01
        return [
            *("--annotations", extended(self._given, "/annotations")),
            *("--output", self.output),
            *("--start_from", self._given),
            *("--source.manual_labels", extended(self._given, f"/{REVIEW}")),
            *("--method.epochs", str(EPOCHS)),
            *("--method.warmup_epochs", "0"),
            *("--method.learning_rate", f"{rate / 2:g}"),
        ]

    def command(self) -> str:
        """The command as a shell takes it, a setting a line, without credentials."""
        words = [shlex.quote(word) for word in without_credentials(self.words())]
        pairs = [f"{name} {value}" for name, value in zip(words[::2], words[1::2], strict=True)]
        return " \\\n    ".join([self._program, *pairs])

    def start(self) -> None:
        """Run the command in a process of its own, which goes on when the review page ends.

        After one that has ended well, the next goes to an output of its own.

        Raises:
            UserError: it runs already.
        """
        ended = None if self._process is None else self._process.poll()
        if self._process is not None and ended is None:
            raise UserError(f"training runs already; its output is {self.output}")
        if ended == 0:
            self.output = None
        if self._log is None:
            self._log = self._log_file()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # the words are our own
                [sys.executable, "-c", _START, "train", *self.words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def state(self) -> dict[str, Any]:
        """Command, exit code (None while it runs), the log's place and last lines; `started` tells whether it was."""
        state: dict[str, Any] = {"command": self.command(), "started": self._process is not None}
        if self._process is not None and self._log is not None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
            state |= {"exit": self._process.poll(), "log": str(self._log), "lines": without_credentials(lines)}
        return state

    def _log_file(self) -> Path:
        if self._folder.local:
            return Path(self._folder.path) / CONTINUED_LOG
        return Path(tempfile.mkdtemp(prefix="coreg-ray-")) / CONTINUED_LOG


def free_output(given: str) -> str:
    """A folder beside a run that does not exist yet: `RUN-reviewed`, `RUN-reviewed-2`, ..."""
    number = 1
    while True:
        output = extended(given, "-reviewed" + (f"-{number}" if number > 1 else ""))
        if not Folder.at(output).exists():
            return output
        number += 1
