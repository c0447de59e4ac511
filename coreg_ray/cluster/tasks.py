"""Small helpers around Ray tasks: functions over parts, listings in the object store, errors as they were raised."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain, islice
from operator import add
from typing import Any, TypeVar

import ray
import ray.data
import ray.exceptions

from coreg_ray.cluster.chunks import one_by_one, summed
from coreg_ray.cluster.waiting import moved
from coreg_ray.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

_LINE_EVERY_S = 10.0
_ENDS_WITHIN_S = 10.0  # Ray Data's thread of a failed pipeline
_ITEMS_A_TASK = 8  # parts of 512 images
NOTE, ERROR = "note", "error"  # figures of a line that are words for a person: to be said, and to end with
_RAYS_ADVICE = "\nFailed to apply UDF"  # how Ray Data goes on after the message of an error in a function of ours


def task(function: Callable[..., Any], cpus: float = 1) -> Any:
    """The function as a Ray task of one CPU, or of none where whoever waits for it holds them all."""
    return ray.remote(num_cpus=cpus)(function)


def ended(tasks: Sequence[ray.ObjectRef]) -> None:
    """Wait until tasks have ended, well or not; what they came to stays where it is.

    For whoever starts actors that ask for it while they hold the CPUs, of which no task would get one any more.
    """
    if tasks:
        ray.wait(list(tasks), num_returns=len(tasks), fetch_local=False)


def each(
    function: Callable[..., T], items: Iterable[Any], *shared: Any, cpus: float = 1, a_task: int = _ITEMS_A_TASK
) -> Iterator[T]:
    """function(item, *shared) for every item in Ray tasks, a bounded number at a time; as they come.

    Args:
        a_task: items in a task: a few, so that small work does not start as many processes as there are CPUs; one where
            each is work enough.
    """
    yield from chain.from_iterable(_in_tasks(one_by_one, function, items, shared, cpus, a_task))


def told(answers: Iterable[T], expected: int, doing: str) -> Iterator[T]:
    """The answers as they come, saying now and then how many of those expected have."""
    last_logged = time.monotonic()
    for number, answer in enumerate(answers, 1):
        yield answer
        if time.monotonic() - last_logged >= _LINE_EVERY_S:
            last_logged = time.monotonic()
            log.info("%s %d of %d", doing, number, expected)


def added_up(function: Callable[..., T], items: Iterable[Any], *shared: Any, cpus: float = 1) -> T:
    """The sum of function(item, *shared) over the items, like `each`; a task sends back the sum of its own."""
    return reduce(add, _in_tasks(summed, function, items, shared, cpus, _ITEMS_A_TASK))


def _in_tasks(
    chunk: Callable[..., Any],
    function: Callable[..., Any],
    items: Iterable[Any],
    shared: tuple[Any, ...],
    cpus: float,
    a_task: int,
) -> Iterator[Any]:
    """chunk(function, a few items, *shared) in tasks, as they come."""
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef] = []
    waiting = iter(items)
    while some := list(islice(waiting, a_task)):
        if len(running) == at_once:
            ready, running = ray.wait(running)
            yield from map(ask, ready)
        running.append(task(chunk, cpus).remote(function, some, *shared))
    while running:
        ready, running = ray.wait(running)
        yield from map(ask, ready)


def ask(reference: ray.ObjectRef) -> Any:
    """The value of a reference; the user's own mistakes come back as they were raised, without the remote traceback."""
    try:
        answer = ray.get(reference)
        moved()
        return answer
    except ray.exceptions.RayError as error:
        mistake = _own_mistake(error)
        if mistake is None:
            raise
    raise UserError(mistake)


def _own_mistake(error: BaseException | None) -> str | None:
    """What the UserError inside Ray's error says, if that is what it is about."""
    while error is not None:
        if isinstance(error, UserError):
            return str(getattr(error, "cause", error)).split(_RAYS_ADVICE)[0]
        error = getattr(error, "cause", None) or error.__cause__
    return None


def through(dataset: ray.data.Dataset, function: Any, *, settings: dict[str, Any], **options: Any) -> ray.data.Dataset:
    """`Dataset.map_batches` of a function, or of a class that a pool of actors holds; `settings` are its arguments."""
    given = "fn_constructor_kwargs" if isinstance(function, type) else "fn_kwargs"
    options[given] = settings
    return dataset.map_batches(function, **options)


def watch(
    written: ray.data.Dataset, images: int, doing: str, check: Callable[[Counter[str]], None] | None = None
) -> Counter[str]:
    """Run a pipeline to its end, saying now and then how far it is; returns the sums of the figures that it yields.

    Words that a line brings along reach the terminal, each once: what actors log does not.

    Args:
        check: looks at the sums so far after every line; raises UserError where going on makes no sense.

    Raises:
        UserError: one was raised in the pipeline or by `check`, or a line holds an ERROR. Its actors have been let go
            by then.
    """
    try:
        return _sums(ray.data.Dataset.copy(written), images, doing, check)
    except Exception as error:
        mistake = _own_mistake(error)
        if mistake is None:
            raise
    # Ray Data ends the actors of a failed pipeline by forgetting them. The copy, which knows them, and the error, whose
    # frames do, are gone now; its own thread may still be at it, and cycles among its objects are left, so that an
    # annotator would keep its GPU.
    _join_executors()
    gc.collect()
    raise UserError(mistake)


def _join_executors() -> None:
    """Wait for Ray Data's threads. Not in `watch`: its frame, and a thread in it, would live as long as its error."""
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(_ENDS_WITHIN_S)


def _sums(
    written: ray.data.Dataset, images: int, doing: str, check: Callable[[Counter[str]], None] | None = None
) -> Counter[str]:
    started = last_logged = time.monotonic()
    total: Counter[str] = Counter()
    notes: set[str] = set()
    for line in written.iter_rows():
        moved()
        _say(str(line.pop(NOTE, "")), notes)
        if error := line.pop(ERROR, ""):
            raise UserError(error)
        total.update(line)
        if check is not None:
            check(total)
        now = time.monotonic()
        if now - last_logged >= _LINE_EVERY_S and total["images"]:
            last_logged, rate = now, total["images"] / (now - started)
            left = (images - total["images"]) / rate
            log.info("%s: %d of %d, %.0f a second, %.0f s left", doing, total["images"], images, rate, left)
    return total


def _say(note: str, before: set[str]) -> None:
    """Log the lines of a note that were not logged before."""
    for text in note.splitlines():
        if text not in before:
            before.add(text)
            log.warning("%s", text)
