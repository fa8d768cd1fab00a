"""What clients can ask about jobs: one function per operation of the protocol (docs/protocol.md)."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hal.backend import GoneError, HalError, StateError
from hal.scheduler import wire
from hal.scheduler.agent.binding import OutputOrder, SignalOrder
from hal.scheduler.answers import Later, Peer, Refused, Waiter
from hal.scheduler.core.request import Request
from hal.scheduler.jobs.accounting import told
from hal.scheduler.jobs.board import waiting_for
from hal.scheduler.jobs.output import Piece
from hal.scheduler.jobs.records import Job, described
from hal.scheduler.jobs.spec import LAST_SIGNAL, JobSpec
from hal.scheduler.presets import with_preset

if TYPE_CHECKING:
    from hal.scheduler.daemon import Daemon

__all__ = ["OPERATIONS"]

_MOST_IN_ARRAY = 1000
_MOST_BYTES = 8 << 20  # of an array's programs and variables together
_MOST_RETRIES = 1000
_LONGEST_WAIT = 60.0
_NODE_SECONDS = 5.0  # in which a node answers for what it keeps
_MOST_ON_A_PAGE = 500
_numbers = itertools.count()


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Submit(_Body, frozen=True):
    key: str
    job: JobSpec
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


def submit(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, Submit)
    if asked.lease is not None:
        return {"jobs": _attach(daemon, asked, asked.lease, peer), "array": None}
    request = asked.request
    if asked.preset is not None:
        if asked.preset not in daemon.config.classes:
            known = ", ".join(sorted(daemon.config.classes))
            raise Refused("not_found", f"there is no class '{asked.preset:.64}'; there are {known}")
        request = with_preset(request, daemon.config.classes[asked.preset])
    daemon.look_at_devices()
    made = daemon.board.submit(
        request, asked.job, peer, key=asked.key, retries=asked.retries, array=asked.array
    )
    jobs = [daemon.board.jobs[id] for id in made if id in daemon.board.jobs]
    return {"jobs": [job.id for job in jobs], "array": jobs[0].array if jobs and jobs[0].array else None}


def _attach(daemon: Daemon, asked: Submit, id: str, peer: Peer) -> list[str]:
    lease = daemon.state.leases.get(id)
    if lease is None and daemon.board.was_attached(id, peer, asked.key):
        return [id]
    if lease is None or not peer.sees(lease.uid):
        raise Refused(*daemon.over.get(id, ("not_found", f"there is no lease '{id:.64}'")))
    if not peer.commands(lease.uid):
        raise Refused("denied", f"the lease '{id}' is another's")
    return daemon.board.attach(lease, asked.job, peer, key=asked.key)


def jobs(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    """A page of jobs, by the order of their submission."""
    page = msgspec.convert(body, Page)
    seen = (
        job
        for job in daemon.board.jobs.values()
        if job.order > page.after
        and peer.sees(job.uid)
        and page.array in (None, job.array)
        and (page.over or not job.state.over)
    )
    shown = heapq.nsmallest(page.limit + 1, seen, key=lambda job: job.order)
    more, shown = len(shown) > page.limit, shown[: page.limit]
    now = daemon.now()
    return {"jobs": [described(job, now) for job in shown], "next": shown[-1].order if more else None}


def job(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    one = _seen(daemon, msgspec.convert(body, Named).job, peer)
    return {"job": described(one, daemon.now())}


def wait_job(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    """Answered when it is over, or with the job as it is when the time is up."""
    asked = msgspec.convert(body, WaitJob)
    one = _seen(daemon, asked.job, peer)

    def shown() -> wire.Body:
        return {"job": described(one, daemon.now())}

    if one.state.over or not asked.timeout_seconds:
        return shown()
    until = time.monotonic() + asked.timeout_seconds
    return _Once(waiting_for(one.id), until, lambda: shown() if one.state.over else None, shown)


def cancel_job(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    """A job, or all of an array; of those that are over already nothing changes."""
    id = msgspec.convert(body, Named).job
    found = [one for one in daemon.board.find(id) if peer.sees(one.uid)]
    if not found:
        raise _no_job(id)
    for one in found:
        _must_command(one, peer)
        daemon.board.cancel(one)
    return {"jobs": [described(one, daemon.now()) for one in found]}


def signal_job(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, SignalJob)
    one = _seen(daemon, asked.job, peer)
    _must_command(one, peer)
    nodes = daemon.nodes
    for member, at in enumerate(one.nodes):
        known = nodes.nodes.get(at)
        wanted = asked.member in (None, member) and member not in one.exits and not one.state.over
        if wanted and known is not None and nodes.reports(known):
            order = SignalOrder(nodes.term, one.id, one.epoch, member, asked.signal)
            nodes.order(known, order, lambda _: None, time.monotonic(), one.id)
    return {"job": described(one, daemon.now())}


def job_logs(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    """A piece of what a member has said in its latest attempt, from its node."""
    asked = msgspec.convert(body, Logs)
    one = _seen(daemon, asked.job, peer)
    nothing = {"offset": asked.offset, "data": b"", "end": one.state.over, "epoch": one.epoch}
    if not one.nodes:
        return nothing
    if not 0 <= asked.member < len(one.nodes):
        raise Refused("not_found", f"the job '{one.id}' has {len(one.nodes)} members, from 0")
    order = OutputOrder(one.id, one.epoch, asked.member, asked.stream, asked.offset, asked.limit)
    at = one.nodes[asked.member]
    node = daemon.nodes.nodes.get(at)
    if node is None or not daemon.nodes.reports(node):
        raise Refused("failed", f"node '{at}', which keeps the output, does not answer now")
    # What it was before: with what is read after its end, there is all.
    over, epoch = one.state.over, one.epoch
    found: list[Piece | HalError] = []
    name = f"logs:{next(_numbers)}"

    def answered(answer: Piece | HalError) -> None:
        found.append(answer)
        daemon.waiters.touch(name)

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

    daemon.nodes.order(node, order, answered, time.monotonic())
    answer = look()
    return _Once(name, time.monotonic() + _NODE_SECONDS, look, late) if answer is None else answer


def accounting(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    """What leases that have ended have used, by day and owner, as far as the peer may see it."""
    asked = msgspec.convert(body, Accounting)
    rows: list[dict[str, Any]] = [
        told(row)
        for row in daemon.board.accounts.between(asked.since, asked.until)
        if peer.sees(row.uid) and asked.owner in (None, row.owner)
    ]
    return {"accounts": rows}


def _seen(daemon: Daemon, id: str, peer: Peer) -> Job:
    """To whom it is not shown, it does not exist. Raises Refused."""
    one = daemon.board.jobs.get(id)
    if one is None or not peer.sees(one.uid):
        raise _no_job(id)
    return one


def _no_job(id: str) -> Refused:
    return Refused("not_found", f"there is no job '{id:.64}'")


def _must_command(job: Job, peer: Peer) -> None:
    if not peer.commands(job.uid):
        raise Refused("denied", f"the job '{job.id}' is another's")


OPERATIONS: dict[str, Callable[[Daemon, wire.Body, Peer], wire.Body | Waiter]] = {
    "submit": submit,
    "jobs": jobs,
    "job": job,
    "wait_job": wait_job,
    "cancel_job": cancel_job,
    "signal_job": signal_job,
    "job_logs": job_logs,
    "accounting": accounting,
}
