"""The one configuration of scheduler and agent: TOML, all of it optional (docs/configuration.md).

What the keys are is in hal/scheduler/sections.py. An error names the file, the key and what is expected
there.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from hal.backend import StateError
from hal.lines import parse_toml, text_of
from hal.scheduler.presets import Preset, typed_presets
from hal.scheduler.sections import (
    AgentSection,
    JobsSection,
    LimitsSection,
    SchedulerSection,
    SecuritySection,
)
from hal.selector import SelectorError, selector

__all__ = [
    "Config",
    "Price",
    "changed",
    "check_there",
    "configuration_file",
    "keys_directory",
    "load_config",
    "markdown",
    "reloaded",
    "usual_file",
]

_SYSTEM = Path("/etc/hal/hal.toml")


class Price(Struct, frozen=True):
    """Devices of which the selector holds cost this much; the first that does counts."""

    selector: str
    micros_per_hour: int


class Config(Struct, frozen=True, kw_only=True):
    """All that can be set; what is not has the default that is documented."""

    scheduler: SchedulerSection = SchedulerSection()
    limits: LimitsSection = LimitsSection()
    jobs: JobsSection = JobsSection()
    agent: AgentSection = AgentSection()
    security: SecuritySection = SecuritySection()
    prices: tuple[Price, ...] = ()
    classes: dict[str, Preset] = {}
    file: Path | None = None


_SECTIONS: dict[str, type[Struct]] = {
    "scheduler": SchedulerSection,
    "limits": LimitsSection,
    "jobs": JobsSection,
    "agent": AgentSection,
    "security": SecuritySection,
}
_TABLES = {
    "prices": "what a device costs an hour, in the currency of your choice: the key is a selector "
    "(docs/scheduler.md), and the first that holds counts: `'model.contains(\"H100\")' = 2.5`",
    "classes": "classes of requests, each a table as in `presets.toml` (docs/scheduler.md); one replaces "
    "hal's own of that name",
}


# ---- which file -------------------------------------------------------------------------------


def configuration_file(named: str | None, runtime: Path, *, private: bool = False) -> Path | None:
    """``named`` (--config), else HAL_CONFIG, else ``hal.toml`` in the runtime directory, else for root
    /etc/hal/hal.toml; None when there is none of them. A private daemon has nothing to do with the last."""
    chosen = os.environ.get("HAL_CONFIG") or None if named is None else named
    if chosen is not None:
        return Path(chosen).absolute()
    if (own := runtime / "hal.toml").exists():
        return own
    usual = usual_file(runtime)
    return usual if usual.exists() and not private else None


def usual_file(runtime: Path) -> Path:
    """Where one is that nobody names."""
    return _SYSTEM if os.geteuid() == 0 and "HAL_RUNTIME_DIR" not in os.environ else runtime / "hal.toml"


def keys_directory(config: Config, runtime: Path) -> Path:
    if config.security.keys is not None:
        beside = Path.cwd() if config.file is None else config.file.parent
        return beside / config.security.keys
    if "HAL_RUNTIME_DIR" in os.environ:
        return runtime / "keys"
    if os.geteuid() == 0:
        return _SYSTEM.parent / "keys"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hal" / "keys"


def load_config(path: Path | None) -> Config:
    """Raises StateError that names the file, the key and what is expected there."""
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            content = text_of(file)
    except UnicodeDecodeError:
        raise StateError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise StateError(f"cannot read the configuration {path}: {error.strerror}") from None
    if found.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(found.st_mode) & 0o002:
        raise StateError(
            f"{path} says who may do what, and others can change it: give it to the scheduler's user or "
            f"to root, and take the right to write from others (chmod o-w {path})"
        )
    try:
        tables = parse_toml(content)
    except ValueError as error:
        raise StateError(f"{path} is not TOML: {error}") from None
    try:
        return _typed(tables, path)
    except ValueError as error:
        said = str(error).replace("`", "'")
        raise StateError(f"{path}: {said}") from None


# ---- what it says -----------------------------------------------------------------------------


def _typed(tables: Mapping[str, Any], path: Path) -> Config:
    _only(tables, (*_SECTIONS, *_TABLES), "")
    sections: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        if name in tables:
            sections[name] = _section(name, tables[name], kind)
    for name in _TABLES:
        if not isinstance(tables.get(name, {}), dict):
            raise ValueError(f"{name}: expected a table, [{name}]")
    for title, table in tables.get("classes", {}).items():
        if isinstance(table, dict):
            _only(table, Preset.__struct_fields__, f"classes.{title}.")
    return Config(
        **sections,
        prices=tuple(_prices(tables.get("prices", {}))),
        classes=typed_presets(tables.get("classes", {}), prefix="classes."),
        file=path,
    )


def _section(name: str, table: Any, kind: type[Struct]) -> Struct:
    if not isinstance(table, dict):
        raise ValueError(f"{name}: expected a table, [{name}]")
    _only(table, kind.__struct_fields__, f"{name}.")
    for key, value in table.items():  # one by one, so that the error can name the key and nothing else
        if any("\0" in text for text in _texts(value)):
            raise ValueError(f"{name}.{key}: no name or path has a NUL in it")
        try:
            msgspec.convert({key: value}, kind)
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}.{_plainly(key, str(error), kind)}") from None
    return msgspec.convert(table, kind)


def _texts(value: Any) -> Iterator[str]:
    """All that are in it, keys too."""
    if isinstance(value, dict):
        for one in (*value.keys(), *value.values()):
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{where}{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"there is no key '{where}{key}'; {hint}")


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def _plainly(key: str, message: str, section: type[Struct]) -> str:
    """msgspec's sentence as one about a TOML file: "listen[0]: expected text, not a whole number"."""
    text, _, place = message.partition(" - at `$")
    place = place.rstrip("`").removeprefix(f".{key}")

    def kind(match: re.Match[str]) -> str:
        names = [_TYPES.get(name.strip(), name.strip()) for name in match[1].split("|")]
        return " or ".join(name for name in names if name != "nothing")

    text = re.sub(r"`([a-z| ]+)`", kind, text).replace(", got ", ", not ")
    if "matching regex" in text:
        text = "expected " + ("tcp://HOST:PORT" if key in ("listen", "scheduler") else "a short name")
    if text.startswith("Invalid enum value"):
        choices = ", ".join(_choices(get_type_hints(section)[key]))
        text = text.replace("Invalid enum value", f"expected one of {choices}, not")
    place = place.replace("[...]", "")
    return f"{key}{place}: {text[:1].lower()}{text[1:]}"


def _choices(hint: Any) -> Iterator[str]:
    """The words that a type allows."""
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        yield from (one.value for one in hint)
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for inner in get_args(hint):
            yield from _choices(inner)


def _prices(table: Mapping[str, Any]) -> Iterator[Price]:
    for text, value in table.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e6:
            raise ValueError(f"prices.'{text}': expected an amount per hour, such as 2.5")
        try:
            selector(text)
        except SelectorError as error:
            raise ValueError(f"prices.'{text}': {error}") from None
        yield Price(text, round(value * 1_000_000))


# ---- reloading --------------------------------------------------------------------------------


def changed(started: Config, before: Config, after: Config) -> tuple[list[str], list[str]]:
    """The keys that take effect now, as they are others than ``before``; and those that need a new start, as
    they are others than those that it was ``started`` with."""
    now: list[str] = []
    later: list[str] = []
    for name, kind in _SECTIONS.items():
        for key, is_live, _ in _keys(kind):
            runs = before if is_live else started
            if getattr(getattr(runs, name), key) != getattr(getattr(after, name), key):
                (now if is_live else later).append(f"{name}.{key}")
    now += [name for name in _TABLES if getattr(before, name) != getattr(after, name)]
    return now, later


def check_there(before: Config, after: Config) -> None:
    """A file that is gone does not stand for the defaults, which say otherwise who may do what."""
    if before.file is not None and after.file is None:
        raise StateError(f"{before.file} is no longer there")


def reloaded(started: Config, before: Config, after: Config) -> str:
    """What is told when the configuration was read again."""
    now, later = changed(started, before, after)
    waits = f"; with the next start: {', '.join(later)}" if later else ""
    return f"read the configuration again: {', '.join(now) or 'nothing'} changed{waits}"


def _keys(kind: type[Struct]) -> Iterator[tuple[str, bool, str]]:
    """Of each key: its name, whether it is live, and its description."""
    hints = get_type_hints(kind, include_extras=True)
    for key in kind.__struct_fields__:
        meta = next(one for one in hints[key].__metadata__ if isinstance(one, Meta) and one.extra)
        assert meta.extra is not None and meta.description is not None
        bounds = "" if meta.ge is None or meta.le is None else f" ({meta.ge} to {meta.le})"
        yield key, bool(meta.extra["live"]), meta.description + bounds


# ---- the page ---------------------------------------------------------------------------------


def markdown() -> str:
    """The tables of docs/configuration.md."""
    lines = []
    for name, kind in _SECTIONS.items():
        plain = kind()
        lines += [f"## [{name}]", "", "| key | default | at once | meaning |", "|---|---|---|---|"]
        for key, is_live, text in _keys(kind):
            default = getattr(plain, key)
            shown = "–" if default in (None, ()) or default == {} else f"`{_toml(default)}`"
            lines.append(f"| `{key}` | {shown} | {'yes' if is_live else 'no'} | {text} |")
        lines.append("")
    for name, text in _TABLES.items():
        lines += [f"## [{name}]", "", f"{text[:1].upper()}{text[1:]}. It takes effect at once.", ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value}"
