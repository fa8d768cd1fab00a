"""A page of a list: as many as were asked for, or fewer that are enough for one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

__all__ = ["MOST_BYTES", "filled"]

MOST_BYTES = 1 << 20  # of a page: far less than an answer may have, and written in a few milliseconds
T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


def filled(there: Sequence[T], limit: int, told: Callable[[T], Any]) -> tuple[list[Any], bool]:
    """What is told of the first ``limit`` of them, or of as many as a page has room for, and at least of one;
    and whether there are more."""
    page: list[Any] = []
    size = 0
    for one in there[:limit]:
        entry = told(one)
        size += len(_encode(entry))
        if page and size > MOST_BYTES:
            break
        page.append(entry)
    return page, len(page) < len(there)
