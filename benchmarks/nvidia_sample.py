"""One full fast-class sample of eight NVIDIA devices, over the bare pynvml calls that it takes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.frame import Figure, at_most, ratio
from benchmarks.installed import inside
from benchmarks.recorded import record

# What an H100 takes, in nanoseconds.
LATENCY = (
    "nvmlDeviceGetMemoryInfo=11600;nvmlDeviceGetMemoryInfo_v2=11600;nvmlDeviceGetUtilizationRates=2500;"
    "nvmlDeviceGetComputeRunningProcesses_v3=4500000;nvmlDeviceGetGraphicsRunningProcesses_v3=4500000;*=5000"
)


def figures() -> Iterator[Figure]:
    for name, latency, limit in (("as fast as hardware", LATENCY, 1.25), ("answers at once", "", 3)):
        got = inside("dgx-h100", compare, latency=latency)
        yield at_most(f"sample of 8 NVIDIA / bare pynvml, {name}", got["ratio"], "×", limit, got["remark"])


def compare() -> dict[str, Any]:
    """In the bench's environment, on the emulated machine."""
    import hal
    from hal.backend import Cost, Group
    from hal_nvidia import Backend

    fast = frozenset({Cost.FAST})
    backend = Backend()
    ids = [device.id for device in backend.enumerate().devices]

    def directly() -> None:
        backend.sample(list(Group), ids, time.monotonic() + 60, fast)

    directly()  # what it learns about the devices, it asks once
    bare = record(importlib.import_module("pynvml"), "nvml", directly)
    least = bare.answered()
    with hal.Machine() as machine:
        readings = machine.sample(ids=ids, costs=fast)
        compared = ratio(lambda: machine.sample(ids=ids, costs=fast), least.ask, rounds=200)
    return {
        "ratio": compared.ratio,
        "remark": f"{compared.first * 1e3:.2f} ms for {len(readings)} readings of {len(ids)} devices; "
        f"{len(least.calls)} bare calls in {compared.second * 1e3:.2f} ms (hal makes {bare.made})",
    }
