"""Who uses it. Delete this file, and the method, if your library does not say."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hal.backend import TemporaryError
from hal.model import Process, Status
from hal_null import errors
from hal_null.device import uuid_of
from hal_null.driver import Library, LibraryError

__all__ = ["processes"]


def processes(library: Library, ids: Sequence[str], deadline: float) -> list[Process]:
    """Every process on the devices named. Raises TemporaryError when the deadline passes before the last."""
    found: list[Process] = []
    for subject in ids:
        uuid = uuid_of(library, subject)
        if time.monotonic() >= deadline:
            raise TemporaryError(f"processes of {subject}: not reached before the deadline")
        try:
            pids = library.pids(uuid)
        except LibraryError as failure:
            raise errors.error(failure, subject) from failure
        found.extend(Process(subject, pid, None, None, Status.UNSUPPORTED) for pid in pids)
    return found
