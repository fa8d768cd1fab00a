"""How it is doing: the table's rows for each device, planned once for each way of asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hal.backend import Call, Cost, GoneError, Group, Value, read_table
from hal.model import Reading
from hal_nvidia import errors, parts, rows
from hal_nvidia.fields import reader
from hal_nvidia.handles import Gpu, Handles

__all__ = ["sample"]

_FIELD_VALUES = "nvmlDeviceGetFieldValues"


class _Plan:
    """What one way of asking reads of one device."""

    __slots__ = ("calls", "fields", "hopeless", "ready")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.fields: list[tuple[int, int]] = []  # (field, scope), all in one call
        self.hopeless: set[int] = set()  # places in `fields` for which no other call helps
        self.ready: Any = None  # direct's: the call that asks for `fields`


def sample(
    handles: Handles, groups: Sequence[Group], ids: Sequence[str], deadline: float, costs: frozenset[Cost]
) -> list[Reading]:
    """Readings of each device in turn. Raises GoneError for an id that NVML does not know."""
    asked = (tuple(groups), costs)
    readings: list[Reading] = []
    for subject in ids:
        try:
            gpu = handles.find(subject)
        except GoneError as gone:
            if gone.vendor_code != errors.GPU_IS_LOST:
                raise
            # Its neighbours still have to be read.
            calls = _plan([*rows.CALLS, *rows.FIELDS], groups, costs).calls
            readings += read_table(calls, None, gone, subject, deadline, _failed)
            continue
        plan = gpu.plans.get(asked)
        if plan is None:
            plan = _plan(_rows(handles.nvml, gpu, groups, costs), groups, costs)
            if not gpu.doubtful:
                gpu.plans[asked] = plan
        gpu.plan, gpu.fields = plan, None
        readings += read_table(plan.calls, handles.nvml, gpu, subject, deadline, gpu.failed)
        if gpu.doubtful:
            handles.forget(subject)
    return readings


def _failed(failure: Exception) -> Value:
    return Value(None, errors.status(failure), str(failure))


def _rows(nvml: Any, gpu: Gpu, groups: Sequence[Group], costs: frozenset[Cost]) -> list[Call | rows.FieldRow]:
    """All that this device may answer; it is asked for its parts when they are wanted."""
    if gpu.partition:
        return [*rows.PARTITION_CALLS]
    found: list[Call | rows.FieldRow] = [*rows.CALLS, *rows.FIELDS]
    if Group.TEMPERATURE in groups and Cost.FAST in costs:
        found += parts.fan_rows(nvml, gpu)
    if Group.LINKS in groups:
        found += parts.link_rows(nvml, gpu)
    if Group.ERRORS in groups and Cost.SLOW in costs:
        found += parts.ecc_rows(nvml, gpu)
    return found


def _plan(found: Sequence[Call | rows.FieldRow], groups: Sequence[Group], costs: frozenset[Cost]) -> _Plan:
    plan = _Plan()
    for row in found:
        if row.group not in groups or row.cost not in costs:
            continue
        if isinstance(row, Call):
            plan.calls.append(row)
            continue
        read = reader(row.fields, len(plan.fields))
        plan.fields += [(field.field, field.scope) for field in row.fields]
        figures = tuple(field.figure for field in row.fields)
        plan.calls.append(Call(row.group, _FIELD_VALUES, row.scope, figures, read, row.cost))
    return plan
