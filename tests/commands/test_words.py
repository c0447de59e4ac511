"""Commands that take folders of runs first: what they are given, and what they say of anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coreg_ray.commands import review, show
from coreg_ray.commands.words import port, read_words, truth
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder

FLAGS = {"browser": (truth, True, "open it"), "port": (port, 0, "port")}


def test_folders_come_first_and_flags_have_values() -> None:
    words = read_words(["runs/a", "--browser", "false", "--port=8001"], "What it does.", flags=FLAGS)
    assert (words.runs, words.browser, words.port) == (["runs/a"], False, 8001)
    words = read_words(["a", "b"], "What it does.", several=True)
    assert words.runs == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no folder is given; write .* RUN"),
        (["a", "b"], "2 folders are given; write .* RUN"),
        (["a", "--port", "65536"], "--port: '65536' is no port; give a whole number from 0 to 65535"),
        (["a", "--port", "http"], "--port: 'http' is no port"),
        (["a", "--browser", "no"], "--browser: 'no' is neither true nor false"),
        (["a", "--browser"], "--browser: expected one argument"),
        (["a", "--prot", "1"], "--prot is no setting of this command; there are: --browser, --port"),
    ],
)
def test_anything_else_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_words(arguments, "What it does.", flags=FLAGS)


@pytest.mark.parametrize("command", [review.main, show.main])
def test_a_run_that_is_not_there(command: Callable[[list[str]], None], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        command([str(tmp_path / "nowhere")])


def test_a_run_without_a_review_list(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "run")
    run.write("metrics.json", "{}")
    with pytest.raises(UserError, match=r"holds no review.csv; it is written at the end of a run"):
        review.main([run.path])
    for content in ("", "image_id,label\n", "image_id;label\na;\n"):
        run.write("review.csv", content)
        with pytest.raises(
            UserError, match=r"review.csv is (empty|no CSV in UTF-8 with the columns image_id and label)"
        ):
            review.main([run.path])
    run.write("review.csv", "image_id,label\na,\n")
    with pytest.raises(UserError, match="nobody knows the classes"):
        review.main([run.path])
