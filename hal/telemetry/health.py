"""Health: a policy, as data, that turns figures and events into a state with its reasons.

Deciding is a pure function over readings and events; ``health.toml`` is the policy that comes with hal.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

import msgspec
from msgspec import Struct

from hal.backend import Group, StateError
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
    """The policy of a file, or the one that comes with hal. Raises StateError with file and field."""
    source = files("hal.telemetry").joinpath("health.toml") if path is None else path
    try:
        policy = msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), Policy)
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read the health policy {source}: {error}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise StateError(f"the health policy {source}: {error}") from error
    if policy.schema != SCHEMA:
        raise StateError(f'the health policy {source} has to begin with schema = "{SCHEMA}"')
    figures = {name for name, metric in CATALOGUE.items() if isinstance(metric.group, Group)}
    unknown = [rule.metric for rule in policy.figures if rule.metric not in figures]
    if unknown:
        raise StateError(f"the health policy {source}: no metric '{unknown[0]}'; see 'hal metrics'")
    return policy


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
