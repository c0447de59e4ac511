"""What a task does with its chunk of many items. Apart from Ray Data, which a process takes a second to import."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any, TypeVar

T = TypeVar("T")


def one_by_one(function: Callable[..., T], items: list[Any], *shared: Any) -> list[T]:
    """function(item, *shared) for every item."""
    return [function(item, *shared) for item in items]


def summed(function: Callable[..., Any], items: list[Any], *shared: Any) -> Any:
    """The sum of function(item, *shared) over the items, of which there is at least one."""
    return reduce(add, (function(item, *shared) for item in items))
