"""NVIDIA GPUs, through NVML (``libnvidia-ml.so.1``) and its official wrapper, nvidia-ml-py.

Ids are ``nvidia:<uuid>``, the uuid as NVML prints it ("GPU-...").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hal.backend import EVERY_COST, Cost, Group
from hal.model import Enforcement, Event, Exposure, Hold, Inventory, Portrait, Probe, Process, Reading, Rung
from hal_nvidia import glance

if TYPE_CHECKING:
    from hal_nvidia.events import Watch
    from hal_nvidia.handles import Handles

__all__ = ["Backend"]


class Backend:
    """The contract of hal.backend over NVML. Not for use by several threads at once.

    What a method needs is imported in it: most machines have no such device, and only `glance` is called.
    """

    name = "nvidia"

    def __init__(self, *, root: str = "/", library: str | None = None) -> None:
        from hal_nvidia.driver import Driver

        self._root = Path(root)
        self._driver = Driver(self._root, library)
        self._session: Handles | None = None
        self._watch: Watch | None = None

    @staticmethod
    def glance(root: str = "/") -> Probe | None:
        return glance.glance(Path(root))

    def probe(self) -> Probe:
        return self._driver.probe()

    def enumerate(self) -> Inventory:
        from hal_nvidia import device

        handles = self._open()
        handles.forget()
        return device.enumerate_devices(handles.nvml, self._root)

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        from hal_nvidia import telemetry

        return telemetry.sample(self._open(), groups, ids, deadline, costs)

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        from hal_nvidia import processes

        return processes.processes(self._open(), self._root, ids, deadline)

    def events(self) -> list[Event]:
        """XIDs, lost GPUs and what else NVML has events of. A driver without events has none to tell."""
        from hal_nvidia import errors
        from hal_nvidia.events import Watch

        nvml = self._open().nvml
        try:
            if self._watch is None:
                self._watch = Watch(nvml)
            return self._watch.poll()
        except AttributeError:  # a pynvml that is too old to know the calls
            return []
        except nvml.NVMLError as failure:
            self._stop_watching()
            if errors.is_unsupported(failure):
                return []
            raise errors.error(failure, "NVML events") from failure

    def expose(self, ids: Sequence[str]) -> Exposure:
        from hal_nvidia import expose

        return expose.expose(self._open, ids)

    def hold_memory(self, device: str, group: str, limit_bytes: int) -> Hold:
        from hal_nvidia import limits

        return limits.hold_memory(self._open(), device, group, limit_bytes)

    def limits(self) -> Enforcement:
        """The preloaded guard can hold a soft slice to its memory and to its share of the device's time."""
        return Enforcement(memory=Rung.GUARD, compute=Rung.GUARD)

    def describe(self) -> Portrait:
        from hal_nvidia import describe

        return describe.portrait(self._open().nvml, self._root)

    def close(self) -> None:
        self._stop_watching()
        session, self._session = self._session, None
        if session is not None:
            session.forget()
        self._driver.close()

    def _open(self) -> Handles:
        from hal_nvidia.handles import Handles

        nvml = self._driver.open()
        if self._session is None:
            self._session = Handles(nvml)
        return self._session

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
