"""A backend for an imaginary accelerator: complete, and meant to be copied.

To write your own, copy this folder as ``hal_<vendor>`` and go through it file by file:

==============  ==========================================================================
driver.py       load your library, and say in ``probe`` what is in the way and how to fix it
errors.py       one table: your library's codes to hal's errors and statuses
conv.py         the only place for your library's words, sentinels and units
device.py       enumerate: ids that never change and are no index
telemetry.py    sample: one row of the table per call of your library
processes.py    optional: delete the file and the method if your library does not list them
glance.py       optional: look at files whether there is anything to start a process for
expose.py       optional: the environment that shows a program some devices and no other
==============  ==========================================================================

Then name it in the entry-point group ``hal.backends``. Nothing above needs to know of it.

This one is never there unless it is asked for, with ``Backend(enabled=True)`` or ``HAL_NULL=1``.
"""

from __future__ import annotations

from collections.abc import Sequence

from hal.backend import EVERY_COST, Cost, Group
from hal.model import Enforcement, Exposure, Inventory, Probe, Process, Reading, Rung
from hal_null import glance

__all__ = ["Backend"]


class Backend:
    """The contract of hal.backend; each method hands on to the file of its name.

    What a method needs is imported in it: mostly nobody has the device, and only `glance` is called.
    """

    name = "null"  # the word before the colon in every id

    def __init__(self, *, root: str = "/", library: str | None = None, enabled: bool | None = None) -> None:
        """`root` is where /proc, /sys and /dev are, `library` the vendor's library: tests set both.

        Nothing is loaded here; constructing a backend costs nothing and cannot fail.
        """
        from hal_null.driver import Driver

        if enabled is None:
            enabled = glance.enabled()
        self._driver = Driver(enabled)

    @staticmethod
    def glance() -> Probe | None:
        return glance.glance()

    def probe(self) -> Probe:
        return self._driver.probe()

    def enumerate(self) -> Inventory:
        from hal_null import device

        return device.enumerate_devices(self._driver.open())

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        from hal_null import telemetry

        return telemetry.sample(self._driver.open(), groups, ids, deadline, costs)

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        from hal_null import processes

        return processes.processes(self._driver.open(), ids, deadline)

    def expose(self, ids: Sequence[str]) -> Exposure:
        from hal_null import expose

        return expose.expose(self._driver, ids)

    def limits(self) -> Enforcement:
        """Who could hold a soft slice to its limit. Say NONE unless something really does."""
        return Enforcement(memory=Rung.NONE, compute=Rung.NONE)

    def close(self) -> None:
        self._driver.close()
