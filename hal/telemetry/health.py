"""Health: a policy, as data, that turns figures and events into a state with its reasons.

Deciding is a pure function over readings and events; ``health.toml`` is the policy that comes with hal.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

import msgspec
from msgspec import Struct

from hal.backend import Group, StateError
from hal.lines import Place, line_of, line_of_fault, nearest
from hal.model import Event, EventKind, Reading, Status
from hal.telemetry.catalogue import CATALOGUE

__all__ = ["Condition", "Health", "HealthState", "Policy", "assess", "load_policy"]

SCHEMA = "hal.health/1"


class HealthState(StrEnum):
    OK = "ok"
    UNKNOWN = "unknown"  # nothing that the policy looks at could be read
    PREDICTED = "predicted"  # likely to fail
    DEGRADED = "degraded"  # works, but less than it should
    FAILED = "failed"


_WORST_LAST = list(HealthState)


class Condition(Struct, frozen=True):
    """One reason."""

    state: HealthState
    reason: str
    evidence: str  # the reading or event that it comes from
    source: str  # who says that this is so


class Health(Struct, frozen=True):
    subject: str
    state: HealthState
    conditions: tuple[Condition, ...] = ()


class FigureRule(Struct, frozen=True, forbid_unknown_fields=True):
    metric: str
    above: float
    state: HealthState
    reason: str
    source: str
    labels: dict[str, str] = {}

    def matches(self, reading: Reading) -> bool:
        same = reading.name == self.metric and self.labels.items() <= reading.labels.items()
        return same and reading.value is not None and reading.value > self.above


class EventRule(Struct, frozen=True, forbid_unknown_fields=True):
    state: HealthState
    reason: str
    source: str
    kind: EventKind | None = None
    code_space: str | None = None
    codes: tuple[int, ...] = ()

    def matches(self, event: Event) -> bool:
        kind = self.kind is None or event.kind is self.kind
        space = self.code_space is None or event.code_space == self.code_space
        return kind and space and (not self.codes or event.code in self.codes)


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    figures: tuple[FigureRule, ...] = ()
    events: tuple[EventRule, ...] = ()


def load_policy(path: Path | None = None) -> Policy:
    """The policy of a file, or the one that comes with hal. Raises StateError with file, line and rule."""
    source = files("hal.telemetry").joinpath("health.toml") if path is None else path
    name = f"the health policy {source}"
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise StateError(f"cannot read {name}: {why}") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, what = line_of_fault(text, error)
        raise StateError(f"{name}, line {line}: this is not TOML: {what}") from error
    if raw.get("schema") != SCHEMA:
        line = line_of(text, ("schema",))
        raise StateError(f'{name}, line {line}: it has to begin with schema = "{SCHEMA}"')
    try:
        policy = msgspec.convert(raw, Policy)
    except msgspec.ValidationError as error:
        place, what = _mistake(str(error))
        raise StateError(f"{name}, line {line_of(text, place)}: {what}") from error
    figures = {name for name, metric in CATALOGUE.items() if isinstance(metric.group, Group)}
    for number, rule in enumerate(policy.figures):
        if rule.metric not in figures:
            place = ("figures", number, "metric")
            what = f"no metric '{rule.metric}'{nearest(rule.metric, figures)}; 'hal metrics' lists them"
            raise StateError(f"{name}, line {line_of(text, place)}: figures[{number}]: {what}")
    return policy


def _mistake(said: str) -> tuple[Place, str]:
    """Where a mistake is, and a sentence about it, from msgspec's: "What - at `$.figures[0].state`"."""
    what, _, path = said.partition(" - at `$")
    steps = re.findall(r"\.(\w+)|\[(\d+)\]", path)
    place: Place = tuple(word or int(number) for word, number in steps)
    strange = re.fullmatch(r"Object contains unknown field `(\w+)`", what)
    if strange is not None:
        known = {"figures": FigureRule, "events": EventRule}.get(str(place[0]) if place else "", Policy)
        what = f"unknown key '{strange[1]}'{nearest(strange[1], known.__struct_fields__)}"
        return (*place, strange[1]), f"{_words(place)}{what}"
    return place, f"{_words(place)}{what[:1].lower()}{what[1:]}"


def _words(place: Place) -> str:
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return f"{words.lstrip('.')}: " if words else ""


def assess(subject: str, readings: Iterable[Reading], events: Iterable[Event], policy: Policy) -> Health:
    """The state of one device or slice: the worst of all that match.

    ``unknown`` when none of the figures that the policy asks for could be read and nothing happened.
    """
    own = [reading for reading in readings if reading.subject == subject]
    conditions = [
        Condition(rule.state, rule.reason, _figure(reading), rule.source)
        for rule in policy.figures
        for reading in own
        if rule.matches(reading)
    ]
    conditions += [
        Condition(rule.state, rule.reason, _happening(event), rule.source)
        for rule in policy.events
        for event in events
        if event.subject == subject and rule.matches(event)
    ]
    watched = {rule.metric for rule in policy.figures}
    seen = any(r.name in watched and r.value is not None and r.status is not Status.STALE for r in own)
    states = [condition.state for condition in conditions]
    base = HealthState.OK if seen or states else HealthState.UNKNOWN
    return Health(subject, max([base, *states], key=_WORST_LAST.index), tuple(conditions))


def _figure(reading: Reading) -> str:
    labels = ",".join(f"{key}={value}" for key, value in reading.labels.items())
    return f"{reading.name}{{{labels}}} is {reading.value:g}"


def _happening(event: Event) -> str:
    code = f" {event.code_space} {event.code}" if event.code is not None else ""
    return f"{event.kind}{code}: {event.message}" if event.message else f"{event.kind}{code}"
