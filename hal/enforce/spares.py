"""Slice files made ahead of time, and unmapped afterwards, by a thread.

A slice file has 300 pages, which the kernel hands out, maps and takes back one by one: that takes longer than
all else that is done for a slice.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from hal.backend import StateError
from hal.enforce.ledger import Ledger, check_limits

__all__ = ["Spares"]

_MOST = 16
_SUFFIX = ".spare"


class Spares:
    """Of one directory, whose only user this is. For one thread, besides its own.

    There are as many as slices were taken before, up to 16: who takes one alone pays for no other.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready: deque[Ledger] = deque()
        self._asked = 0  # made, or being made
        self._failed: deque[None] = deque()  # that could not be made
        self._taken = 0
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, path: Path, name: str, limits: Sequence[tuple[str, int]]) -> Ledger:
        """As Ledger.create."""
        check_limits(limits)
        spare = self._ready.popleft() if self._ready else None
        self._asked -= spare is not None
        while self._failed:
            self._failed.pop()
            self._asked -= 1
        while self._asked < min(self._taken, _MOST):
            self._asked += 1
            self._do(self._make)
        self._taken += 1
        if spare is not None:
            if spare.move(path, name, limits):
                return spare
            self.retire(spare)
        return Ledger.create(path, name, limits)

    def retire(self, ledger: Ledger) -> None:
        """Remove a slice file that nobody will ask for again."""
        with contextlib.suppress(OSError):  # read-only: it is swept up later
            ledger.unlink()
        self._do(ledger.close)

    def sweep(self) -> None:
        """Remove what one that was killed has left."""
        made = {spare.path for spare in self._ready.copy()}
        for path in self._directory.glob(f"*{_SUFFIX}"):
            if path not in made:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None
        while self._ready:
            spare = self._ready.popleft()
            with contextlib.suppress(OSError):
                spare.unlink()
            spare.close()
        self._asked = 0

    # ---- the thread -------------------------------------------------------------------------

    def _do(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hal-spares", daemon=True)
            self._thread.start()
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _make(self) -> None:
        path = self._directory / f"{secrets.token_hex(8)}{_SUFFIX}"
        try:
            self._ready.append(Ledger.create(path, "", [("", 0)]))
        except StateError:  # a full disk, for one: whoever needs one is told then
            self._failed.append(None)
