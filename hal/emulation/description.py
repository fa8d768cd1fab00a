"""Machine descriptions: TOML files that name models and say where each device sits.

A machine lists its devices by model; a model (``models/``, or ``[models.NAME]`` of the same file) holds a
part's figures. Any field of a model can be given again for one device, or under ``[defaults]`` for all.
A mistake is one sentence with the file and the line.
"""

from __future__ import annotations

import re
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from msgspec import Struct

from hal.backend import GoneError, StateError
from hal.emulation.fields import Field, device_fields, driver_fields, wrong
from hal.lines import Place, line_of, line_of_fault, nearest
from hal_native import lib

__all__ = ["SCHEMA", "Description", "load", "names", "parse"]

SCHEMA = "hal.machine/1"
_FOLDER = files("hal.emulation")
_BDF = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_NAMESPACE = uuid.UUID("5d0c3e0c-5f0f-4d53-9a35-6a3d8f1f6f0a")
_TOP = ["schema", "description", "drivers", "defaults", "models", "devices"]
_NEEDED = ("vendor", "model", "memory_bytes")  # what a model cannot do without

Figures = dict[str, Any]


class Description(Struct, frozen=True):
    """A machine, ready to be written into its shared state: fields by their names there."""

    name: str
    description: str
    drivers: dict[str, int | str]
    devices: tuple[Figures, ...]


class _MistakeError(Exception):
    """What is wrong, and the places in the text that it is about. Stays in this file."""

    def __init__(self, what: str, *places: Place) -> None:
        super().__init__(what)
        self.places = places


def names() -> list[str]:
    """The machines that come with hal."""
    return _there("machines")


def load(name: str) -> Description:
    """A machine that comes with hal, or a file ending in ``.toml``.

    Raises GoneError for an unknown name and StateError, naming the file, the line and the key, for a
    mistake in it.
    """
    if name.endswith(".toml"):
        return parse(_text(Path(name), name), name)
    if name not in names():
        raise GoneError(
            f"no machine '{name}'; those that come with hal are: {', '.join(names())} "
            "(or name a .toml file of your own)"
        )
    return parse(_text(_FOLDER / "machines" / f"{name}.toml", name), name)


def parse(text: str, label: str) -> Description:
    """A description that has been read; ``label`` is its file's name. Raises StateError as ``load``."""
    try:
        return _machine(tomllib.loads(text), label.rpartition("/")[2].removesuffix(".toml"))
    except tomllib.TOMLDecodeError as error:
        line, what = line_of_fault(text, error)
        raise StateError(f"{label}, line {line}: this is not TOML: {what}") from error
    except _MistakeError as mistake:
        lines = [line_of(text, place) for place in mistake.places] or [1]
        also = "".join(f" (see line {line}, too)" for line in lines[1:])
        raise StateError(f"{label}, line {lines[0]}: {mistake}{also}") from mistake


def _machine(raw: dict[str, Any], name: str) -> Description:
    strange = [key for key in raw if key not in _TOP]
    if raw.get("schema", None if strange else "") not in (SCHEMA, None):
        raise _MistakeError(f'it has to begin with schema = "{SCHEMA}"', ("schema",))
    if strange:
        raise _MistakeError(_unknown(strange[0], _TOP), (strange[0],))
    text = raw.get("description", name)
    if not isinstance(text, str):
        raise _MistakeError("description has to be a text", ("description",))
    drivers = _table(raw.get("drivers", {}), ("drivers",), driver_fields())
    shared = {key: field for key, field in device_fields().items() if key not in ("uuid", "serial")}
    defaults = _table(raw.get("defaults", {}), ("defaults",), shared)
    models = raw.get("models", {})
    if not isinstance(models, dict):
        raise _MistakeError("models has to be tables, each written [models.NAME]", ("models",))
    own = {key: _model(model, ("models", key)) for key, model in models.items()}
    rows = raw.get("devices", [])
    if not isinstance(rows, list):
        raise _MistakeError("devices has to be a list of tables, each written [[devices]]", ("devices",))
    if len(rows) > lib.HAL_LEDGER_DEVICES:
        most = lib.HAL_LEDGER_DEVICES
        raise _MistakeError(f"a machine can have {most} devices, not {len(rows)}", ("devices", most))
    devices = tuple(_device(row, n, name, defaults, own) for n, row in enumerate(rows))
    _apart(rows)
    return Description(name, text, drivers, devices)


def _apart(rows: list[dict[str, Any]]) -> None:
    """No two devices in one place, and none that programs would take for another."""
    for key in ("pci", "uuid"):
        first: dict[str, int] = {}
        for n, row in enumerate(rows):
            if key in row and first.setdefault(row[key], n) != n:
                other = ("devices", first[row[key]], key)
                what = f"devices[{n}]: {key} {row[key]} is that of another device, too"
                raise _MistakeError(what, ("devices", n, key), other)


def _device(row: Any, n: int, machine: str, defaults: Figures, own: Mapping[str, Figures]) -> Figures:
    place = ("devices", n)
    if not isinstance(row, dict):
        raise _MistakeError(f"devices[{n}] has to be a table", place)
    given = _table({k: v for k, v in row.items() if k not in ("model", "pci")}, place, device_fields())
    figures, choices = _figures_of(row.get("model"), place, own)
    bdf = row.get("pci")
    match = _BDF.fullmatch(bdf) if isinstance(bdf, str) else None
    if match is None:
        what = f"devices[{n}]: pci has to be an address like 0000:3b:00.0, not '{bdf}'"
        raise _MistakeError(what, (*place, "pci"))
    domain, bus, device, function = (int(part, 16) for part in match.groups())

    def told(key: str) -> Place:
        """Where a figure of this device is given."""
        if key in row:
            return (*place, key)
        if key in defaults:
            return ("defaults", key)
        name = row["model"]
        return ("models", name, key) if name in own else place

    figures |= {"pci_domain": domain, "pci_bus": bus, "pci_device": device, "pci_function": function}
    figures |= _identity(str(figures.get("uuid", "{uuid}")), f"{machine}/{bdf}")
    figures |= defaults | given
    size, reserved = figures["memory_bytes"], figures.get("memory_reserved_bytes", 0)
    if size <= reserved:
        what = f"devices[{n}]: memory_bytes has to be more than memory_reserved_bytes"
        raise _MistakeError(what, *_places(told, ["memory_bytes", "memory_reserved_bytes"]))
    _chosen(figures, choices, n, told)
    return figures


def _chosen(figures: Figures, choices: dict[str, list[Any]], n: int, told: Callable[[str], Place]) -> None:
    """Fields of which a part has only some combinations, as its model lists them."""
    for names_of, legal in choices.items():
        keys = names_of.split("+")
        now = [figures.get(key, "") for key in keys]
        if now in legal:
            continue
        wanted = ", ".join("/".join(map(str, pair)) for pair in legal)
        what = " with ".join(f"{key} {value}" for key, value in zip(keys, now, strict=True))
        what = f"devices[{n}]: this part has no {what}, only {wanted}"
        raise _MistakeError(what, *_places(told, keys))


def _places(told: Callable[[str], Place], keys: list[str]) -> list[Place]:
    """Where some figures of a device are given, those of its own table first."""
    return sorted(dict.fromkeys(told(key) for key in keys), key=len, reverse=True)


def _figures_of(
    model: object, place: Place, own: Mapping[str, Figures]
) -> tuple[Figures, dict[str, list[Any]]]:
    """A model's figures, and which combinations of them it has."""
    if isinstance(model, str) and model in own:
        figures = dict(own[model])
    elif isinstance(model, str) and model in _there("models"):
        figures = dict(_figures_of_hals(model))
    else:
        known = [*own, *_there("models")]
        what = f"devices[{place[1]}]: unknown model '{model}'; the models are: {', '.join(known)}"
        raise _MistakeError(what, (*place, "model"))
    return figures, figures.pop("choices", {})


@cache
def _figures_of_hals(model: str) -> Figures:
    return _model(tomllib.loads(_model_text(model)), ("models", model))


def _model(raw: Any, place: Place) -> Figures:
    """The figures of a model; of those of an idle part's sensors, too, and the combinations apart."""
    if not isinstance(raw, dict):
        raise _MistakeError(f"{_words(place)} has to be a table", place)
    rest = {key: value for key, value in raw.items() if key not in ("sensors", "choices")}
    figures = _table(rest, place, device_fields())
    figures |= _table(raw.get("sensors", {}), (*place, "sensors"), device_fields())
    for key in _NEEDED:
        if key not in figures:
            raise _MistakeError(f"{_words(place)}: {key} is missing", place)
    choices = raw.get("choices", {})
    if not _are_choices(choices):
        what = 'choices has to be like "FIELD+FIELD" = [["A", "B"], ["A", "C"]]'
        raise _MistakeError(f"{_words(place)}: {what}", (*place, "choices"))
    return figures | {"choices": choices}


def _are_choices(choices: object) -> bool:
    """Names of fields with a plus between them, and for each the lists of values that go together."""
    return isinstance(choices, dict) and all(
        isinstance(legal, list)
        and all(key in device_fields() for key in fields.split("+"))
        and all(isinstance(one, list) and len(one) == fields.count("+") + 1 for one in legal)
        for fields, legal in choices.items()
    )


@cache
def _vendors() -> list[str]:
    """Those that there are models of, and so stand-in drivers for."""
    said = (re.search(r'^vendor = "(\w+)"', _model_text(name), re.MULTILINE) for name in _there("models"))
    return sorted({match[1] for match in said if match})


def _model_text(name: str) -> str:
    return _text(_FOLDER / "models" / f"{name}.toml", name)


def _identity(pattern: str, place: str) -> dict[str, str]:
    """A UUID, written as the model's own library writes it, and a serial number: always the same."""
    stable = uuid.uuid5(_NAMESPACE, place)
    return {"uuid": pattern.replace("{uuid}", str(stable)), "serial": f"{stable.int >> 64:016x}"}


@cache
def _there(folder: str) -> list[str]:
    found = (entry.name for entry in (_FOLDER / folder).iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def _text(source: Traversable, label: str) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise StateError(f"cannot read the machine description {label}: {why}") from error


def _unknown(key: str, known: Iterable[str]) -> str:
    return f"unknown key '{key}'{nearest(key, known)}"


def _words(place: Place) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def _table(value: object, place: Place, fields: Mapping[str, Field]) -> Figures:
    """A table that has fields of the stand-ins' only, each with a value that fits."""
    if not isinstance(value, dict):
        raise _MistakeError(f"{_words(place)} has to be a table", place)
    for key, entry in value.items():
        field = fields.get(key)
        fault = _unknown(key, fields) if field is None else wrong(key, field, entry)
        if key == "vendor" and entry not in _vendors():
            fault = f"vendor has to be one of {', '.join(_vendors())}, not {entry!r}"
        if fault:
            raise _MistakeError(f"{_words(place)}: {fault}", (*place, key))
        if field is not None and field.members is not None:
            for n, row in enumerate(entry):
                _table(row, (*place, key, n), field.members)
    return dict(value)
