"""What the daemon counts of its own work, and tells its log: each line with the request that it is about."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from typing import Any

from hal.scheduler import wire
from hal.scheduler.answers import Peer
from hal.scheduler.logs import Log
from hal.scheduler.watch import Happening

__all__ = ["BOUNDS", "Monitor"]

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds

# What an operator wants to know by itself; the rest is told at "debug", as it comes with each lease.
_LEVELS = {
    "node_joined": "info",
    "node_lost": "warning",
    "node_forgotten": "info",
    "device_failed": "warning",
    "device_recovered": "info",
    "cordoned": "info",
    "drained": "info",
    "uncordoned": "info",
    "queue_set": "info",
    "queue_removed": "info",
    "suspended": "warning",
    "resumed": "info",
}
_TAKEN_AWAY = frozenset({"drained", "failed", "lost", "expired"})  # causes of an ending


class Monitor:
    """For one daemon; counts begin with it. Times are seconds."""

    def __init__(self, log: Log | None = None) -> None:
        self.log = Log(level="error") if log is None else log
        self.requests: Counter[tuple[str, str]] = Counter()  # by operation and outcome
        self.happenings: Counter[str] = Counter()
        self.commits = [0] * (len(BOUNDS) + 1)  # by how long they took
        self.commit_seconds = 0.0
        self.who = ""  # who asked for what is carried out now
        self.request = ""  # and its id: what happens meanwhile follows from it

    def begin(self, request: str, who: str) -> None:
        """What happens until ``answered`` follows from this request."""
        self.request, self.who = request[:64], who

    def answered(self, peer: Peer | None, message: wire.Request, reply: wire.Reply | None) -> None:
        """``reply`` None: it comes ``later``."""
        self.request = self.who = ""
        outcome = "later" if reply is None else "ok" if reply.error is None else reply.error.code
        # A client cannot make up names without end.
        self.requests["" if outcome == "unknown_op" else message.op, outcome] += 1
        if self.log.wants("debug"):
            why = None if reply is None or reply.error is None else reply.error.message
            who = None if peer is None else peer.name
            self._say("debug", f"{message.op:.40} {outcome}", request=message.id[:64], who=who, reason=why)

    def settled(self, peer: Peer, request: str, reply: wire.Reply) -> None:
        """What was to be answered ``later``, is."""
        if self.log.wants("debug"):
            outcome, why = ("ok", None) if reply.error is None else (reply.error.code, reply.error.message)
            self._say("debug", f"answered {outcome}", request=request[:64], who=peer.name, reason=why)

    def job(self, id: str, how: str, reason: str, request: str) -> None:
        """Long after it was asked for: only its id leads back to that."""
        if self.log.wants("debug"):
            self._say("debug", f"job {how}: {id}", request=request, reason=reason)

    def unreadable(self) -> None:
        self.requests["", "malformed"] += 1

    def happened(self, one: Happening) -> None:
        self.happenings[one.kind] += 1
        level = _LEVELS.get(one.kind, "info" if one.cause in _TAKEN_AWAY else "debug")
        if not self.log.wants(level):
            return
        about = one.node or one.lease or one.name or one.queue or ",".join(one.devices)
        facts: dict[str, Any] = {"cause": one.cause, "reason": one.reason, "queue": one.queue}
        facts |= {"devices": one.devices, "event": one.number, "request": self.request}
        if one.lease and one.name != one.lease:
            facts["name"] = one.name
        self._say(level, f"{one.kind.replace('_', ' ')}: {about}", **facts)

    def committed(self, seconds: float) -> None:
        self.commits[bisect_left(BOUNDS, seconds)] += 1
        self.commit_seconds += seconds

    def flush(self) -> None:
        self.log.flush()

    def told(self) -> dict[str, Any]:
        """For the body of ``status``: counts since the daemon's start."""
        return {
            "requests": [[op, outcome, count] for (op, outcome), count in sorted(self.requests.items())],
            "events": dict(sorted(self.happenings.items())),
            "commits": {"bounds": list(BOUNDS), "counts": self.commits, "seconds": self.commit_seconds},
            "log_lines_lost": self.log.lost,
            "cpu_seconds": time.process_time(),
        }

    def _say(self, level: str, sentence: str, **facts: Any) -> None:
        self.log.add(level, sentence, **facts)
