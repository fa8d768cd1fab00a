"""Finds backends by the entry-point group ``hal.backends`` and puts a wall around each.

Whatever one backend does wrong stays behind its wall: the others' devices are shown all the same. The
wall of an installed backend is a process of its own (hal.isolation); its ``glance`` is asked first, in
this one, whether there is anything to start a process for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from hal.backend import Backend, GoneError, HalError, TemporaryError
from hal.entries import installed, load
from hal.isolation import VendorLost
from hal.model import Enforcement, Exposure, Hold, Inventory, Portrait, Probe, ProbeState

if TYPE_CHECKING:
    from hal.isolation.vendor import Vendor

__all__ = ["FAILED", "GROUP", "Source", "discover"]

GROUP = "hal.backends"

_RESULTS: dict[str, type] = {
    "probe": Probe,
    "enumerate": Inventory,
    "sample": list,
    "processes": list,
    "expose": Exposure,
    "limits": Enforcement,
    "events": list,
    "hold_memory": Hold,
    "describe": Portrait,
}

FAILED: Any = object()  # what a call gives that did not get an answer


class Source:
    """One backend behind its wall."""

    def __init__(self, name: str, load: Callable[[], Backend | Probe]) -> None:
        """``load`` gives the backend, or a Probe when there is nothing to load."""
        self.name = name
        self._backend: Backend | None = None
        self._probe: Probe | None = None
        self._lost: Probe | None = None  # the whole library, until it answers again
        self._faults: dict[str, Probe] = {}  # by call: why its last try failed
        self._load = load
        self._open()

    def _open(self) -> None:
        try:
            loaded = self._load()
        except Exception as error:  # a stranger's code: anything may come out of it
            self._probe = _broken(self.name, error)
            return
        if isinstance(loaded, Probe):
            self._probe = loaded
        else:
            self._backend, self._probe = loaded, None

    @property
    def probe(self) -> Probe:
        """What was found at the first look; while calls fail, why."""
        if self._probe is None:
            self._look()
        return next(iter(self._faults.values()), self._lost or self._probe or Probe(ProbeState.BROKEN))

    @property
    def here(self) -> bool:
        """Whether its calls run in this process, when their results are asked for."""
        return not hasattr(self._backend, "begin")

    def look_again(self) -> None:
        """Probe once more if it was not ready: drivers get loaded, and libraries recover."""
        if self._backend is None:
            self._open()
        elif self.probe.state is not ProbeState.READY:
            self._look()

    def begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Start a call of the contract; what is returned waits for its result, or gives FAILED.

        A lost device and what may pass by itself do not make the whole backend broken.
        """
        if self._probe is None:
            self._look()
        backend = self._backend
        if backend is None or self._probe is None or self._probe.state is not ProbeState.READY:
            return lambda: FAILED
        if not self.here:
            return partial(self._settle, method, cast("Vendor", backend).begin(method, *arguments))
        if not hasattr(backend, method):
            return lambda: FAILED
        return partial(self._settle, method, partial(getattr(backend, method), *arguments))

    def close(self) -> None:
        if self._backend is not None:
            self._settle("close", self._backend.close)

    def _look(self) -> None:
        if self._backend is not None:
            found = self._settle("probe", self._backend.probe)
            if found is not FAILED:
                self._probe = found
                self._faults.clear()

    def _settle(self, method: str, finish: Callable[[], Any]) -> Any:
        try:
            result = finish()
        except VendorLost as error:
            self._lost = _broken(self.name, error)
        except (TemporaryError, GoneError):
            pass
        except Exception as error:
            self._faults[method] = _broken(self.name, error)
        else:
            kind = _RESULTS.get(method, object)
            if isinstance(result, kind):
                self._lost = None
                self._faults.pop(method, None)
                return result
            wrong = f"it gave {type(result).__name__} in place of {kind.__name__}"
            self._faults[method] = _broken(self.name, TypeError(wrong))
        return FAILED


def _broken(name: str, error: Exception) -> Probe:
    reason = str(error) if isinstance(error, HalError) else f"{type(error).__name__}: {error}"
    return Probe(
        ProbeState.BROKEN,
        reason=reason,
        fix=f"the {name} backend failed; its library or driver may be damaged or of another version",
    )


def discover(names: Iterable[str] | None = None) -> list[Source]:
    """Every installed backend (or those named), in the order of their names, each started but not awaited."""
    wanted = None if names is None else set(names)
    found = sorted(installed(GROUP).items())
    return [
        Source(name, partial(_behind_a_wall, name, place))
        for name, place in found
        if wanted is None or name in wanted
    ]


def _behind_a_wall(name: str, place: str) -> Backend | Probe:
    kind = load(place)
    nothing: Probe | None = kind.glance() if hasattr(kind, "glance") else None
    if nothing is not None:
        return nothing
    backend: Backend
    if not getattr(kind, "isolated", True):  # it loads no library, and needs no wall but that for exceptions
        backend = kind()
        return backend
    from hal.isolation.vendor import Vendor  # mostly there is nothing to start a process for

    return Vendor(name, kind)
