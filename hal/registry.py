"""Finds backends by the entry-point group ``hal.backends`` and puts a wall around each.

Whatever one backend does wrong stays behind its wall: the others' devices are shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from hal.backend import Backend, GoneError, HalError, TemporaryError
from hal.model import Probe, ProbeState

__all__ = ["GROUP", "Source", "discover"]

GROUP = "hal.backends"

T = TypeVar("T")


class Source:
    """One backend behind its wall.

    ``probe`` is what it found when it was first looked at; a call that fails later turns it into
    ``broken`` with the reason, and gives the caller the value it said to give then.
    """

    def __init__(self, name: str, load: Callable[[], Backend]) -> None:
        self.name = name
        self.backend: Backend | None = None
        try:
            self.backend = load()
            self.probe = _sound(self.backend.probe(), Probe)
        except Exception as error:  # a stranger's code: anything may come out of it
            self.probe = _broken(name, error)

    def look_again(self) -> None:
        """Probe once more if it was not ready: drivers get loaded, and libraries recover."""
        if self.backend is not None and not self.ready:
            try:
                self.probe = _sound(self.backend.probe(), Probe)
            except Exception as error:
                self.probe = _broken(self.name, error)

    @property
    def ready(self) -> bool:
        return self.probe.state is ProbeState.READY

    def call(self, function: Callable[[Backend], T], otherwise: T) -> T:
        """``function(backend)``, or ``otherwise`` when it is not ready, raises or gives another type.

        What may pass by itself, and one lost device, do not make the whole backend broken.
        """
        if not self.ready or self.backend is None:
            return otherwise
        try:
            return _sound(function(self.backend), type(otherwise))
        except (TemporaryError, GoneError):
            return otherwise
        except Exception as error:
            self.probe = _broken(self.name, error)
            return otherwise

    def close(self) -> None:
        if self.backend is not None:
            try:
                self.backend.close()
            except Exception as error:
                self.probe = _broken(self.name, error)


def _sound(answer: T, kind: type[T]) -> T:
    if not isinstance(answer, kind):
        raise TypeError(f"it gave {type(answer).__name__} in place of {kind.__name__}")
    return answer


def _broken(name: str, error: Exception) -> Probe:
    reason = str(error) if isinstance(error, HalError) else f"{type(error).__name__}: {error}"
    return Probe(
        ProbeState.BROKEN,
        reason=reason,
        fix=f"the {name} backend failed; its library or driver may be damaged or of another version",
    )


def discover(names: Iterable[str] | None = None) -> list[Source]:
    """Every installed backend (or those named), probed, in the order of their names."""
    wanted = None if names is None else set(names)
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return [Source(p.name, partial(_load, p)) for p in points if wanted is None or p.name in wanted]


def _load(point: EntryPoint) -> Backend:
    backend: Backend = point.load()()
    return backend
