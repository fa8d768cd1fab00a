"""A request file: TOML as people write it, and where in it something is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from hal.backend import StateError
from hal.lines import parse_toml, read_text
from hal.scheduler.core.request import InvalidError, Request, check
from hal.units import parse_bytes, parse_seconds

__all__ = ["milli_of", "read_request"]

_HEADER = re.compile(r"\s*\[\[\s*(member|any|member\s*\.\s*any)\s*\]\]")
_STEP = re.compile(r"([a-z_]+)(?:\[(\d+)\])?")
_AT = re.compile(r"(?s)(.*?)(?: - at `\$\.?(.*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


class _FieldError(ValueError):
    """``field`` is a path as members[0].alternatives[1].count."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def milli_of(text: str) -> int:
    """A share, written as 50%, in thousandths."""
    number = text.strip().removesuffix("%")
    try:
        share = round(10 * float(number))
    except (ValueError, OverflowError):
        share = 0
    if not 1 <= share <= 1000:
        raise ValueError(f"'{text}' is no share: write it like 50%")
    return share


_UNITS = {
    "memory": ("memory_bytes", parse_bytes),
    "ram": ("ram_bytes", parse_bytes),
    "compute": ("compute_milli", milli_of),
    "cpu": ("cpu_milli", lambda cores: round(1000 * float(cores))),
    "max_price": ("max_micros_per_hour", lambda price: round(1_000_000 * float(price))),
    "slack": ("slack_ms", lambda text: round(1000 * parse_seconds(text))),
    "duration": ("duration_ms", lambda text: round(1000 * parse_seconds(text))),
    "deadline": ("deadline_ms", lambda text: round(1000 * parse_seconds(text))),
    "ttl": ("ttl_ms", lambda text: round(1000 * parse_seconds(text))),
}
_NAMES = {field: name for name, (field, _) in _UNITS.items()} | {"members": "member", "alternatives": "any"}


def read_request(path: Path) -> tuple[Request, str | None]:
    """The request, and the class that it is of. StateError names the line and the field."""
    try:
        text = read_text(path)
        content = parse_toml(text)
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise StateError(f"{path} is not TOML: {error}") from None
    try:
        request, preset = _converted(content)
        check(request)
    except _FieldError as error:
        field, message = error.field, str(error)
    except InvalidError as error:
        field, message = error.field, str(error).removeprefix(f"{error.field}: ")
    except msgspec.ValidationError as error:
        found = _AT.fullmatch(str(error))
        assert found is not None
        message, field = found[1], found[2] or ""
        if unknown := _UNKNOWN.fullmatch(message):
            field, message = f"{field}.{unknown[1]}".lstrip("."), "there is no such field"
    else:
        return request, preset
    line, name = _place(text, field)
    raise StateError(f"{path}, line {line}, field '{name}': {message}")


def _converted(content: dict[str, Any]) -> tuple[Request, str | None]:
    fields = _fields(content, "")
    if "member" in fields:
        fields["members"] = [
            _member(one, number) for number, one in enumerate(_list(fields.pop("member"), "member"))
        ]
    elif "any" in fields:
        fields["members"] = [_member({"any": fields.pop("any")}, 0)]
    preset = fields.pop("class", None)
    if not isinstance(preset, str | None):
        raise _FieldError("class", "it is the name of a class")
    return msgspec.convert(fields, Request), preset


def _member(table: dict[str, Any], number: int) -> dict[str, Any]:
    fields, where = dict(table), f"members[{number}].alternatives"
    if "any" in fields:
        fields["alternatives"] = [
            _fields(one, f"{where}[{place}].") for place, one in enumerate(_list(fields.pop("any"), where))
        ]
    return fields


def _list(value: Any, where: str) -> list[Any]:
    if not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
        raise _FieldError(where, "write members as [[member]] and alternatives as [[any]] or [[member.any]]")
    return value


def _fields(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Units as people write them, turned into whole numbers."""
    fields = dict(table)
    for name, (field, convert) in _UNITS.items():
        if name in fields:
            value = fields.pop(name)
            try:
                fields[field] = convert(value if name in ("cpu", "max_price") else str(value))
            except (ValueError, TypeError, OverflowError) as error:
                raise _FieldError(f"{where}{name}", str(error)) from None
    return fields


def _place(text: str, field: str) -> tuple[int, str]:
    """The line of a field, or else of the table that it is missing in; and its name in the file."""
    steps = [(_NAMES.get(step[1], step[1]), int(step[2] or 0)) for step in _STEP.finditer(field)]
    wanted = (
        next((n for name, n in steps if name == "member"), -1),
        next((n for name, n in steps if name == "any"), -1),
    )
    name = steps[-1][0] if steps else ""
    key = re.compile(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=")
    member, alternative, table = -1, -1, 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            if header[1] == "member":
                member, alternative = member + 1, -1
            else:
                member, alternative = max(member, 0), alternative + 1
            table = number if (member, alternative) == wanted or (member, -1) == wanted else table
        elif (member, alternative) == wanted and key.match(line):
            return number, name
        elif wanted != (-1, -1) and member == -1 and re.match(r"\s*(member|any)\s*=", line):
            table = number  # all of it in one place
    return table, name
