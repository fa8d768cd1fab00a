"""GPM: what the counters of Hopper and later say of the time between two samples.

One sample is kept from each time of asking to the next, so the first answer is that there is none yet.
Before Hopper only DCGM's profiling module has such figures, and it needs the counters for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from hal.backend import Answer, Call, Cost, Figure, Group, Value
from hal.model import Scope, Status
from hal_nvidia import conv, errors
from hal_nvidia.handles import Gpu

__all__ = ["BUSY", "METRICS", "answers_of", "rows"]

_LEAST = 0.1  # seconds that have to lie between two samples (NVML API guide, nvmlGpmMetricsGet)
_SOURCE = "nvmlGpmMetricsGet"
_FIRST = Value(None, Status.STALE, "the first of two samples: ask again")

BUSY = 1  # NVML_GPM_METRIC_GRAPHICS_UTIL: what nvmlDeviceGetUtilizationRates says of a whole GPU
_SLOW: dict[int, Figure] = {  # by NVML_GPM_METRIC_...
    2: Figure("engine_active_ratio", "ratio"),
    3: Figure("engine_occupancy_ratio", "ratio"),
    5: Figure("tensor_active_ratio", "ratio"),
    10: Figure("memory_bandwidth_active_ratio", "ratio"),
    11: Figure("pipe_active_ratio", "ratio", {"pipe": "fp64"}),
    12: Figure("pipe_active_ratio", "ratio", {"pipe": "fp32"}),
    13: Figure("pipe_active_ratio", "ratio", {"pipe": "fp16"}),
    4: Figure("pipe_active_ratio", "ratio", {"pipe": "integer"}),
}
METRICS = (BUSY, *_SLOW)
_Answers = Mapping[int, Answer]


def rows(scope: Scope) -> list[Call]:
    """The row of the finer figures."""

    def read(nvml: Any, gpu: Gpu) -> list[Answer]:
        answers = answers_of(nvml, gpu)
        return [answers[metric] for metric in _SLOW]

    return [Call(Group.ACTIVITY, _SOURCE, scope, tuple(_SLOW.values()), read, Cost.SLOW)]


def answers_of(nvml: Any, gpu: Gpu) -> _Answers:
    """One answer for each of METRICS. Raises NVML's error when a call fails.

    Asked again within a tenth of a second it says the same as before, of the window that ended then.
    """
    pair = gpu.gpm
    if pair is None:
        pair = gpu.gpm = _pair(nvml, gpu)
    if isinstance(pair, Value):
        return dict.fromkeys(METRICS, pair)
    assert isinstance(pair, _Pair)
    return pair.ask(nvml)


def _pair(nvml: Any, gpu: Gpu) -> _Pair | Value:
    """What its samples are read with, or why it has none, which is as lasting as the driver."""
    try:
        whole, take = gpu.handle, nvml.nvmlGpmSampleGet
        if gpu.partition:
            shape = nvml.nvmlDeviceGetAttributes(gpu.handle)
            if shape.computeInstanceSliceCount != shape.gpuInstanceSliceCount:
                return Value(None, Status.UNSUPPORTED, "it shares its GPU instance, which GPM counts as one")
            instance = nvml.nvmlDeviceGetGpuInstanceId(gpu.handle)
            whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu.handle)
            take = lambda handle, sample: nvml.nvmlGpmMigSampleGet(handle, instance, sample)  # noqa: E731
        if not nvml.nvmlGpmQueryDeviceSupport(whole).isSupportedDevice:
            return Value(None, Status.UNSUPPORTED, "NVML has no GPM of this GPU: it came with Hopper")
        pair = _Pair(nvml, whole, take)
    except Exception as failure:  # a pynvml without the call, or NVML's own error
        if not errors.is_unsupported(failure):
            raise
        return Value(None, Status.UNSUPPORTED, str(failure))
    gpu.at_close(pair.close)
    return pair


class _Pair:
    """Two samples: the one that is kept, and the one that is read next."""

    def __init__(self, nvml: Any, handle: Any, take: Callable[[Any, Any], Any]) -> None:
        """Raises NVML's error, also AttributeError of a pynvml that is too old."""
        self._handle, self._take = handle, take
        self._get = nvml.c_nvmlGpmMetricsGet_t()
        self._get.version, self._get.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(METRICS)
        self._samples = [nvml.nvmlGpmSampleAlloc()]
        try:
            self._samples.append(nvml.nvmlGpmSampleAlloc())
        except nvml.NVMLError:
            self.close(nvml)
            raise
        self._at: float | None = None  # when the kept one was read
        self._last: _Answers | Exception = dict.fromkeys(METRICS, _FIRST)

    def ask(self, nvml: Any) -> _Answers:
        if self._at is None or time.monotonic() - self._at >= _LEAST:
            self._last = self._next(nvml)
        if isinstance(self._last, Exception):
            raise self._last
        return self._last

    def _next(self, nvml: Any) -> _Answers | Exception:
        kept, fresh = self._samples
        try:
            self._take(self._handle, fresh)
        except Exception as failure:
            self._at = None  # a window with a gap in it is none
            return failure
        first, self._at = self._at is None, time.monotonic()
        self._samples = [fresh, kept]
        if first:
            return dict.fromkeys(METRICS, _FIRST)
        self._get.sample1, self._get.sample2 = kept, fresh
        for place, metric in enumerate(METRICS):
            self._get.metrics[place].metricId = metric
        try:
            nvml.nvmlGpmMetricsGet(self._get)
        except Exception as failure:
            return failure
        return {metric: _answer(nvml, self._get.metrics[n]) for n, metric in enumerate(METRICS)}

    def close(self, nvml: Any) -> None:
        for sample in self._samples:
            nvml.nvmlGpmSampleFree(sample)


def _answer(nvml: Any, metric: Any) -> Answer:
    if metric.nvmlReturn == 0:
        return conv.fraction(metric.value)
    failure = nvml.NVMLError(errors.of_part(metric.nvmlReturn))
    return Value(None, errors.status(failure), str(failure))
