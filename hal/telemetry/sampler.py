"""Samples at a steady pace: only the groups asked for, each figure as often as it is worth.

Fast figures are read every tick, slow ones (they block, or hold the driver's lock) one tick in some,
static ones once and again when the devices change. What was read is kept in a ring.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Protocol

from msgspec import Struct

from hal.backend import Cost, Group
from hal.model import Reading

__all__ = ["Sample", "Sampler", "Samples"]


class Samples(Protocol):
    """What a sampler reads from: ``hal.inventory.Machine`` is one."""

    def sample(
        self,
        groups: Iterable[Group] | None = None,
        ids: Iterable[str] | None = None,
        *,
        timeout: float = 5.0,
        costs: frozenset[Cost] = ...,
    ) -> list[Reading]: ...


class Sample(Struct, frozen=True):
    """One tick: what was read in it, and with that the newest of all that is read less often."""

    time: float  # seconds since 1970
    seconds: float  # that reading took
    readings: tuple[Reading, ...]


class Sampler:
    """Reads groups (all) of devices (all) every ``interval`` seconds.

    ``slow_every`` is the number of ticks from one reading of slow figures to the next, ``history`` the
    number of samples that are kept. One thread or task at a time.
    """

    def __init__(
        self,
        machine: Samples,
        groups: Iterable[Group] | None = None,
        ids: Iterable[str] | None = None,
        *,
        interval: float = 1.0,
        slow_every: int = 10,
        history: int = 600,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if interval <= 0 or slow_every < 1 or history < 1:
            raise ValueError("interval, slow_every and history have to be more than nothing")
        self._machine = machine
        self._groups = None if groups is None else tuple(groups)
        self._ids = None if ids is None else tuple(ids)
        self._interval = interval
        self._slow_every = slow_every
        self._clock = clock
        self._ticks = 0
        self._newest: dict[tuple[object, ...], Reading] = {}
        self.history: deque[Sample] = deque(maxlen=history)

    def tick(self) -> Sample:
        """Read what is due now."""
        costs = {Cost.FAST}
        if self._ticks % self._slow_every == 0:
            costs.add(Cost.SLOW)
        if self._ticks == 0:
            costs.add(Cost.STATIC)
        self._ticks += 1
        start = time.monotonic()
        # A vendor that hangs may not make every later tick late as well.
        readings = self._machine.sample(
            self._groups, self._ids, timeout=max(self._interval, 1.0), costs=frozenset(costs)
        )
        for reading in readings:
            self._newest[reading.subject, reading.name, tuple(reading.labels.items())] = reading
        sample = Sample(self._clock(), time.monotonic() - start, tuple(self._newest.values()))
        self.history.append(sample)
        return sample

    def forget(self) -> None:
        """Start over: the devices have changed."""
        self._ticks = 0
        self._newest.clear()

    def series(self, subject: str, name: str, **labels: str) -> list[tuple[float, float]]:
        """A figure over the samples kept: (time, value), those without a value left out."""

        def values() -> Iterator[tuple[float, float]]:
            for sample in self.history:
                for reading in sample.readings:
                    if (reading.subject, reading.name) != (subject, name) or reading.value is None:
                        continue
                    if labels.items() <= reading.labels.items():
                        yield sample.time, reading.value

        return list(values())

    def __iter__(self) -> Iterator[Sample]:
        """Samples for ever, at the pace; a tick that took longer than the interval is not made up for."""
        due = time.monotonic()
        while True:
            yield self.tick()
            due = max(due + self._interval, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))

    async def stream(self, executor: Executor | None = None) -> AsyncIterator[Sample]:
        """The same for ``async for``: reading happens in a thread, so the loop never waits for a driver."""
        due = time.monotonic()
        while True:
            yield await asyncio.get_running_loop().run_in_executor(executor, self.tick)
            due = max(due + self._interval, time.monotonic())
            await asyncio.sleep(max(due - time.monotonic(), 0))
