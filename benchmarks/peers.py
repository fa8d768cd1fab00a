"""The same fields asked of hal, and of nvitop and gpustat, on eight NVIDIA devices that answer at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.frame import Figure, at_most, compared
from benchmarks.installed import inside, path_of, program

MACHINE = "dgx-h100"


def figures() -> Iterator[Figure]:
    for peer, compare in (("nvitop", beside_nvitop), ("gpustat", beside_gpustat)):
        path_of(peer)
        got = inside(MACHINE, compare)
        yield at_most(f"sample of 8 NVIDIA / {peer}'s query", got["ratio"], "×", 1, got["remark"])
    got = inside(MACHINE, whole_processes)
    yield at_most("`hal list` / `gpustat`, whole processes", got["ratio"], "×", 1, got["remark"])


# ---- in the bench's environment, on the emulated machine ---------------------------------------------


def beside_nvitop() -> dict[str, Any]:
    """Memory, activity, clocks, power, temperature and fans, as nvitop's own snapshot asks for them."""
    import nvitop

    devices = nvitop.Device.all()
    words = ("memory_info", "utilization_rates", "encoder_utilization", "decoder_utilization", "clock_infos",
             "temperature", "power_usage", "power_limit", "fan_speed")  # fmt: skip

    def query() -> None:
        for device in devices:
            with device.oneshot():
                for word in words:
                    getattr(device, word)()

    return _beside(query, ("memory", "activity", "clocks", "power", "temperature"))


def beside_gpustat() -> dict[str, Any]:
    """Memory, activity, power, temperature, fans and processes: all that gpustat prints.

    Its query opens NVML and closes it, and rests 0.1 s for each GPU, to see how busy its processes are.
    """
    import gpustat

    return _beside(gpustat.GPUStatCollection.new_query, ("memory", "activity", "power", "temperature"),
                   processes=True, rounds=9)  # fmt: skip


def _beside(
    query: Callable[[], object], words: tuple[str, ...], *, processes: bool = False, rounds: int = 200
) -> dict[str, Any]:
    import hal
    from hal.backend import Cost

    groups = [hal.Group(word) for word in words]
    fast = frozenset({Cost.FAST})
    with hal.Machine() as machine:
        ids = [device.id for device in machine.inventory().devices if device.vendor == "nvidia"]

        def ours() -> None:
            machine.sample(groups, ids, costs=fast)
            if processes:
                machine.processes(ids)

        both = compared(ours, query, rounds=rounds)
    return {
        "ratio": both.ratio,
        "remark": f"{both.first * 1e3:.2f} ms, theirs {both.second * 1e3:.2f} ms",
    }


def whole_processes() -> dict[str, Any]:
    both = compared(program("hal", "list", env=os.environ), program("gpustat", env=os.environ), rounds=15)
    return {
        "ratio": both.ratio,
        "remark": f"{both.first * 1e3:.0f} ms, gpustat {both.second * 1e3:.0f} ms",
    }
