"""The one configuration of scheduler and agent: TOML, all of it optional (docs/configuration.md).

Each key has its type, its bounds and its description here, and nowhere else: the page is made from them
(``markdown``). An error names the file, the key and what is expected there. Keys that are ``live`` take
effect at SIGHUP; the others at the next start.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from hal.backend import StateError
from hal.scheduler.presets import Preset, typed_presets
from hal.scheduler.security.environment import KEPT
from hal.scheduler.security.limits import Allowance
from hal.scheduler.security.roles import Role
from hal.selector import SelectorError, selector
from hal.units import parse_bytes

__all__ = [
    "AgentSection",
    "Config",
    "Price",
    "changed",
    "configuration_file",
    "keys_directory",
    "load_config",
    "markdown",
]

_SYSTEM = Path("/etc/hal/hal.toml")


def _key(text: str, *, live: bool = True, **bounds: Any) -> Meta:
    return Meta(description=text, extra={"live": live}, **bounds)


Seconds = float
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
Address = Annotated[str, Meta(pattern=r"^tcp://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.*_-]+):([0-9]{1,5}|\*)$")]


class SchedulerSection(Struct, frozen=True, kw_only=True):
    listen: Annotated[
        tuple[Address, ...],
        _key(
            "TCP addresses for agents and clients of other machines, such as `tcp://0.0.0.0:7421`; always "
            "with CURVE keys (`hal keys`). Without any only this machine is served",
            live=False,
        ),
    ] = ()
    lost_seconds: Annotated[
        Seconds, _key("a node that has said nothing for so long is lost: its leases are suspended", ge=2)
    ] = 5.0
    grace_seconds: Annotated[
        Seconds, _key("how long a lost node's leases wait for it before they are revoked", ge=0)
    ] = 60.0
    metrics: Annotated[
        str, _key("`HOST:PORT` at which /metrics and /health are served over HTTP; empty: not", live=False)
    ] = ""
    log: Annotated[
        Literal["text", "json"], _key("how the scheduler and the agent log to stderr", live=False)
    ] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _key("the least that is logged")] = (
        "info"
    )


class LimitsSection(Struct, frozen=True, kw_only=True):
    requests_per_second: Annotated[
        float, _key("of each client (a local user, or a key); admins and agents are not counted", gt=0)
    ] = 1000.0
    burst: Annotated[int, _key("requests that a client may send at once after a pause", ge=1)] = 2000
    outstanding: Annotated[
        int, _key("requests of a client that wait for an answer (`wait`, `watch`)", ge=1)
    ] = 256
    request_bytes: Annotated[int, _key("the largest request, at most 65536", ge=1024, le=65536)] = 65536
    queued: Annotated[
        int,
        _key(
            "messages that are kept for a connection in each direction; a client that leaves more unread "
            "loses what comes after",
            live=False,
            ge=8,
            le=10_000,
        ),
    ] = 128
    connections: Annotated[
        int,
        _key(
            "to the scheduler; with more, those of the user or host that has the most are cut. The limit of "
            "open files (`LimitNOFILE`) has to be four times as much",
            live=False,
            ge=64,
            le=100_000,
        ),
    ] = 4096
    memory: Annotated[
        str,
        _key(
            "of the scheduler: it cuts its connections when it has half of this, and the kernel gives it no "
            "more than all of it (RLIMIT_DATA). `none`: no limit",
            live=False,
        ),
    ] = "2GiB"

    def __post_init__(self) -> None:
        self.memory_bytes  # noqa: B018 - says what is wrong with it

    @property
    def memory_bytes(self) -> int | None:
        if self.memory == "none":
            return None
        size = parse_bytes(self.memory)
        if size < 256 << 20:
            raise ValueError("memory is at least 256MiB")
        return size

    @property
    def allowance(self) -> Allowance:
        return Allowance(self.requests_per_second, self.burst, self.outstanding, self.request_bytes)


class JobsSection(Struct, frozen=True, kw_only=True):
    run_as: Annotated[
        dict[str, str],
        _key(
            "for an agent that runs as root: which user's jobs run as whom, by the key's name or the local "
            'user\'s (`alice = "alice"`). Who is not named here runs none'
        ),
    ] = {}
    keep_environment: Annotated[
        tuple[str, ...],
        _key(
            "which of the agent's variables its jobs inherit; patterns as in a shell. What makes a program "
            "load code (`LD_*`, `PYTHON*`) is kept only when it is named in full, `HAL_*` never"
        ),
    ] = KEPT


class AgentSection(Struct, frozen=True, kw_only=True):
    scheduler: Annotated[
        Address | None,
        _key("the scheduler's address, where neither option nor variable names one", live=False),
    ] = None
    key: Annotated[
        str | None, _key("the agent's key file, made by `hal keys new NODE --role agent`", live=False)
    ] = None
    node: Annotated[
        Name | None,
        _key("this node's name, the same as its key's; none: the key's, or the host's", live=False),
    ] = None
    labels: Annotated[
        dict[str, str],
        _key('what the scheduler is told of this node, such as `zone = "a"`', live=False),
    ] = {}


class SecuritySection(Struct, frozen=True, kw_only=True):
    keys: Annotated[
        str | None,
        _key(
            "the directory of keys; none: `/etc/hal/keys` for root, else `~/.config/hal/keys`, and with "
            "HAL_RUNTIME_DIR `keys` in it",
            live=False,
        ),
    ] = None
    group: Annotated[
        str | None,
        _key(
            "a group of this machine whose members are served, too: the runtime directory is opened to it "
            "(0750). None: only the scheduler's own user and root",
            live=False,
        ),
    ] = None
    roles: Annotated[
        dict[str, Role],
        _key(
            "of local users, by name or uid; who is not named is a `user`. Root and the scheduler's own user "
            "are always `admin`"
        ),
    ] = {}
    audit: Annotated[
        str | None,
        _key(
            "where it is noted who did what, seen from the runtime directory; none: `audit.log` in it when "
            "others than the scheduler's own user are served, else nowhere",
            live=False,
        ),
    ] = None
    audit_size: Annotated[str, _key("a file larger than this is put aside as `audit.log.1` and so on")] = (
        "16MiB"
    )
    audit_files: Annotated[int, _key("how many that were put aside are kept", ge=0, le=1000)] = 8

    def __post_init__(self) -> None:
        parse_bytes(self.audit_size)


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
    chosen = named or os.environ.get("HAL_CONFIG")
    if chosen:
        return Path(chosen).absolute()
    if (own := runtime / "hal.toml").exists():
        return own
    machine_wide = os.geteuid() == 0 and not private and "HAL_RUNTIME_DIR" not in os.environ
    return _SYSTEM if machine_wide and _SYSTEM.exists() else None


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
            content = file.read().decode()
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
        tables = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
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
        try:
            msgspec.convert({key: value}, kind)
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}.{_plainly(key, str(error), kind)}") from None
    return msgspec.convert(table, kind)


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


def changed(before: Config, after: Config) -> tuple[list[str], list[str]]:
    """The keys that differ: those that take effect now, and those that need a new start."""
    now: list[str] = []
    later: list[str] = []
    for name, kind in _SECTIONS.items():
        for key, is_live, _ in _keys(kind):
            if getattr(getattr(before, name), key) != getattr(getattr(after, name), key):
                (now if is_live else later).append(f"{name}.{key}")
    now += [name for name in _TABLES if getattr(before, name) != getattr(after, name)]
    return now, later


def _keys(kind: type[Struct]) -> Iterator[tuple[str, bool, str]]:
    """Of each key: its name, whether it is live, and its description."""
    hints = get_type_hints(kind, include_extras=True)
    for key in kind.__struct_fields__:
        meta = next(one for one in hints[key].__metadata__ if isinstance(one, Meta) and one.extra)
        assert meta.extra is not None and meta.description is not None
        yield key, bool(meta.extra["live"]), meta.description


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
