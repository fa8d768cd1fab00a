"""What clients can ask about jobs: one function per operation of the protocol (docs/protocol.md)."""

from __future__ import annotations

import heapq
import itertools
import re
import time
from collections.abc import Callable, Generator
from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hal.backend import GoneError, HalError, StateError
from hal.scheduler import wire
from hal.scheduler.agent.binding import OutputOrder, SignalOrder
from hal.scheduler.answers import Later, Peer, Refused, Waiter, Work
from hal.scheduler.core.lease import LeaseState
from hal.scheduler.core.request import Request
from hal.scheduler.jobs.accounting import KINDS, Account, TooMany, in_pieces
from hal.scheduler.jobs.board import waiting_for
from hal.scheduler.jobs.launch import owner_name
from hal.scheduler.jobs.output import Piece
from hal.scheduler.jobs.records import Job, described
from hal.scheduler.jobs.spec import LAST_SIGNAL, JobSpec
from hal.scheduler.page import filled
from hal.scheduler.past import gone
from hal.scheduler.presets import with_preset

if TYPE_CHECKING:
    from hal.scheduler.engine import Engine

__all__ = ["OPERATIONS"]

_MOST_IN_ARRAY = 1000
_MOST_BYTES = 8 << 20  # of an array's programs and variables together
_MOST_RETRIES = 1000
_LONGEST_WAIT = 60.0
_NODE_SECONDS = 5.0  # in which a node answers for what it keeps
_MOST_ON_A_PAGE = 500
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_numbers = itertools.count()


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Asked(JobSpec, frozen=True, forbid_unknown_fields=True):
    """As a client writes it: a field that is not known is an error. An agent passes over those of a later
    version, whose scheduler sends only what was asked for."""


class Submit(_Body, frozen=True):
    key: str
    job: Asked
    request: Request = Request()
    preset: str | None = msgspec.field(default=None, name="class")
    retries: int = 0
    array: list[int] | None = None
    lease: str | None = None  # run it in this one, which the caller holds, and not in one of its own

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= 64:
            raise ValueError("key has 1 to 64 characters")
        if self.lease is not None and (self.array is not None or self.retries or self.request != Request()):
            raise ValueError("beside lease there is no request, array or retries")
        if not 0 <= self.retries <= _MOST_RETRIES:
            raise ValueError(f"retries is between 0 and {_MOST_RETRIES}")
        if self.array is not None:
            if not 1 <= len(self.array) <= _MOST_IN_ARRAY or len(set(self.array)) < len(self.array):
                raise ValueError(f"array has 1 to {_MOST_IN_ARRAY} different numbers")
            if not all(0 <= index < 1_000_000 for index in self.array):
                raise ValueError("the numbers of array are between 0 and 999999")
            if len(self.array) * len(msgspec.msgpack.encode(self.job)) > _MOST_BYTES:
                raise ValueError(f"array and program together have more than {_MOST_BYTES} bytes")


class Named(_Body, frozen=True):
    """A job, or for ``cancel_job`` an array."""

    job: str


class Page(_Body, frozen=True):
    limit: int = _MOST_ON_A_PAGE
    after: int = 0
    array: str | None = None  # only those of this one
    over: bool = True  # those, too, that are

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= _MOST_ON_A_PAGE:
            raise ValueError(f"limit is between 1 and {_MOST_ON_A_PAGE}")


class Logs(_Body, frozen=True):
    job: str
    member: int = 0
    stream: str = "stdout"
    offset: int = 0
    limit: int = 32768

    def __post_init__(self) -> None:
        OutputOrder(self.job, 0, 0, self.stream, self.offset, self.limit)  # says what is wrong with them


class WaitJob(_Body, frozen=True):
    job: str
    timeout_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.timeout_seconds <= _LONGEST_WAIT:
            raise ValueError(f"timeout_seconds is between 0 and {_LONGEST_WAIT:.0f}")


class SignalJob(_Body, frozen=True):
    job: str
    signal: int
    member: int | None = None  # None: all

    def __post_init__(self) -> None:
        if not 1 <= self.signal <= LAST_SIGNAL:
            raise ValueError(f"signal is between 1 and {LAST_SIGNAL}")


class Accounting(_Body, frozen=True):
    since: str = ""
    until: str = ""
    owner: str | None = None
    by: tuple[str, ...] = ("day", "user")

    def __post_init__(self) -> None:
        if not self.by or not set(self.by) <= set(KINDS) or len(set(self.by)) < len(self.by):
            raise ValueError(f"by has some of {', '.join(KINDS)}, each once")
        for name, day in (("since", self.since), ("until", self.until)):
            if day and not _is_day(day):
                raise ValueError(f"{name} is a day, as in 2026-01-31, not '{day:.40}'")


def _is_day(text: str) -> bool:
    try:
        return _DAY.fullmatch(text) is not None and date.fromisoformat(text) is not None
    except ValueError:
        return False


class _Once(Later):
    """Answered when ``look`` has an answer; when the time is up, with what ``late`` gives."""

    def __init__(
        self,
        name: str,
        until: float,
        look: Callable[[], wire.Body | None],
        late: Callable[[], wire.Body],
    ) -> None:
        super().__init__(name, until)
        self._look = look
        self._late = late

    def answer(self, *, at_once: bool) -> wire.Body | None:
        found = self._look()
        return self._late() if found is None and at_once else found


def submit(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, Submit)
    if asked.lease is not None:
        return {"jobs": _attach(engine, asked, asked.lease, peer), "array": None}
    request = asked.request
    if asked.preset is not None:
        if asked.preset not in engine.config.classes:
            known = ", ".join(sorted(engine.config.classes))
            raise Refused("not_found", f"there is no class '{asked.preset:.64}'; there are {known}")
        request = with_preset(request, engine.config.classes[asked.preset])
    _must_run_here(engine, peer)
    engine.look_at_devices()
    made = engine.board.submit(
        request, asked.job, peer, key=asked.key, retries=asked.retries, array=asked.array
    )
    jobs = [engine.board.jobs[id] for id in made if id in engine.board.jobs]
    return {"jobs": [job.id for job in jobs], "array": jobs[0].array if jobs and jobs[0].array else None}


def _must_run_here(engine: Engine, peer: Peer) -> None:
    """Where there is no other node, it is known beforehand. Raises Refused."""
    launcher = None if engine.agent is None or engine.nodes.has_others else engine.agent.launcher
    if launcher is None:
        return
    try:
        launcher.check(owner_name(peer.name, peer.uid), peer.uid)
    except StateError as wrong:
        raise Refused("failed", f"node '{engine.nodes.own}': {wrong}") from None


def _attach(engine: Engine, asked: Submit, id: str, peer: Peer) -> list[str]:
    lease = engine.state.leases.get(id)
    if lease is None and engine.board.was_attached(id, peer, asked.key):
        return [id]
    if lease is None or not peer.sees(lease.uid):
        raise gone(engine, id, peer)
    if not peer.commands(lease.uid):
        raise Refused("denied", f"the lease '{id}' is another's")
    return engine.board.attach(lease, asked.job, peer, key=asked.key)


def jobs(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    """A page of jobs, by the order of their submission."""
    page = msgspec.convert(body, Page)
    seen = (
        job
        for job in engine.board.jobs.values()
        if job.order > page.after
        and peer.sees(job.uid)
        and (page.array is None or (page.array == job.array != ""))
        and (page.over or not job.state.over)
    )
    first = heapq.nsmallest(page.limit + 1, seen, key=lambda job: job.order)
    shown, more = filled(first, page.limit, lambda job: _told(engine, job))
    return {"jobs": shown, "next": first[len(shown) - 1].order if more else None}


def job(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    one = _seen(engine, msgspec.convert(body, Named).job, peer)
    return {"job": _told(engine, one)}


def wait_job(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    """Answered when it is over, or with the job as it is when the time is up."""
    asked = msgspec.convert(body, WaitJob)
    one = _seen(engine, asked.job, peer)

    def shown() -> wire.Body:
        return {"job": _told(engine, one)}

    if one.state.over or not asked.timeout_seconds:
        return shown()
    until = time.monotonic() + asked.timeout_seconds
    return _Once(waiting_for(one.id), until, lambda: shown() if one.state.over else None, shown)


def cancel_job(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    """A job, or all of an array; of those that are over already nothing changes."""
    id = msgspec.convert(body, Named).job
    found = [one for one in engine.board.find(id) if peer.sees(one.uid)]
    if not found:
        raise _no_job(id)
    for one in found:
        _must_command(one, peer)
        engine.board.cancel(one, peer)
    return {"jobs": [_told(engine, one) for one in found]}


def signal_job(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, SignalJob)
    one = _seen(engine, asked.job, peer)
    _must_command(one, peer)
    _check_member(one, asked.member or 0)
    nodes = engine.nodes
    for member, at in enumerate(one.nodes):
        known = nodes.nodes.get(at)
        wanted = asked.member in (None, member) and member not in one.exits and not one.state.over
        if wanted and known is not None and nodes.reports(known):
            order = SignalOrder(nodes.term, one.id, one.epoch, member, asked.signal)
            nodes.orders.give(known, order, lambda _: None, time.monotonic(), one.id)
    return {"job": _told(engine, one)}


def job_logs(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    """A piece of what a member has said in its latest attempt, from its node."""
    asked = msgspec.convert(body, Logs)
    one = _seen(engine, asked.job, peer)
    nothing = {"offset": asked.offset, "data": b"", "end": one.state.over, "epoch": one.epoch}
    _check_member(one, asked.member)
    if not one.nodes:
        return nothing
    order = OutputOrder(one.id, one.epoch, asked.member, asked.stream, asked.offset, asked.limit)
    at = one.nodes[asked.member]
    node = engine.nodes.nodes.get(at)
    if node is None or not engine.nodes.reports(node):
        raise Refused("failed", f"node '{at}', which keeps the output, does not answer now")
    # What it was before: with what is read after its end, there is all.
    over, epoch = one.state.over, one.epoch
    found: list[Piece | HalError] = []
    name = f"logs:{next(_numbers)}"

    def answered(answer: Piece | HalError) -> None:
        found.append(answer)
        engine.waiters.touch(name)

    def look() -> wire.Body | None:
        if not found:
            return None
        if isinstance(found[0], GoneError) or (isinstance(found[0], StateError) and not over):
            if over:
                raise Refused("not_found", str(found[0]))
            return nothing  # it is not there yet
        if isinstance(found[0], HalError):
            raise Refused("failed", str(found[0]))
        piece = found[0]
        return {"offset": piece.offset, "data": piece.data, "end": piece.end and over, "epoch": epoch}

    def late() -> wire.Body:
        raise Refused("failed", f"node '{at}' has not answered in time")

    engine.nodes.orders.give(node, order, answered, time.monotonic())
    answer = look()
    return _Once(name, time.monotonic() + _NODE_SECONDS, look, late) if answer is None else answer


def _check_member(job: Job, member: int) -> None:
    """Raises Refused."""
    members = len(job.nodes) or sum(one.replicas for one in job.request.members)
    if not 0 <= member < members:
        raise Refused("not_found", f"the job '{job.id}' has {members} members, from 0")


def accounting(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    """What was used, as far as the peer may see it."""
    asked = msgspec.convert(body, Accounting)
    rows = engine.board.accounts.between(asked.since, asked.until)

    def is_meant(row: Account) -> bool:
        return peer.sees(row.uid) and asked.owner in (None, row.owner)

    def pieces() -> Generator[None, None, wire.Body]:
        try:
            return {"accounts": (yield from in_pieces(rows, asked.by, is_meant))}
        except TooMany as wrong:
            raise Refused("too_large", str(wrong)) from None

    work = Work(pieces())
    answer = work.answer(at_once=False)
    return work if answer is None else answer


def _seen(engine: Engine, id: str, peer: Peer) -> Job:
    """To whom it is not shown, it does not exist. Raises Refused."""
    one = engine.board.jobs.get(id)
    if one is None or not peer.sees(one.uid):
        many = [job.id for job in engine.board.find(id) if one is None and peer.sees(job.uid)]
        if many:
            what = f"'{id}' is an array of {len(many)} jobs: name one of them, such as {many[0]}"
            raise Refused("not_found", what)
        raise _no_job(id)
    return one


def _told(engine: Engine, job: Job) -> dict[str, Any]:
    lease = engine.state.leases.get(job.id)
    return described(job, engine.now()) | {
        "suspended": lease is not None and lease.state is LeaseState.SUSPENDED,
    }


def _no_job(id: str) -> Refused:
    return Refused("not_found", f"there is no job '{id:.64}'")


def _must_command(job: Job, peer: Peer) -> None:
    if not peer.commands(job.uid):
        raise Refused("denied", f"the job '{job.id}' is another's")


OPERATIONS: dict[str, Callable[[Engine, wire.Body, Peer], wire.Body | Waiter]] = {
    "submit": submit,
    "jobs": jobs,
    "job": job,
    "wait_job": wait_job,
    "cancel_job": cancel_job,
    "signal_job": signal_job,
    "job_logs": job_logs,
    "accounting": accounting,
}
