"""NVIDIA GPUs, through NVML (``libnvidia-ml.so.1``) and its official wrapper, nvidia-ml-py.

Ids are ``nvidia:<uuid>``, the uuid as NVML prints it ("GPU-...").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hal.backend import Group
from hal.model import Enforcement, Exposure, Inventory, Probe, Process, Reading, Rung
from hal_nvidia import device, expose, processes, telemetry
from hal_nvidia.driver import Driver

__all__ = ["Backend"]


class Backend:
    """The contract of hal.backend over NVML. Not for use by several threads at once."""

    name = "nvidia"

    def __init__(self, *, root: str = "/", library: str | None = None) -> None:
        self._root = Path(root)
        self._driver = Driver(self._root, library)

    def probe(self) -> Probe:
        return self._driver.probe()

    def enumerate(self) -> Inventory:
        return device.enumerate_devices(self._driver.open(), self._root)

    def sample(self, groups: Sequence[Group], ids: Sequence[str], deadline: float) -> list[Reading]:
        return telemetry.sample(self._driver.open(), groups, ids, deadline)

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        return processes.processes(self._driver.open(), self._root, ids, deadline)

    def expose(self, ids: Sequence[str]) -> Exposure:
        return expose.expose(self._driver, ids)

    def limits(self) -> Enforcement:
        """The preloaded guard can hold a soft slice to its memory; nothing here holds its compute."""
        return Enforcement(memory=Rung.GUARD, compute=Rung.NONE)

    def close(self) -> None:
        self._driver.close()
