"""What holds the clocks down, from the residency counters in gpu_metrics.

They count firmware cycles, and how long a cycle is nobody says. So two looks are needed: what grew since
the last one is active, and all cycles since the first one against the clock give their length.
(amdsmi_get_violation_status would wait a tenth of a second for each card to say the same.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from hal.backend import Call, Cost, Figure, Group, Value
from hal.model import Scope, Status
from hal_amd import conv
from hal_amd.metrics import Metrics

if TYPE_CHECKING:
    from hal_amd.rows import Subject

__all__ = ["ROWS", "Looks"]

_METRICS = "amdsmi_get_gpu_metrics_info"
_REASONS = {
    "power": "ppt",
    "thermal": "socket_thm",
    "vr": "vr_thm",
    "hbm": "hbm_thm",
    "hardware_brake": "prochot",
}
_FIRST = Value(None, Status.STALE, "this takes a second look")


class _Look(NamedTuple):
    seconds: float | None
    cycles: float | None
    held: dict[str, float | None]  # cycles, by reason


class Looks:
    """At one card's counters: the first one, the last one and the one before it."""

    def __init__(self) -> None:
        self.first: _Look | None = None
        self.before: _Look | None = None
        self.now: _Look | None = None
        self._seen: object = None

    def look(self, metrics: Metrics | dict[str, Any]) -> _Look:
        """Of one sample once, however many of its rows ask."""
        if self.now is not None and metrics is self._seen:
            return self.now
        now = _read(metrics)
        if self.now is not None and (now.cycles or 0) < (self.now.cycles or 0):
            self.first = self.now = None  # the driver was loaded anew
        self.first, self.before, self.now, self._seen = self.first or now, self.now, now, metrics
        return now

    def cycle(self) -> float | None:
        """Seconds of one firmware cycle."""
        first, now = self.first, self.now
        if first is None or now is None or None in (first.seconds, now.seconds, first.cycles, now.cycles):
            return None
        passed = (now.seconds or 0) - (first.seconds or 0)
        counted = (now.cycles or 0) - (first.cycles or 0)
        return passed / counted if passed > 0 and counted > 0 else None


def _read(metrics: Metrics | dict[str, Any]) -> _Look:
    clock = conv.number(metrics.get("system_clock_counter"))
    held = {reason: conv.number(metrics.get(f"{word}_residency_acc")) for reason, word in _REASONS.items()}
    cycles = conv.number(metrics.get("accumulation_counter"))
    return _Look(None if clock is None else clock / 1e9, cycles, held)


def _active(_: Any, subject: Subject) -> tuple[Value, ...]:
    looks = subject.card.looks
    now = looks.look(subject.card_says(_METRICS))
    values = []
    for reason, held in now.held.items():
        last = None if looks.before is None else looks.before.held[reason]
        if held is None:
            values.append(conv.count("N/A"))
        elif held == 0:  # it never was
            values.append(Value(0))
        else:
            values.append(_FIRST if last is None else Value(int(held > last)))
    return tuple(values)


def _seconds(_: Any, subject: Subject) -> tuple[Value, ...]:
    looks = subject.card.looks
    now, cycle = looks.look(subject.card_says(_METRICS)), looks.cycle()
    values = []
    for held in now.held.values():
        if held is None:
            values.append(conv.count("N/A"))
        elif held == 0:
            values.append(Value(0))
        elif cycle is None:
            values.append(_FIRST)
        else:
            values.append(Value(held * cycle, Status.ESTIMATED, "firmware cycles times their length"))
    return tuple(values)


def _whatever(_: Any, subject: Subject) -> tuple[Value, ...]:
    """MI200 and Navi say only that something does."""
    return (conv.state(subject.card_says(_METRICS).get("throttle_status")),)


def _figures(name: str, unit: str) -> tuple[Figure, ...]:
    return tuple(Figure(name, unit, {"reason": reason}) for reason in _REASONS)


ROWS = (
    Call(Group.THROTTLE, _METRICS, Scope.PACKAGE, _figures("throttle_active", "bool"), _active),
    Call(Group.THROTTLE, _METRICS, Scope.PACKAGE, (Figure("throttle_active", "bool", {"reason": "other"}),),
         _whatever),
    Call(Group.THROTTLE, _METRICS, Scope.PACKAGE, _figures("throttle_seconds_total", "seconds"), _seconds,
         Cost.SLOW),
)  # fmt: skip
