"""Whether a process lives: by its number, its start and its machine."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from coreg_ray.run.process import Process

OWN = Process.own()


def test_this_process_lives() -> None:
    assert OWN.lives
    assert OWN.is_here
    assert OWN.started is not None
    assert 0 <= time.time() - OWN.started < 86400
    assert Process(OWN.host, OWN.pid, None).lives  # of a file that does not say when


def test_another_that_got_its_number_is_not_it() -> None:
    assert OWN.started is not None
    assert not Process(OWN.host, OWN.pid, OWN.started - 60).lives
    assert not Process(OWN.host, OWN.pid, OWN.started, OWN.birth + 1).lives
    assert Process(OWN.host, OWN.pid, OWN.started - 60, OWN.birth).lives  # the clock has been set


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**70])
def test_numbers_that_nobody_has(pid: int) -> None:
    assert not Process(OWN.host, pid, None).lives


def test_one_that_has_ended_lives_no_more_even_before_its_parent_asks() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert Process(OWN.host, child.pid, None).lives
        child.kill()
        deadline = time.monotonic() + 120
        while Process(OWN.host, child.pid, None).lives:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.wait()
    assert not Process(OWN.host, child.pid, None).lives


def test_marks_come_back() -> None:
    back = Process.parse(OWN.mark)
    assert back is not None
    assert (back.host, back.pid, back.space, back.lives) == (OWN.host, OWN.pid, OWN.space, True)
    dotted = Process("node-1.some.where", 7, None, 3, 5)
    assert Process.parse(dotted.mark) == dotted
    assert Process.parse("no.mark") is None


def test_other_machines_and_containers_are_not_here() -> None:
    assert not Process("elsewhere", OWN.pid, None).is_here
    assert not Process(OWN.host, OWN.pid, space=OWN.space + 1).is_here
