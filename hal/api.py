"""The shortest way to what most programs want: what is here, how it is doing, once or again and again.

Each call opens what it needs and closes it. A program that asks often keeps a ``hal.Machine`` open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor

from hal.backend import Group
from hal.inventory import Machine
from hal.model import Device, Reading
from hal.telemetry.sampler import Sample, Sampler

__all__ = ["devices", "sample", "stream"]


def devices() -> list[Device]:
    """The devices of this machine, all vendors together, the CPU among them.

    Never raises for a vendor: one whose library fails has no devices, and ``hal doctor`` says why.

    >>> import hal
    >>> for device in hal.devices():
    ...     print(device.id, device.model, device.memory_bytes)  # doctest: +SKIP
    """
    with Machine() as machine:
        return list(machine.inventory().devices)


def sample(
    groups: Iterable[Group | str] | None = None,
    ids: Iterable[str] | None = None,
    *,
    timeout: float = 5.0,
) -> list[Reading]:
    """How the devices are doing now: readings of ``groups`` (all) of the devices and slices ``ids`` (all).

    ``timeout`` is in seconds for all of it; what was not reached by then is a reading without a value,
    its status ``stale``. Raises GoneError for an id that is not here and ValueError for an unknown group.

    >>> import hal
    >>> busy = [r for r in hal.sample(groups=["activity"]) if r.value]
    """
    with Machine() as machine:
        return machine.sample(_groups(groups), ids, timeout=timeout)


async def stream(
    interval: float = 1.0,
    groups: Iterable[Group | str] | None = None,
    ids: Iterable[str] | None = None,
    *,
    slow_every: int = 10,
) -> AsyncIterator[Sample]:
    """A sample every ``interval`` seconds, for ever; the event loop never waits for a driver.

    Figures that take a driver long are read in one sample of ``slow_every`` and those that do not change
    in the first; each sample has the newest of all of them. A sample that takes longer than the interval
    makes the next one late, and none is made up for. Raises as ``sample``.

    >>> import asyncio, hal
    >>> async def watch():
    ...     async for sample in hal.stream(interval=0.5, groups=["memory"]):
    ...         return len(sample.readings) > 0
    >>> asyncio.run(watch())
    True
    """
    # One thread for all that touches the vendors' libraries: a tick that is given up ends before they close.
    executor = ThreadPoolExecutor(1, thread_name_prefix="hal-stream")
    loop = asyncio.get_running_loop()
    try:
        machine = await loop.run_in_executor(executor, Machine)
        sampler = Sampler(machine, _groups(groups), ids, interval=interval, slow_every=slow_every)
        try:
            async for one in sampler.stream(executor):
                yield one
        finally:
            executor.submit(machine.close)
    finally:
        executor.shutdown(wait=False)


def _groups(groups: Iterable[Group | str] | None) -> list[Group] | None:
    if isinstance(groups, str):
        raise ValueError(f"groups is a list of names, as in ['{groups}']")
    return None if groups is None else [Group(group) for group in groups]
