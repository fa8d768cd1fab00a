"""AMD GPUs, through AMD SMI (``libamd_smi.so``) and its wrapper, amdsmi.

Ids are ``amd:pci-<physical bdf>``: AMD's uuid differs between library versions and may be shared by
all partitions of a card, so it is kept as a field only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hal.backend import Group
from hal.model import Enforcement, Exposure, Inventory, Probe, Process, Reading, Rung
from hal_amd import device, expose, processes, telemetry
from hal_amd.driver import Driver

__all__ = ["Backend"]


class Backend:
    """The contract of hal.backend over AMD SMI. Not for use by several threads at once."""

    name = "amd"

    def __init__(self, *, root: str = "/", library: str | None = None) -> None:
        self._root = Path(root)
        self._driver = Driver(self._root, library)

    def probe(self) -> Probe:
        return self._driver.probe()

    def enumerate(self) -> Inventory:
        return device.enumerate_devices(self._driver.open())

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
