"""Writes a description into the shared state that the stand-in drivers map."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hal.backend import StateError
from hal.emulation.description import Description
from hal_native import ffi, lib

__all__ = ["write_state"]

# Of the machine's fields, those that are not the description's to set.
_HEAD = ("magic", "version", "size", "devices", "name", "device", "ledger", "hold", "timeline")


def write_state(description: Description, path: Path) -> None:
    """Make the file. Raises StateError for a field that the drivers do not know or a value out of range."""
    most = lib.HAL_LEDGER_DEVICES
    if len(description.devices) > most:
        raise StateError(
            f"{description.name}: a machine can have {most} devices, not {len(description.devices)}"
        )
    if lib.hal_machine_create(os.fsencode(path), description.name.encode()) != 0:
        raise StateError(f"cannot make {path}: {os.strerror(ffi.errno)}")
    machine = lib.hal_machine_open(os.fsencode(path))
    try:
        for key, value in description.drivers.items():
            _set(machine, key, value, f"{description.name}: drivers")
        for index, figures in enumerate(description.devices):
            where = f"{description.name}: devices[{index}]"
            device = machine.device[index]
            for key, field in ffi.typeof("struct hal_machine_device").fields:
                if field.type is ffi.typeof("int64_t"):  # a figure, which this part may not have
                    setattr(device, key, lib.HAL_UNKNOWN)
            for key, value in figures.items():
                _set(device, key, value, where)
            machine.ledger.device[index].limit = device.memory_bytes - device.memory_reserved_bytes
        machine.devices = machine.ledger.devices = len(description.devices)
    finally:
        lib.hal_machine_close(machine)


def _fields(structure: Any) -> dict[str, Any]:
    """Names and C types."""
    kind = ffi.typeof(structure)
    return {name: field.type for name, field in (kind.item if kind.kind == "pointer" else kind).fields}


def _set(structure: Any, key: str, value: int | str, where: str) -> None:
    kind = _fields(structure).get(key)
    if kind is None or key in _HEAD:
        raise StateError(f"{where}: unknown key '{key}'")
    raw = value.encode() if isinstance(value, str) else value
    # cffi takes a text that leaves no room for its end, and C stops at the first 0.
    if isinstance(raw, bytes) and kind.kind == "array" and (len(raw) >= kind.length or 0 in raw):
        raise StateError(
            f"{where}: {key} cannot be {value!r}: it has room for {kind.length - 1} bytes, none of them 0"
        )
    try:
        setattr(structure, key, raw)
    except (TypeError, OverflowError) as error:
        raise StateError(f"{where}: {key} cannot be {value!r}: {error}") from None
