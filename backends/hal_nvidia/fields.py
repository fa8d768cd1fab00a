"""Field values: all figures of a sample that NVML offers so, in one call for each device.

Rows that want fields name them when a sample is planned; the first row that is read makes the call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hal.backend import Answer, Figure, Value
from hal_nvidia import direct, errors
from hal_nvidia.handles import Gpu

__all__ = ["Field", "reader"]

_LATER = Value(None)  # stands where another call is needed

_VALUE = struct.Struct("=IIqqIIQ")  # nvmlFieldValue_t: field, scope, time, latency, type, status, value
_UNSIGNED_INT, _UNSIGNED_LONG, _UNSIGNED_LONG_LONG, _UNSIGNED_SHORT = 1, 2, 3, 6
_SIGNED = {4: "=q", 5: "=i4x"}


class Field(NamedTuple):
    """One figure that is a field; `otherwise` is how a driver without it is asked."""

    figure: Figure
    field: int
    convert: Callable[[object], Answer]
    scope: int = 0  # the link, for fields of links
    otherwise: Callable[[Any, Any], Answer] | None = None


def reader(wanted: Sequence[Field], first: int) -> Callable[[Any, Gpu], list[Answer]]:
    """Reads these fields, which are those from `first` on in the plan's list."""

    span = slice(first, first + len(wanted))
    converts = [field.convert for field in wanted]

    def read(nvml: Any, gpu: Gpu) -> list[Answer]:
        values = gpu.fields
        if values is None:
            values = gpu.fields = _ask(nvml, gpu)
        own = values[span]
        answers = [
            convert(raw) if status == 0 else _LATER
            for convert, (status, raw) in zip(converts, own, strict=True)
        ]
        if _LATER in answers:
            for number, (status, _) in enumerate(own):
                if status != 0:
                    answers[number] = _instead(nvml, gpu, wanted[number], first + number, status)
        return answers

    return read


def _ask(nvml: Any, gpu: Gpu) -> list[tuple[int, object]]:
    """(status, value) for each field of the plan; all of them fail when the call does."""
    try:
        raw = direct.field_values(nvml, gpu)
    except AttributeError:  # a pynvml that is too old to know the call
        return [(errors.FUNCTION_NOT_FOUND, None)] * len(gpu.plan.fields)
    except nvml.NVMLError as failure:
        return [(errors.code_of(failure) or errors.UNKNOWN, None)] * len(gpu.plan.fields)
    return [
        (errors.of_part(status), value if kind == _UNSIGNED_LONG_LONG else _decode(kind, value))
        for _, _, _, _, kind, status, value in _VALUE.iter_unpack(raw)
    ]


def _decode(kind: int, value: int) -> object:
    if kind == _UNSIGNED_INT:
        return value & 0xFFFF_FFFF
    if kind == _UNSIGNED_LONG:
        return value
    if kind == _UNSIGNED_SHORT:
        return value & 0xFFFF
    signed = _SIGNED.get(kind)
    return None if signed is None else struct.unpack(signed, value.to_bytes(8, "little"))[0]


def _instead(nvml: Any, gpu: Gpu, field: Field, number: int, status: int) -> Answer:
    """What the field's status means, or the figure by the older call where the driver has only that."""
    failure = nvml.NVMLError(status)
    if field.otherwise is None or number in gpu.plan.hopeless or not errors.is_unsupported(failure):
        return gpu.failed(failure)
    try:
        return field.otherwise(nvml, gpu)
    except Exception as other:  # a pynvml without the call, or NVML's own error
        if errors.is_unsupported(other):
            gpu.plan.hopeless.add(number)
        return gpu.failed(other)
