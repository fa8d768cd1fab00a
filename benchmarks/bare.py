"""A full fast-class sample of eight devices, over the bare calls of the vendor's library that it takes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.frame import Figure, at_most, compared
from benchmarks.installed import inside
from benchmarks.recorded import record

ROUNDS = 200


class Case(NamedTuple):
    name: str
    machine: str
    backend: str
    library: str
    prefix: str
    latency: str  # nanoseconds that calls take on hardware


CASES = (
    Case(
        "8 NVIDIA / bare pynvml", "dgx-h100", "hal_nvidia", "pynvml", "nvml",
        "nvmlDeviceGetMemoryInfo=11600;nvmlDeviceGetMemoryInfo_v2=11600;nvmlDeviceGetUtilizationRates=2500;"
        "nvmlDeviceGetComputeRunningProcesses_v3=4500000;nvmlDeviceGetGraphicsRunningProcesses_v3=4500000;"
        "*=5000",
    ),
    Case(
        "8 MI300X / bare amdsmi", "mi300x-8", "hal_amd", "amdsmi", "amdsmi_",
        "amdsmi_get_gpu_memory_usage=11600;amdsmi_get_gpu_activity=2500;"
        "amdsmi_get_gpu_process_list=4500000;*=5000",
    ),
)  # fmt: skip


def figures() -> Iterator[Figure]:
    for case in CASES:
        for how, latency, limit in (("as slow as hardware", case.latency, 1.25), ("at once", "", 3)):
            got = inside(case.machine, compare, case.backend, case.library, case.prefix, latency=latency)
            yield at_most(f"sample of {case.name}, calls {how}", got["ratio"], "×", limit, got["remark"])


def compare(backend_name: str, library: str, prefix: str) -> dict[str, Any]:
    """In the bench's environment, on the emulated machine."""
    import hal
    from hal.backend import Cost, Group

    fast = frozenset({Cost.FAST})
    backend = importlib.import_module(backend_name).Backend()
    ids = [device.id for device in backend.enumerate().devices]

    def directly() -> None:
        backend.sample(list(Group), ids, time.monotonic() + 60, fast)

    with hal.Machine() as machine:  # before this process has more threads than one
        readings = machine.sample(ids=ids, costs=fast)
        directly()  # what it learns about the devices, it asks once
        bare = record(importlib.import_module(library), prefix, directly)
        least = bare.answered()
        both = compared(lambda: machine.sample(ids=ids, costs=fast), least.ask, rounds=ROUNDS)
    return {
        "ratio": both.ratio,
        "remark": f"{both.first * 1e3:.2f} ms for {len(readings)} readings of {len(ids)} devices; "
        f"{len(least.calls)} bare calls in {both.second * 1e3:.2f} ms (hal makes {bare.made})",
    }
