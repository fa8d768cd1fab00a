"""A job as the scheduler keeps it: what was asked for, how far it has come, and what it has used."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from hal.scheduler.core.request import Request
from hal.scheduler.jobs.spec import Ended, JobSpec

__all__ = ["Job", "JobState", "Usage", "described"]


class JobState(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"  # it has a lease, whose slices are being made
    RUNNING = "running"
    ENDING = "ending"  # its lease is: what is left of it is being stopped
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class Usage(Struct, frozen=True):
    """What was held, in all attempts together; a slice of a device counts as its share of it."""

    device_seconds: float = 0.0
    memory_byte_seconds: float = 0.0
    micros: float = 0.0  # millionths of the currency that the price list is in

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.device_seconds + other.device_seconds,
            self.memory_byte_seconds + other.memory_byte_seconds,
            self.micros + other.micros,
        )

    @property
    def whole_byte_seconds(self) -> int | float:
        """A hundred devices come past 64 bits, which is the largest whole number of a message, in a month."""
        return (
            round(self.memory_byte_seconds)
            if self.memory_byte_seconds < 1 << 63
            else self.memory_byte_seconds
        )

    def during(self, seconds: float) -> Usage:
        """Of what is used in one."""
        return Usage(self.device_seconds * seconds, self.memory_byte_seconds * seconds, self.micros * seconds)


class Job(Struct):
    """Its lease has the same id. Times are milliseconds on the scheduler's clock."""

    id: str
    uid: int
    owner: str  # the key's name, or the local user's
    key: str  # of the request that made it: the same key again gets the same job
    request: Request
    spec: JobSpec
    submitted: int
    order: int
    retries: int = 0
    array: str = ""  # the id that all of an array have in common
    index: int | None = None
    state: JobState = JobState.WAITING
    reason: str = ""
    why: str = ""  # the first cause for which the latest attempt was ended
    attempt: int = 0  # how often it was granted
    tries: int = 0  # how often its programs were begun
    begun: bool = False  # they were, in the latest attempt
    refused: int = 0  # how often nodes have refused it since
    epoch: int = 0  # of its latest grant; what follows is of that one
    nodes: list[str] = []  # by member
    devices: list[str] = []
    port: int = 0
    began: int | None = None
    ended: int | None = None
    exits: dict[int, Ended] = {}  # by member
    first: int | None = None  # the member that failed first
    stopped: bool = False  # by us, because members have ended
    cancelled: bool = False
    attached: bool = False  # to a lease that somebody else holds: it goes with that
    usage: Usage = Usage()
    held: float = 0.0  # seconds that this was used in
    started: bool = False  # a program of its latest attempt

    @property
    def name(self) -> str:
        return self.request.name or self.id

    @property
    def exit_code(self) -> int | None:
        """As a shell gives it, of the member that failed first; None while it runs, or if none has ended."""
        if not self.state.over or self.cancelled:
            return None
        if self.first is not None:
            return self.exits[self.first].exit_code
        return 0 if self.state is JobState.COMPLETED else None


def described(job: Job, now: int) -> dict[str, Any]:
    """For replies. Of its variables only the names: values may be secrets."""
    until = now if job.ended is None else job.ended
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "state": job.state.value,
        "reason": job.reason,
        "queue": job.request.queue,
        "priority": job.request.priority,
        "command": job.spec.command,
        "directory": job.spec.directory,
        "variables": sorted(job.spec.environment),
        "array": job.array or None,
        "index": job.index,
        "members": sum(member.replicas for member in job.request.members),
        "nodes": job.nodes,
        "devices": job.devices,
        "attempt": job.attempt,
        "retries": job.retries,
        "submitted_ms": job.submitted,
        "began_ms": job.began,
        "ended_ms": job.ended,
        "ran_seconds": None if job.began is None else max(until - job.began, 0) / 1000,
        "exit_code": job.exit_code,
        "exits": [msgspec.to_builtins(job.exits[member]) for member in sorted(job.exits)],
        "cpu_seconds": _total([one.cpu_seconds for one in job.exits.values()]),
        "started": job.started,
        "held_seconds": round(job.held, 3),
        "device_seconds": round(job.usage.device_seconds, 3),
        "memory_byte_seconds": job.usage.whole_byte_seconds,
        "price": round(job.usage.micros / 1e6, 6),
    }


def _total(known: list[float | None]) -> float | None:
    """None when there is none, or one was not counted."""
    return sum(one for one in known if one is not None) if known and None not in known else None
