"""Classes of work, as operators name and edit them (presets.toml)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from hal.backend import StateError
from hal.lines import parse_toml, read_text
from hal.scheduler.core.request import Alternative, InvalidError, Member, Request, check
from hal.units import parse_bytes, parse_seconds

__all__ = ["Preset", "load", "typed_presets", "with_preset"]


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request of the class gets for every field that it leaves as it is."""

    priority: int | None = None
    preemptible: bool | None = None
    price_weight: int | None = None
    requeue: bool | None = None
    movable: bool | None = None
    fallback: tuple[Alternative, ...] = ()  # behind each member's own alternatives


def load(path: Path | None = None) -> dict[str, Preset]:
    """hal's own, and those of a file. Raises StateError that names the file, the class and the field."""
    own = (files("hal.scheduler") / "presets.toml").read_text()
    presets = _read(own, "presets.toml")
    if path is not None:
        try:
            presets |= _read(read_text(path), str(path))
        except OSError as error:
            raise StateError(f"cannot read the presets {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise StateError(f"cannot read the presets {path}: it is not UTF-8") from None
    return presets


def with_preset(request: Request, preset: Preset) -> Request:
    """The request, with the preset's values where it has the defaults."""
    changes: dict[str, Any] = {}
    plain = Request()
    for field in ("priority", "preemptible", "price_weight", "requeue", "movable"):
        value = getattr(preset, field)
        if value is not None and getattr(request, field) == getattr(plain, field):
            changes[field] = value
    if preset.fallback:
        changes["members"] = tuple(
            replace(member, alternatives=member.alternatives + _behind(member, preset.fallback))
            for member in request.members
        )
    return replace(request, **changes)


def _behind(member: Member, fallback: tuple[Alternative, ...]) -> tuple[Alternative, ...]:
    """As alternatives of the least weight: what a member has of its own goes first."""
    least = min((one.weight for one in member.alternatives), default=1)
    return tuple(replace(one, weight=min(one.weight, least)) for one in fallback)


def _read(text: str, name: str) -> dict[str, Preset]:
    try:
        content: Mapping[str, Any] = parse_toml(text)
    except ValueError as error:
        raise StateError(f"the presets {name} are not TOML: {error}") from None
    try:
        return typed_presets(content)
    except ValueError as error:
        raise StateError(f"the presets {name}, {error}") from None


def typed_presets(content: Mapping[str, Any], *, prefix: str = "") -> dict[str, Preset]:
    """Of tables as TOML has them. Raises ValueError that names the class, after ``prefix``, and the field."""
    presets = {}
    for title, table in content.items():
        try:
            presets[title] = msgspec.convert(_fields(table), Preset)
            check(Request(members=(Member(presets[title].fallback or (Alternative(),)),)))
            check(with_preset(Request(), msgspec.structs.replace(presets[title], fallback=())))
        except (msgspec.ValidationError, InvalidError, ValueError) as error:
            raise ValueError(f"[{prefix}{title}]: {error}") from None
    return presets


def _fields(table: Any) -> dict[str, Any]:
    """Raises ValueError where a table or a list of tables is wanted, and there is something else."""
    if not isinstance(table, dict):
        raise ValueError("a class is a table, such as {priority = 1}")
    fallback = table.get("fallback", [])
    if not (isinstance(fallback, list) and all(isinstance(one, dict) for one in fallback)):
        raise ValueError('fallback is a list of tables, such as [{memory = "8GiB"}]')
    return table | {"fallback": [_alternative(dict(one)) for one in fallback]}


def _alternative(fields: dict[str, Any]) -> dict[str, Any]:
    """Sizes and times as people write them."""
    if "memory" in fields:
        fields["memory_bytes"] = parse_bytes(str(fields.pop("memory")))
    if "slack" in fields:
        fields["slack_ms"] = round(1000 * parse_seconds(str(fields.pop("slack"))))
    return fields
