"""Writes the machine at hand as a machine description, from what its backends say of it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from typing import Any

from hal import pci
from hal.emulation.description import SCHEMA
from hal.emulation.fields import device_fields, driver_fields, wrong
from hal.model import Device, DeviceKind, Portrait

__all__ = ["captured"]

_OWN = ("uuid", "serial")  # of one device only
_NAMESPACE = uuid.UUID("0c5b1a52-8d3c-4b5e-9a55-0d4b1f0e6f6e")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def captured(devices: Iterable[Device], portrait: Portrait, *, anonymous: bool = False) -> str:
    """The description's text. Devices of one model share a table of what is the same for all of them.

    A device that no backend describes cannot be emulated: a comment names it. With ``anonymous``,
    UUIDs and serial numbers are replaced by made-up ones, the same for the same.
    """
    rows: dict[str, dict[str, Any]] = {}
    without: list[str] = []
    for device in devices:
        if device.kind is DeviceKind.CPU:
            continue
        figures = portrait.devices.get(device.id)
        if figures is None or device.pci is None:
            without.append(device.vendor if anonymous else device.id)
            continue
        fields = device_fields()
        known = {k: v for k, v in figures.items() if k in fields and not wrong(k, fields[k], v)}
        above = "/".join(pci.bridges(device.pci.bdf))
        rows[device.pci.bdf] = known | ({"pci_path": above} if above else {})
    if anonymous:
        _anonymize(list(rows.values()))
    kinds: dict[_Kind, list[dict[str, Any]]] = {}
    for figures in rows.values():
        kinds.setdefault(_kind(figures), []).append(figures)
    names = _names(kinds)
    shared = {kind: _shared(members) for kind, members in kinds.items()}
    lines = [
        "# Captured by hal: what this machine's drivers said of its devices. What is not here was not told.",
        *(f"# Not captured, as no backend describes it: {one}" for one in without),
        f"schema = {_value(SCHEMA)}",
        f"description = {_value(_summary(kinds))}",
        "",
        "[drivers]",
        *_pairs({k: v for k, v in portrait.drivers.items() if k in driver_fields()}),
    ]
    for kind, figures in shared.items():
        lines += ["", f"[models.{names[kind]}]", *_pairs(figures)]
    for bdf, figures in rows.items():
        kind = _kind(figures)
        own = {field: value for field, value in figures.items() if field not in shared[kind]}
        lines += ["", "[[devices]]", f"model = {_value(names[kind])}", f"pci = {_value(bdf)}", *_pairs(own)]
    return "\n".join(lines) + "\n"


_Kind = tuple[str, int]  # what it is called, and its memory: parts may share a name


def _kind(figures: dict[str, Any]) -> _Kind:
    return str(figures.get("model")), int(figures.get("memory_bytes", 0))


def _shared(members: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = members
    return {
        field: value
        for field, value in first.items()
        if field not in _OWN and all(other.get(field) == value for other in others)
    }


def _names(kinds: Iterable[_Kind]) -> dict[_Kind, str]:
    """A key for each model, as the models of hal's own are named."""
    names: dict[_Kind, str] = {}
    for kind in kinds:
        word = re.sub(r"[^a-z0-9]+", "-", kind[0].lower()).strip("-") or "device"
        names[kind] = word if word not in names.values() else f"{word}-{len(names)}"
    return names


def _summary(kinds: dict[_Kind, list[dict[str, Any]]]) -> str:
    each = [f"{len(members)} × {model}" for (model, _), members in kinds.items()]
    return "captured: " + (", ".join(each) or "a machine without any accelerator")


def _anonymize(rows: list[dict[str, Any]]) -> None:
    """By order of appearance: nothing of what was there can be got back from what is."""
    made: dict[str, str] = {}
    for figures in rows:
        for field in _OWN:
            old = figures.get(field)
            if old is None:
                continue
            if old not in made:
                number = len(made) + 1
                other = str(uuid.uuid5(_NAMESPACE, str(number)))
                made[old] = _UUID.sub(other, old) if _UUID.search(old) else f"{number:0{len(old)}d}"
            figures[field] = made[old]


def _pairs(figures: dict[str, Any]) -> list[str]:
    return [f"{field} = {_value(value)}" for field, value in figures.items()]


def _value(value: Any) -> str:
    """In TOML, whose strings are JSON's but for one character."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        nested = any(isinstance(entry, dict) and len(entry) > 3 for entry in value)
        between = ",\n  " if nested else ", "
        inside = between.join(map(_value, value))
        return f"[\n  {inside},\n]" if nested else f"[{inside}]"
    return str(int(value))
