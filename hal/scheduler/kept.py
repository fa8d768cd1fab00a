"""How much is kept for who waits: the requests in queues, and the jobs that are not over, by their owners."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

__all__ = ["Kept", "size_of"]

_EACH = 2048  # bytes that a small one takes in memory beside what is written of it
_encode = msgspec.msgpack.Encoder().encode


def size_of(one: Any) -> int:
    return len(_encode(one)) + _EACH


class Kept:
    """Bytes, about as many as they take in memory."""

    def __init__(self) -> None:
        self.of_owner: Counter[int] = Counter()
        self.total = 0
        self._sizes: dict[str, tuple[int, int]] = {}

    def add(self, name: str, owner: int, one: Any) -> None:
        """``name`` is its own; again is no error."""
        self.drop(name)
        size = size_of(one)
        self._sizes[name] = owner, size
        self.of_owner[owner] += size
        self.total += size

    def drop(self, name: str) -> None:
        there = self._sizes.pop(name, None)
        if there is not None:
            owner, size = there
            self.total -= size
            self.of_owner[owner] -= size
            if not self.of_owner[owner]:
                del self.of_owner[owner]
