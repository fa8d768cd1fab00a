"""Machine descriptions: TOML files that name models and say where each device sits.

A machine lists its devices by model; a model (``models/``) holds a part's published figures. Any field
of a model can be given again for one device. Both are checked against the layout that the stand-in
drivers read (native/include/hal_machine.h), so a field that they do not know is an error, not a no-op.
"""

from __future__ import annotations

import re
import tomllib
import uuid
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from msgspec import Struct

from hal.backend import GoneError, StateError

__all__ = ["Description", "load", "names"]

SCHEMA = "hal.machine/1"
_FOLDER = files("hal.emulation")
_BDF = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_NAMESPACE = uuid.UUID("5d0c3e0c-5f0f-4d53-9a35-6a3d8f1f6f0a")


class Description(Struct, frozen=True):
    """A machine, ready to be written into its shared state: fields by their names there."""

    name: str
    description: str
    drivers: dict[str, int | str]
    devices: tuple[dict[str, int | str], ...]


def names() -> list[str]:
    """The machines that come with hal."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (_FOLDER / "machines").iterdir()
        if entry.name.endswith(".toml")
    )


def load(name: str) -> Description:
    """A machine that comes with hal, or a file ending in ``.toml``.

    Raises GoneError for an unknown name and StateError, naming the file and the key, for a mistake in it.
    """
    if name.endswith(".toml"):
        source: Traversable = Path(name)
        label = name
    elif name in names():
        source = _FOLDER / "machines" / f"{name}.toml"
        label = name
    else:
        raise GoneError(
            f"no machine '{name}'; those that come with hal are: {', '.join(names())} "
            "(or name a .toml file of your own)"
        )
    raw = _read(source, label)
    if raw.pop("schema", None) != SCHEMA:
        raise StateError(f'{label}: it has to begin with schema = "{SCHEMA}"')
    machine = label.rpartition("/")[2].removesuffix(".toml")
    text = str(raw.pop("description", machine))
    drivers = _table(raw.pop("drivers", {}), f"{label}: drivers")
    rows = raw.pop("devices", [])
    if not isinstance(rows, list):
        raise StateError(f"{label}: devices has to be a list of tables, each written [[devices]]")
    if raw:
        raise StateError(f"{label}: unknown key '{next(iter(raw))}'")
    places = [_table(row, f"{label}: devices[{n}]") for n, row in enumerate(rows)]
    addresses = [place.get("pci") for place in places]
    devices = tuple(_device(place, machine, f"{label}: devices[{n}]") for n, place in enumerate(places))
    for n, address in enumerate(addresses):
        if address in addresses[:n]:
            raise StateError(f"{label}: devices[{n}]: pci {address} is that of another device, too")
    return Description(machine, text, drivers, devices)


def _device(row: dict[str, Any], machine: str, where: str) -> dict[str, int | str]:
    model = row.pop("model", None)
    source = _FOLDER / "models" / f"{model}.toml"
    if not isinstance(model, str) or not re.fullmatch(r"[\w.-]+", model) or not source.is_file():
        known = sorted(x.name.removesuffix(".toml") for x in (_FOLDER / "models").iterdir())
        raise StateError(f"{where}: unknown model '{model}'; the models are: {', '.join(known)}")
    figures = _read(source, model)
    figures |= figures.pop("sensors", {})
    bdf = row.pop("pci", None)
    match = _BDF.fullmatch(bdf) if isinstance(bdf, str) else None
    if match is None:
        raise StateError(f"{where}: pci has to be an address like 0000:3b:00.0, not '{bdf}'")
    domain, bus, device, function = (int(part, 16) for part in match.groups())
    figures |= {"pci_domain": domain, "pci_bus": bus, "pci_device": device, "pci_function": function}
    figures |= _identity(str(figures.get("uuid", "{uuid}")), f"{machine}/{bdf}")
    figures |= row
    size, reserved = figures.get("memory_bytes", 0), figures.get("memory_reserved_bytes", 0)
    if not isinstance(size, int) or not isinstance(reserved, int) or size <= reserved:
        raise StateError(f"{where}: memory_bytes has to be more than memory_reserved_bytes")
    return figures


def _identity(pattern: str, place: str) -> dict[str, str]:
    """A UUID, written as the model's own library writes it, and a serial number: always the same."""
    stable = uuid.uuid5(_NAMESPACE, place)
    return {"uuid": pattern.replace("{uuid}", str(stable)), "serial": f"{stable.int >> 64:016x}"}


def _read(source: Traversable, label: str) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read the machine description {label}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise StateError(f"{label}: {error}") from error


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StateError(f"{where} has to be a table")
    for key, entry in value.items():
        if not isinstance(entry, (int, str)) or isinstance(entry, bool):
            raise StateError(f"{where}: {key} has to be a number or a text")
    return dict(value)
