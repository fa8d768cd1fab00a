"""AMD GPUs, through AMD SMI (``libamd_smi.so``) and its wrapper, amdsmi.

Ids are ``amd:pci-<physical bdf>``: AMD's uuid differs between library versions and may be shared by
all partitions of a card, so it is kept as a field only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hal.backend import EVERY_COST, Cost, Group, HalError
from hal.model import Enforcement, Event, Exposure, Inventory, Portrait, Probe, Process, Reading, Rung
from hal_amd import glance

if TYPE_CHECKING:
    from hal_amd.device import Cards
    from hal_amd.events import Watch

__all__ = ["Backend"]


class Backend:
    """The contract of hal.backend over AMD SMI. Not for use by several threads at once.

    What a method needs is imported in it: most machines have no such device, and only `glance` is called.
    """

    name = "amd"

    def __init__(self, *, root: str = "/", library: str | None = None, paging: bool = False) -> None:
        """With ``paging``, events tell of each migration and page fault, too: many a second."""
        from hal_amd.driver import Driver

        self._root = Path(root)
        self._driver = Driver(self._root, library)
        self._paging = paging
        self._watch: Watch | None = None
        self._watched: Cards | None = None

    @staticmethod
    def glance(root: str = "/") -> Probe | None:
        return glance.glance(Path(root))

    def probe(self) -> Probe:
        return self._driver.probe()

    def enumerate(self) -> Inventory:
        from hal_amd import device
        from hal_amd.sysfs import Sysfs

        source = self._driver.open()
        return source.enumerate() if isinstance(source, Sysfs) else device.enumerate_devices(source)

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        from hal_amd import telemetry
        from hal_amd.sysfs import Sysfs

        source = self._driver.open()
        if isinstance(source, Sysfs):
            return source.sample(groups, ids, deadline, costs)
        readings = telemetry.sample(source, groups, ids, deadline, costs)
        if source.lost:
            self._driver.lost()
        return readings

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        from hal_amd import processes
        from hal_amd.sysfs import Sysfs

        source = self._driver.open()
        if isinstance(source, Sysfs):
            return source.processes(ids, deadline)
        return processes.processes(source, self._root, ids, deadline)

    def events(self) -> list[Event]:
        """KFD's reports and changes of the cards. The kernel's files alone have none to tell."""
        from hal_amd import errors
        from hal_amd.events import Watch
        from hal_amd.sysfs import Sysfs

        source = self._driver.open()
        if isinstance(source, Sysfs):
            return []
        try:
            if self._watch is None or self._watched is not source:
                self._watch, self._watched = Watch(source, paging=self._paging), source
                return []
            return self._watch.poll()
        except HalError:
            self._watch = None
            raise
        except Exception as failure:
            self._watch = None
            if errors.code_of(failure) == errors.NOT_INITIALISED:
                self._driver.lost()
            raise errors.error(failure, "AMD SMI events") from failure

    def outdated(self) -> str:
        """Why a new process has to take over: the library on disk is not the one in use."""
        return self._driver.outdated()

    def expose(self, ids: Sequence[str]) -> Exposure:
        from hal_amd import expose

        return expose.expose(self.enumerate() if ids else Inventory(), ids)

    def share_units(self, device: str, first_milli: int, milli: int) -> Exposure | None:
        """By ROCr's CU mask; without ROCm's library the number of XCCs is not known: None."""
        from hal_amd import cumask
        from hal_amd.sysfs import Sysfs

        source = self._driver.open()
        if isinstance(source, Sysfs):
            return None
        card, partition = source.find(device)
        found = next((here for here in self.enumerate().devices if here.id == card.id), None)
        undivided = partition is None and card.shape.partitions == 1
        if found is None or found.compute_units is None or found.architecture is None or not undivided:
            return None
        units, arch = found.compute_units, found.architecture
        return Exposure({"HSA_CU_MASK": cumask.mask(units, card.shape.dies, arch, first_milli, milli)})

    def limits(self) -> Enforcement:
        """The preloaded guard can hold a soft slice to its memory and to its share of the device's time."""
        return Enforcement(memory=Rung.GUARD, compute=Rung.GUARD)

    def describe(self) -> Portrait:
        from hal_amd import describe
        from hal_amd.sysfs import Sysfs

        source = self._driver.open()
        return Portrait() if isinstance(source, Sysfs) else describe.portrait(source)

    def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        self._driver.close()
