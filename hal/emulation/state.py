"""Writes a description into the shared state that the stand-in drivers map."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hal.backend import StateError
from hal.emulation.description import Description
from hal_native import ffi, lib

__all__ = ["write_state"]


def write_state(description: Description, path: Path) -> None:
    """Make the file. Raises StateError when that cannot be done."""
    if lib.hal_machine_create(os.fsencode(path), description.name.encode()) != 0:
        raise StateError(f"cannot make {path}: {os.strerror(ffi.errno)}")
    machine = lib.hal_machine_open(os.fsencode(path))
    try:
        _fill(machine, description.drivers)
        for index, figures in enumerate(description.devices):
            device = machine.device[index]
            for key, field in ffi.typeof("struct hal_machine_device").fields:
                if field.type is ffi.typeof("int64_t"):  # a figure, which this part may not have
                    setattr(device, key, lib.HAL_UNKNOWN)
            _fill(device, figures)
            machine.ledger.device[index].limit = device.memory_bytes - device.memory_reserved_bytes
        machine.devices = machine.ledger.devices = len(description.devices)
    finally:
        lib.hal_machine_close(machine)


def _fill(structure: Any, figures: dict[str, Any]) -> None:
    """Put figures into a structure's fields, and tables into the places of its lists."""
    for key, value in figures.items():
        if isinstance(value, list):
            for place, row in zip(getattr(structure, key), value, strict=False):
                place.made = 1
                _fill(place, row)
        else:
            setattr(structure, key, value.encode() if isinstance(value, str) else value)
