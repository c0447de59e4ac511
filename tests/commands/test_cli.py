"""`coreg-ray` and the launchers: what commands there are, how each is called, and what that loads."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from coreg_ray import __version__, cli

ROOT = Path(__file__).parents[2]
HEAVY = ("ray", "torch", "open_clip", "pyarrow")
Call = Callable[..., None]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Call:
    """`coreg-ray` with these words."""

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["coreg-ray", *words])
        cli.main()

    return call


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Call:
    """`python jobs/NAME.py` with these words."""

    def launch(name: str, *words: str) -> None:
        path = str(ROOT / "jobs" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *words])
        runpy.run_path(path, run_name="__main__")

    return launch


def command(name: str) -> ModuleType:
    return import_module(f"coreg_ray.commands.{name}")


def test_every_command_has_a_module_a_line_and_a_launcher() -> None:
    modules = {path.stem for path in (ROOT / "coreg_ray/commands").glob("*.py")} - {
        "__init__",
        "api",
        "base",
        "configured",
        "presets",
        "results",
        "words",
    }
    launchers = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert modules == launchers == set(cli.COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_lists_all_commands(words: list[str], called: Call, capsys: pytest.CaptureFixture[str]) -> None:
    called(*words)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for name, meaning in cli.COMMANDS.items():
        assert [name, meaning] in lines


def test_the_version_is_the_packages(called: Call, capsys: pytest.CaptureFixture[str]) -> None:
    called("--version")
    assert capsys.readouterr().out == f"coreg-ray {__version__}\n"


@pytest.mark.parametrize("word", ["trian", "--trian", "Train"])
def test_an_unknown_command_names_the_valid_ones(word: str, called: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        called(word, "--output", "x")
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {word!r} is no command; use one of {', '.join(cli.COMMANDS)}\n"
    assert not shown.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_both_ways_to_a_command_show_its_own_help(
    name: str, called: Call, launched: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    for way, program in ((called, f"coreg-ray {name}"), (launched, f"{name}.py")):
        with pytest.raises(SystemExit) as end:
            way(name, "--help")
        assert end.value.code == 0
        first, *_ = (command(name).__doc__ or "").splitlines()
        assert first
        shown = capsys.readouterr().out
        assert first in shown
        of_runs = name in ("compare", "labels", "push", "review", "show")
        assert shown.startswith(f"usage: {program} RUN" if of_runs else f"usage: {program} [")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_both_ways_hand_over_the_words_and_answer_ctrl_c_alike(
    name: str, called: Call, launched: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[list[str]] = []

    def interrupted(arguments: list[str]) -> None:
        handed.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(command(name), "main", interrupted)
    answer = getattr(command(name), "STOPPED", "stopped; the same command continues this run")
    ways = [called] if name == "benchmark" else [called, launched]  # whose launcher needs no more than torch
    for way in ways:
        with pytest.raises(SystemExit) as end:
            way(name, "--output", "x")
        assert end.value.code == 130
        assert capsys.readouterr().err == f"\n{answer}\n"
    assert handed == [["--output", "x"]] * len(ways)


def test_a_mistake_ends_a_command_in_one_line(called: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        called("pipeline", "--method.epochs", "0")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: method.epochs=0: input should be greater than or equal to 1\n"


def loaded_by(code: str, *words: str) -> tuple[int, str, list[str]]:
    """Exit code and output of `code` in a process of its own, and which heavy packages it has loaded."""
    text = f"""
import sys
try:
    {code}
    code = 0
except SystemExit as end:
    code = end.code
print("loaded", *(name for name in {HEAVY} if name in sys.modules))
sys.exit(code)
"""
    ended = subprocess.run(
        [sys.executable, "-c", text, *words], cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    *output, last = ended.stdout.splitlines()
    return ended.returncode, "\n".join(output), last.split()[1:]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_loads_neither_ray_nor_torch(name: str) -> None:
    exit_code, shown, loaded = loaded_by("from coreg_ray.cli import main; main()", name, "--help")
    assert exit_code == 0
    assert "usage:" in shown
    assert not loaded


def test_a_mistake_is_found_before_ray_and_torch_are_loaded() -> None:
    exit_code, _, loaded = loaded_by("from coreg_ray.cli import main; main()", "pipeline", "--method.epoch", "3")
    assert exit_code == 2
    assert not loaded
