"""The host itself, from /proc and /sys: one device, ``cpu:host``, with its memory as heap ``sysmem``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hal.backend import EVERY_COST, Cost, Group
from hal.model import Enforcement, Exposure, Inventory, Probe, Process, Reading, Rung
from hal_cpu import device, driver

if TYPE_CHECKING:
    from hal_cpu.telemetry import Sampler

__all__ = ["Backend"]


class Backend:
    """The contract of hal.backend over the kernel's files below `root`. There is no library to name."""

    name = "cpu"
    isolated = False  # it loads no library

    def __init__(self, *, root: str = "/", library: str | None = None) -> None:
        self._root = Path(root)
        self._sampler: Sampler | None = None

    def probe(self) -> Probe:
        return driver.probe(self._root)

    def enumerate(self) -> Inventory:
        return device.enumerate_devices(self._root)

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        if self._sampler is None:
            from hal_cpu.telemetry import Sampler

            self._sampler = Sampler(self._root)
        return self._sampler.sample(groups, ids, deadline, costs)

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        from hal_cpu import processes

        return processes.processes(self._root, ids, deadline)

    def expose(self, ids: Sequence[str]) -> Exposure:
        from hal_cpu import expose

        return expose.expose(ids)

    def limits(self) -> Enforcement:
        return Enforcement(Rung.NONE, Rung.NONE)

    def close(self) -> None:
        """Nothing is held open."""
