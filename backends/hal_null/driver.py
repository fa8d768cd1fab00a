"""Finding, loading and starting the vendor's library, and saying what is in the way."""

from __future__ import annotations

from hal.backend import StateError
from hal.model import Probe, ProbeState
from hal_null.glance import absent

__all__ = ["Driver", "Library", "LibraryError"]


class LibraryError(Exception):
    """What the vendor's wrapper raises: a code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"imaginary error {code}")
        self.code = code


class Library:
    """Stands for the vendor's library, with its units, its sentinels and its gaps."""

    uuids = ("IMAGINARY-00000001",)

    def memory(self, uuid: str) -> dict[str, int]:
        """KiB."""
        self._check(uuid)
        return {"total": 16 << 20, "used": 1 << 20}

    def percent_busy(self, uuid: str) -> int:
        self._check(uuid)
        return 0

    def milliwatts(self, uuid: str) -> int:
        self._check(uuid)
        return 25_000

    def milliwatts_limit(self, uuid: str) -> int:
        """0xFFFF: no limit is set, or none can be."""
        self._check(uuid)
        return 0xFFFF

    def millidegrees(self, uuid: str) -> int:
        self._check(uuid)
        raise LibraryError(2)

    def pids(self, uuid: str) -> list[int]:
        self._check(uuid)
        return []

    def _check(self, uuid: str) -> None:
        if uuid not in self.uuids:
            raise LibraryError(6)


class Driver:
    """The library, opened at first need and closed by `close`."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._library: Library | None = None

    def probe(self) -> Probe:
        """Never raises, prints nothing. A reason is a fact; a fix is something that the user can do."""
        if not self._enabled:
            return absent()
        return Probe(ProbeState.READY)

    def open(self) -> Library:
        """The library, ready for use. Raises StateError with what to do."""
        if not self._enabled:
            raise StateError("the imaginary accelerator is switched off; set HAL_NULL=1")
        if self._library is None:
            self._library = Library()  # here you load and initialise yours
        return self._library

    def close(self) -> None:
        self._library = None  # here you shut yours down
