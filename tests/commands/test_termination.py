"""SIGTERM ends a command as Ctrl-C does: in clear words, with an exit code of its own, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from coreg_ray.commands.base import run
from coreg_ray.run.termination import Terminated, heed_again, terminable

WORKS = """
import signal, sys, time
from coreg_ray.commands import serve
from coreg_ray.commands.base import run, show
from coreg_ray.run.lock import locked
from coreg_ray.run.storage import Folder
from coreg_ray.run.termination import heed_again

def main(arguments):
    with locked(Folder.at(sys.argv[1]), sys.argv[1]):
        if "ray" in sys.argv:
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if "heeded" in sys.argv:
            heed_again()
        show("working")
        try:
            time.sleep(60)
        except KeyboardInterrupt as end:
            if "library" in sys.argv:
                raise RuntimeError("interrupted") from end
            raise
        finally:
            if "twice" in sys.argv:
                signal.raise_signal(signal.SIGTERM)

run(main, [], serve.STOPPED if "serve" in sys.argv else None)
"""


def terminated(*words: str) -> tuple[int, str]:
    """Exit code and words of a command that is told to end while it works."""
    command = [sys.executable, "-c", WORKS, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        child.send_signal(signal.SIGTERM)
        _, shown = child.communicate(timeout=1500)
    return child.returncode, shown


@pytest.mark.parametrize("words", [(), ("twice",), ("ray",), ("ray", "heeded", "twice"), ("library",)])
def test_a_command_says_how_to_go_on_and_leaves_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert terminated(str(tmp_path), *words) == (143, "\nstopped; the same command continues this run\n")
    assert list(tmp_path.iterdir()) == []


def test_serving_ends_in_its_own_words(tmp_path: Path) -> None:
    assert terminated(str(tmp_path), "serve") == (143, "\nstopped\n")


def test_the_handler_of_before_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(lambda _: None, [])
    with pytest.raises(SystemExit) as end:
        run(lambda _: sys.exit(3), [])
    assert end.value.code == 3
    assert signal.getsignal(signal.SIGTERM) == before
    heed_again()  # no command asks for it
    assert signal.getsignal(signal.SIGTERM) == before


def test_rays_own_answer_while_it_starts_is_the_same() -> None:
    with pytest.raises(Terminated), terminable():
        sys.exit(signal.SIGTERM)


def test_another_thread_changes_nothing() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with terminable():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_connecting_takes_the_signal_back_from_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from coreg_ray.cluster import connect

    def start(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "init", start)
    monkeypatch.setattr(connect.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    monkeypatch.setattr(connect, "_own", "")
    monkeypatch.setattr(connect, "_joined", False)
    left: list[bool] = []
    monkeypatch.setattr(connect.ray, "shutdown", lambda: left.append(True))
    connect.leave()
    assert not left, "somebody else has joined the cluster, or nobody"
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with terminable():
        ours = signal.getsignal(signal.SIGTERM)
        connect.connect()
        assert signal.getsignal(signal.SIGTERM) == ours
    run(lambda _: None, [])
    assert left == [True], "the command has ended"
