"""A full fast-class sample of eight devices, over the bare calls of the vendor's library that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.frame import Figure, NotMeasured, at_most, compared
from benchmarks.installed import inside
from benchmarks.recorded import Bare, counted, record

ROUNDS = 200


class Case(NamedTuple):
    name: str
    machine: str
    compare: Callable[[], dict[str, Any]]
    latency: str  # nanoseconds that calls take on hardware


def figures() -> Iterator[Figure]:
    for case in CASES:
        for how, latency, limit in (("as slow as hardware", case.latency, 1.25), ("at once", "", 3)):
            got = inside(case.machine, case.compare, latency=latency)
            yield at_most(f"sample of {case.name}, calls {how}", got["ratio"], "×", limit, got["remark"])


# ---- in the bench's environment, on the emulated machine ---------------------------------------------


def nvidia() -> dict[str, Any]:
    """The least is written out, and is what hal asks of NVML, call by call."""
    import pynvml as nvml

    import hal_nvidia

    def least(ids: list[str]) -> Bare:
        handles = [nvml.nvmlDeviceGetHandleByUUID(one.partition(":")[2]) for one in ids]
        # Power (average, now), energy, memory temperature, and the state of 18 links.
        fields = [185, 186, 83, 82, *((165, link) for link in range(18))]
        asked: list[tuple[Any, tuple[Any, ...]]] = []
        for handle in handles:
            asked += [
                (nvml.nvmlDeviceGetMemoryInfo, (handle, nvml.nvmlMemory_v2)),
                (nvml.nvmlDeviceGetUtilizationRates, (handle,)),
                (nvml.nvmlDeviceGetEncoderUtilization, (handle,)),
                (nvml.nvmlDeviceGetDecoderUtilization, (handle,)),
                (nvml.nvmlDeviceGetJpgUtilization, (handle,)),
                (nvml.nvmlDeviceGetEnforcedPowerLimit, (handle,)),
                (nvml.nvmlDeviceGetTemperature, (handle, nvml.NVML_TEMPERATURE_GPU)),
                (nvml.nvmlDeviceGetClockInfo, (handle, nvml.NVML_CLOCK_SM)),
                (nvml.nvmlDeviceGetClockInfo, (handle, nvml.NVML_CLOCK_MEM)),
                (nvml.nvmlDeviceGetClockInfo, (handle, nvml.NVML_CLOCK_VIDEO)),
                (nvml.nvmlDeviceGetCurrentClocksEventReasons, (handle,)),
                (nvml.nvmlDeviceGetCurrPcieLinkGeneration, (handle,)),
                (nvml.nvmlDeviceGetCurrPcieLinkWidth, (handle,)),
                (nvml.nvmlDeviceGetPerformanceState, (handle,)),
                (nvml.nvmlDeviceGetFieldValues, (handle, fields)),
            ]
        return Bare(tuple(asked)).answered()

    def check(bare: Bare, directly: Callable[[], None]) -> None:
        ours, theirs = counted(nvml, directly, after=directly), counted(nvml, bare.ask, after=bare.ask)
        if ours != theirs:
            raise NotMeasured(f"hal makes other calls than the bare ones: {ours - theirs}, {theirs - ours}")

    return _compare(hal_nvidia.Backend, lambda ids, _: least(ids), check)


def amd() -> dict[str, Any]:
    """The least is recorded: what hal asks of amdsmi, each question once and if it has an answer; and
    gpu_metrics, which hal reads below amdsmi's Python."""
    import amdsmi

    import hal_amd

    def least(_: list[str], directly: Callable[[], None]) -> Bare:
        directly()  # what it learns about the devices, it asks once
        return record(amdsmi, "amdsmi_", directly).answered()

    return _compare(hal_amd.Backend, least, lambda bare, directly: None)


def _compare(
    backend_class: Any,
    least: Callable[[list[str], Callable[[], None]], Bare],
    check: Callable[[Bare, Callable[[], None]], None],
) -> dict[str, Any]:
    import hal
    from hal.backend import Cost, Group

    fast = frozenset({Cost.FAST})
    with hal.Machine() as machine:
        ids = [device.id for device in machine.inventory().devices if device.vendor != "cpu"]
        readings = machine.sample(ids=ids, costs=fast)
        backend = backend_class()

        def directly() -> None:
            backend.sample(list(Group), ids, time.monotonic() + 60, fast)

        backend.enumerate()
        bare = least(ids, directly)
        check(bare, directly)
        both = compared(lambda: machine.sample(ids=ids, costs=fast), bare.ask, rounds=ROUNDS)
    return {
        "ratio": both.ratio,
        "remark": f"{both.first * 1e3:.2f} ms for {len(readings)} readings of {len(ids)} devices; "
        f"{len(bare.calls)} bare calls in {both.second * 1e3:.2f} ms",
    }


CASES = (
    Case(
        "8 NVIDIA / bare pynvml", "dgx-h100", nvidia,
        "nvmlDeviceGetMemoryInfo=11600;nvmlDeviceGetMemoryInfo_v2=11600;nvmlDeviceGetUtilizationRates=2500;"
        "nvmlDeviceGetComputeRunningProcesses_v3=4500000;nvmlDeviceGetGraphicsRunningProcesses_v3=4500000;"
        "*=5000",
    ),
    Case(
        "8 MI300X / bare amdsmi", "mi300x-8", amd,
        "amdsmi_get_gpu_memory_usage=11600;amdsmi_get_gpu_activity=2500;"
        "amdsmi_get_gpu_process_list=4500000;*=5000",
    ),
)  # fmt: skip
