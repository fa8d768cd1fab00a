"""The fields that a machine description can set, from the layout that the stand-in drivers read.

That is native/include/hal_machine.h: a field that they do not know is an error, not a no-op.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from hal_native import ffi, lib

__all__ = ["Field", "device_fields", "driver_fields", "wrong"]

# Of the machine's fields and of a device's, those that are not the description's to set.
_HEAD = {"magic", "version", "size", "devices", "name", "device", "ledger", "created", "nvidia_xid",
         "nvidia_xids", "hold", "timeline"}  # fmt: skip
_PLACE = {"pci_domain", "pci_bus", "pci_device", "pci_function"}  # `pci` says them
_FORMS = {
    "pci_path": (
        re.compile(r"(pci[0-9a-f]{4}:[0-9a-f]{2}(/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])*)?"),
        "a path below /sys/devices like pci0000:14/0000:14:01.0",
    )
}  # texts that are more than words
_RANGES = {"percent": 100, "celsius": 300}  # by the last word of a name: the most that it can be


class Field(NamedTuple):
    """What a field can hold: a text of so many bytes, a number in a range, or a list of tables."""

    room: int = 0
    low: int = 0
    high: int = 0
    most: int = 0
    members: Mapping[str, Field] | None = None


@cache
def driver_fields() -> Mapping[str, Field]:
    """Those of [drivers]."""
    return _fields(ffi.typeof("struct hal_machine"), _HEAD)


@cache
def device_fields() -> Mapping[str, Field]:
    """Those of a device and of a model."""
    return _fields(ffi.typeof("struct hal_machine_device"), _PLACE)


def _fields(structure: Any, without: set[str]) -> dict[str, Field]:
    return {name: _field(name, field.type) for name, field in structure.fields if name not in without}


def _field(name: str, kind: Any) -> Field:
    if kind.kind == "array" and kind.item.kind == "struct":
        return Field(most=kind.length, members=_fields(kind.item, set()))
    if kind.kind == "array":
        return Field(room=kind.length - 1)
    bits = 8 * ffi.sizeof(kind)
    if not kind.cname.startswith("u"):
        # A figure, which this part may not have; what is below nothing is a degree, or a mistake.
        low = -273 if name.endswith("_celsius") else lib.HAL_UNKNOWN
        return Field(low=low, high=_RANGES.get(name.rpartition("_")[2], 2 ** (bits - 1) - 1))
    return Field(low=0, high=2**bits - 1)


def wrong(key: str, field: Field, value: object) -> str:
    """Why a field cannot hold a value; empty when it can. Lists of tables are looked into by others."""
    if field.members is not None:
        if not isinstance(value, list) or len(value) > field.most:
            return f"{key} has to be a list of at most {field.most} tables"
        return ""
    if field.room:
        if not isinstance(value, str):
            return f"{key} has to be a text, not {_word(value)}"
        raw = value.encode()
        # C stops at the first 0.
        if len(raw) > field.room or 0 in raw:
            return f"{key} cannot be {value!r}: it has room for {field.room} bytes, none of them 0"
        form, like = _FORMS.get(key, (None, ""))
        return f"{key} has to be {like}, not {value!r}" if form and not form.fullmatch(value) else ""
    if not isinstance(value, int) or isinstance(value, bool):
        return f"{key} has to be a whole number, not {_word(value)}"
    if not field.low <= value <= field.high:
        return f"{key} cannot be {value}: it has to be from {field.low} to {field.high}"
    return ""


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
