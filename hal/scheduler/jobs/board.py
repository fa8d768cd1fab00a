"""The jobs that the scheduler looks after: each is a lease that the scheduler holds itself.

Granted and bound, its programs are started by order, one for each member; when one fails or all have ended,
the lease is released, and when nothing is left of that, the job is over, or tried again. Looked at are only
those to which something has happened.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from hal.backend import HalError
from hal.scheduler import core
from hal.scheduler.agent.binding import RunOrder, Started
from hal.scheduler.answers import Peer, Refused
from hal.scheduler.core.records import Row
from hal.scheduler.core.request import Request
from hal.scheduler.jobs.accounting import DAY_MS, Accounts
from hal.scheduler.jobs.launch import owner_name
from hal.scheduler.jobs.records import Job, JobState
from hal.scheduler.jobs.rendezvous import FIRST_PORT, PORTS, rendezvous
from hal.scheduler.jobs.spec import Ended, JobSpec
from hal.scheduler.kept import size_of

if TYPE_CHECKING:
    from hal.scheduler.engine import Engine

__all__ = ["Board", "waiting_for"]

KIND = "job"
_KEPT, _KEPT_BYTES = 2000, 32 << 20  # jobs that are over, and what is kept of them
_TTL_MS = 3600 * 1000  # the scheduler renews it itself, long before
_AGAIN = "tried again: "
_TAKEN_AWAY = "its lease was taken away"
_RENEW = 60.0  # seconds
_REFUSALS = 10  # by nodes, one after the other, that a job is given time for
_AT_ONCE = 256  # leases that are charged in one turn while they go on
_LONGEST_PAUSE = 60.0  # seconds between two of them; the first is one, and each is twice as long


def waiting_for(job: str) -> str:
    """What they wait for who wait for its end."""
    return f"job:{job}"


def _key_of(peer: Peer, owner: int, key: str) -> str:
    """An admin's key for what is another's is none of that one's: theirs have 64 characters at most."""
    return key if peer.uid == owner else f"{key:<64}\0{peer.uid}"


class Board:
    def __init__(self, engine: Engine) -> None:
        self.jobs: dict[str, Job] = {}
        self.accounts = Accounts()
        self._engine = engine
        self._changed: set[str] = set()
        self._touched: dict[str, None] = {}
        self._ordered: dict[str, set[int]] = {}  # members that were ordered to run, or are no more to be
        self._living: set[str] = set()  # jobs that are not over
        self._later: dict[str, float] = {}  # when jobs that a node has refused are tried again
        self._own: list[Ended] = []  # of this node, to be acknowledged once they are written down
        self._by_key: dict[tuple[int, str], list[str]] = {}
        self._over_bytes = 0
        self._renewed = 0.0
        self._day = -1  # for which all leases that go on were charged, but those that are
        self._due: list[str] = []
        self._order = 0
        self._requests: dict[str, str] = {}  # by which jobs that live were asked for, since the start

    # ---- store ------------------------------------------------------------------------------

    def load(self, rows: list[Row]) -> None:
        """Take what is ours. Raises msgspec.DecodeError."""
        self.accounts.load(rows)
        for kind, _, value in rows:
            if kind == KIND:
                self._add(msgspec.msgpack.decode(value or b"", type=Job))
        self._order = max((job.order for job in self.jobs.values()), default=0)
        for id in self._living:
            self._touched[id] = None

    def changes(self) -> list[Row]:
        """What to write with the same commit as the leases."""
        found: list[Row] = self.accounts.changes()
        for id in self._changed:
            job = self.jobs.get(id)
            found.append((KIND, id, None if job is None else msgspec.msgpack.encode(job)))
        self._changed.clear()
        return found

    @property
    def is_worth_keeping(self) -> bool:
        """Jobs; and what leases alone have used, of a scheduler that somebody has set up for good."""
        places, configured = self._engine.places, self._engine.config.file is not None
        for_good = configured or places.state != places.directory
        return bool(self.jobs) or bool(len(self.accounts) and for_good)

    @property
    def pauses(self) -> bool:
        """Jobs are to be tried again, and wait in no queue until then."""
        return bool(self._later)

    def living_in(self, queue: str) -> int:
        """How many jobs of a queue are not over, whether they wait in it or are to be tried again later."""
        return sum(self.jobs[id].request.queue == queue for id in self._living)

    # ---- what users ask for -----------------------------------------------------------------

    def submit(
        self,
        request: Request,
        spec: JobSpec,
        peer: Peer,
        *,
        key: str,
        retries: int = 0,
        array: list[int] | None = None,
    ) -> list[str]:
        """The jobs of this key, made now unless they were before. Raises Refused, and then there is none."""
        if (known := self._by_key.get((peer.uid, key))) is not None:
            return known
        engine, count = self._engine, 1 if array is None else len(array)
        size = count * (size_of(spec) + size_of(request))
        engine.limits.queue(peer, engine.state.world.line.of_owner[peer.uid], count, engine.kept, size)
        request = msgspec.structs.replace(request, wait=True, requeue=retries > 0, ttl_ms=_TTL_MS)
        base = self._fresh_id()
        owner = owner_name(peer.name, peer.uid)
        self.accounts.know(peer.name, peer.uid)
        made: list[str] = []
        for index in [None] if array is None else array:
            id = base if index is None else f"{base}_{index}"
            self._order += 1
            job = Job(id, peer.uid, owner, key, request, spec, self._engine.now(), self._order, retries)
            if index is not None:
                job.array, job.index = base, index
            try:
                self._enter_queue(job)
            except Refused:
                for other in made:
                    self.cancel(self.jobs[other], peer)
                raise
            made.append(id)
        return made

    def attach(self, lease: core.Lease, spec: JobSpec, peer: Peer, *, key: str) -> list[str]:
        """Run a program in a lease that its holder has already. Raises Refused."""
        key = _key_of(peer, lease.uid, key)
        if (known := self._by_key.get((lease.uid, key))) is not None:
            return known
        if lease.id in self.jobs or lease.state is core.LeaseState.ENDING:
            raise Refused("ended", f"the lease '{lease.id}' has had its program, or has ended")
        self._order += 1
        now, owner = self._engine.now(), owner_name(peer.name, peer.uid)
        job = Job(lease.id, lease.uid, owner, key, lease.request, spec, now, self._order, attached=True)
        self._add(job)
        self._touch(job.id)
        return [job.id]

    def was_attached(self, lease: str, peer: Peer, key: str) -> bool:
        """This request has been served before, and its lease is no more."""
        job = self.jobs.get(lease)
        return job is not None and job.attached and job.key == _key_of(peer, job.uid, key)

    def cancel(self, job: Job, peer: Peer) -> None:
        """Again, or of one that is over, it changes nothing."""
        if job.state.over or job.cancelled:
            return
        job.cancelled = True
        job.why = f"cancelled by {owner_name(peer.name, peer.uid)}"
        self._release(job)
        self._touch(job.id)

    def find(self, id: str) -> list[Job]:
        """The job of this id, or all of an array."""
        if id in self.jobs:
            return [self.jobs[id]]
        if not id:  # no array's: that of jobs that are in none
            return []
        return sorted((job for job in self.jobs.values() if job.array == id), key=lambda job: job.order)

    # ---- what has happened ------------------------------------------------------------------

    def note(self, decisions: Iterable[core.Decision]) -> None:
        if not self._living:
            return
        for decision in decisions:
            match decision:
                case core.Revoke(lease=lease) | core.Preempt(lease=lease):
                    self.because(lease.id, decision.reason)
                case core.Grant(lease=lease):
                    self._say(lease.id, "")
                    if lease.id in self._living and self.jobs[lease.id].tries <= self.jobs[lease.id].retries:
                        self.jobs[lease.id].why = ""  # else it is given back, for what has ended the last try
                case core.Queued(id=id) if id in self._living and self.jobs[id].attempt:
                    self._say(id, _AGAIN + (self.jobs[id].why or decision.reason))
                case core.Queued(id=id) | core.Withdrawn(id=id):
                    self._say(id, decision.reason)
                case core.Suspend(id=id):
                    self._say(id, decision.reason)
                case core.Resume(id=id):
                    self._say(id, "")

    def because(self, id: str, reason: str) -> None:
        """What its latest attempt ends for: of what follows one from the other, the first is kept."""
        if id in self._living:
            self.jobs[id].why = self.jobs[id].why or reason
            self._say(id, self.jobs[id].why)

    def ended(self, node: str, ended: list[Ended]) -> None:
        """Programs have ended, as their node reports; again is no error."""
        for one in ended:
            job = self.jobs.get(one.lease)
            if job is None or job.epoch != one.epoch or one.member in job.exits or job.state.over:
                continue
            if job.nodes[one.member : one.member + 1] != [node]:  # it speaks for what runs there only
                continue
            if one.lost:
                self.because(job.id, self._cut_off(node))
                self._release(job)
                continue
            job.exits[one.member] = one
            job.started = True
            if one.exit_code != 0 and job.first is None:
                job.first = one.member
            self._touch(job.id)

    def joined(self, node: str) -> None:
        """Orders to this node may have been lost: they are given again, which starts nothing twice."""
        for id in self._living:
            job = self.jobs[id]
            if node in job.nodes:
                here = {member for member, at in enumerate(job.nodes) if at == node}
                self._ordered[id] = self._ordered.get(id, set()) - here
                self._touched[id] = None

    def charge(self, lease: core.Lease, *, ended: bool = True, until: int | None = None) -> None:
        """Its owner, and if it is a job's that one, is charged for what a lease has used, up to now or
        ``until`` then (ms)."""
        job = self.jobs.get(lease.id)
        if job is None and self._engine.private:
            return
        until = self._engine.now() if until is None else until
        seconds = max(until - self.accounts.charged_until(lease), 0) / 1000
        usage = self.accounts.charge(lease, self._engine.device, until, job=job is not None, ended=ended)
        if job is not None and not job.state.over:
            job.usage += usage
            job.held += seconds
            self._touch(job.id)

    def _charge_each_day(self) -> None:
        """So that what goes on for weeks is seen before it ends; some at a time, as others wait meanwhile."""
        day, leases = self._engine.now() // DAY_MS, self._engine.state.leases
        if day != self._day:
            if self._day < 0:
                self.accounts.forget_all_but(leases)
            begun = day * DAY_MS
            self._due = [one.id for one in leases.values() if self.accounts.charged_until(one) < begun]
            self._day = day
        for id in self._due[-_AT_ONCE:]:
            if (lease := leases.get(id)) is not None:
                self.charge(lease, ended=False)
        del self._due[-_AT_ONCE:]

    def turn(self) -> None:
        """Look at those to which something has happened."""
        agent = self._engine.agent
        if agent is not None:
            if self._engine.trouble is None:
                agent.acknowledge_runs(self._own)  # written down with the last commit
            self._own = agent.ended_runs()
            self.ended(agent.node, self._own)
        self._charge_each_day()
        if not self._living:
            return
        now = time.monotonic()
        if now - self._renewed >= _RENEW:
            self._renewed = now
            for id in self._living:
                if id in self._engine.state.leases and not self.jobs[id].attached:
                    self._engine.happens(core.Renew(id, self.jobs[id].uid))
        for id in self._engine.nodes.settled:
            if id in self._living:
                self._touched[id] = None
        if self._later:
            self._touched |= dict.fromkeys(id for id, due in self._later.items() if now >= due)
        while self._touched:
            id = next(iter(self._touched))
            del self._touched[id]
            if id in self._living:
                self._look(self.jobs[id])

    # ---- one job ----------------------------------------------------------------------------

    def _look(self, job: Job) -> None:
        state = self._engine.state
        lease = state.leases.get(job.id)
        before = job.state
        again = job.id in state.waiting or (lease is not None and lease.epoch != job.epoch)
        if again and job.tries > job.retries:  # it was the last time
            job.state = JobState.ENDING
            self._release(job)
            lease = state.leases.get(job.id)
            if lease is None:
                self._is_gone(job)
        elif job.id in state.waiting:
            job.state = JobState.WAITING
        elif lease is None:
            if job.cancelled or time.monotonic() >= self._later.get(job.id, 0.0):
                self._later.pop(job.id, None)
                self._is_gone(job)
        else:
            if lease.epoch != job.epoch:
                self._begin_attempt(job, lease)
            if lease.state is core.LeaseState.ENDING:
                job.state = JobState.ENDING
            elif self._has_done_enough(job):
                job.stopped = True
                self.because(job.id, "finished" if job.first is None else self._failure(job, job.first))
                self._release(job)
            elif self._engine.nodes.is_bound(lease):
                job.state = JobState.RUNNING
                if not job.port and len(job.nodes) > 1:  # an older agent finds none
                    job.port = self._engine.nodes.port(lease) or FIRST_PORT + job.epoch % PORTS
                self._order_runs(job, lease)
            elif job.state is not JobState.RUNNING:  # else its node was lost, and it may come back
                job.state = JobState.STARTING
        if job.state is not before:
            self._changed.add(job.id)

    def _begin_attempt(self, job: Job, lease: core.Lease) -> None:
        job.epoch = lease.epoch
        job.attempt += 1
        job.began, job.ended = lease.granted, None
        job.exits, job.first, job.stopped, job.begun, job.started = {}, None, False, False, False
        job.nodes = [part.spots[0].node for part in lease.parts]
        job.devices = list(lease.devices())
        job.state = JobState.STARTING
        job.port = 0
        self._ordered[job.id] = set()
        self._changed.add(job.id)

    def _has_done_enough(self, job: Job) -> bool:
        return job.first is not None or len(job.exits) == len(job.nodes) > 0

    def _order_runs(self, job: Job, lease: core.Lease) -> None:
        if not job.begun:
            job.begun, job.refused, job.tries = True, 0, job.tries + 1
            self._changed.add(job.id)
        ordered = self._ordered.setdefault(job.id, set())
        nodes = self._engine.nodes
        for member, at in enumerate(job.nodes):
            if member in ordered or member in job.exits or not nodes.reports(nodes.nodes[at]):
                continue
            ordered.add(member)
            order = RunOrder(
                nodes.term,
                lease.id,
                lease.epoch,
                member,
                job.id,
                job.owner,
                job.uid,
                job.spec,
                self._variables(job, member),
            )
            done = self._answer(job, lease.epoch)
            nodes.orders.give(nodes.nodes[at], order, done, time.monotonic(), lease.id)

    def _answer(self, job: Job, epoch: int):  # type: ignore[no-untyped-def]
        def done(answer: Started | HalError) -> None:
            if job.epoch != epoch or job.state is not JobState.RUNNING:
                return
            if not isinstance(answer, HalError):
                job.started = True
            else:
                job.stopped = True
                self.because(job.id, str(answer))
                self._release(job)

        return done

    def _variables(self, job: Job, member: int) -> dict[str, str]:
        found = {} if job.index is None else {"HAL_ARRAY_INDEX": str(job.index)}
        if len(job.nodes) > 1:
            address = self._address(job.nodes[0], alone=len(set(job.nodes)) == 1)
            found |= rendezvous(member, len(job.nodes), address, job.port)
        return found

    def _address(self, node: str, *, alone: bool) -> str:
        """Of a node, as others reach it: what its label "address" says, or where it has joined from."""
        engine = self._engine
        if (told := engine.labels(node).get("address")) is not None:
            return told
        if alone:
            return "127.0.0.1"
        return engine.host_of(node) or socket.gethostname()

    def _is_gone(self, job: Job) -> None:
        """Nothing is left of its lease, or it waits no longer."""
        if job.cancelled:
            return self._is_over(job, JobState.CANCELLED, job.why or "cancelled")
        if job.first is not None and job.stopped:
            return self._is_over(job, JobState.FAILED, self._failure(job, job.first))
        if job.stopped and len(job.exits) == len(job.nodes):
            return self._is_over(job, JobState.COMPLETED, "")
        why = self._engine.over.get(job.id, ("", ""))
        withdrawn = job.state is JobState.WAITING and why[0] == "ended"
        reason = job.reason if withdrawn else why[1] if why[0] == "failed" else job.why or _TAKEN_AWAY
        if why[0] == "failed" and not job.begun and not job.attached:
            del self._engine.over[job.id]
            return self._is_refused(job, reason)
        if job.stopped or job.attached or withdrawn or not job.attempt:
            return self._is_over(job, JobState.FAILED, reason)
        if job.tries > job.retries:
            used = f" ({job.retries} of {job.retries} retries used)" if job.retries else ""
            return self._is_over(job, JobState.FAILED, reason + used)
        job.first, job.exits, job.begun = None, {}, False
        try:
            self._engine.decide(self._request(job))
        except Refused as refused:
            return self._is_over(job, JobState.FAILED, f"{reason}; and again: {refused}")
        job.state, job.reason = JobState.WAITING, _AGAIN + reason
        return self._touch(job.id)

    def _cut_off(self, node: str) -> str:
        if node == self._engine.nodes.own:
            return "the scheduler was away for too long, and its node stopped it"
        return f"node '{node}' was cut off and stopped it"

    def _failure(self, job: Job, member: int) -> str:
        """How the first member that failed has ended."""
        one = job.exits[member]
        how = f"ended with code {one.code}" if one.signal is None else f"was ended by signal {one.signal}"
        return one.error or f"{f'member {member}' if len(job.nodes) > 1 else 'its program'} {how}"

    def _is_refused(self, job: Job, reason: str) -> None:
        """A node could not make its slices: nothing was begun, and so it was no try of the job."""
        job.refused += 1
        job.attempt = max(job.attempt, 1)
        self._engine.monitor.job(job.id, "refused", reason, self._requests.get(job.id, ""))
        if job.refused > _REFUSALS:
            self._is_over(job, JobState.FAILED, f"{reason} (refused {job.refused} times)")
            return
        job.state, job.reason = JobState.WAITING, _AGAIN + reason
        pause = min(2.0 ** (job.refused - 1), _LONGEST_PAUSE)
        self._later[job.id] = time.monotonic() + pause
        self._changed.add(job.id)

    def _is_over(self, job: Job, state: JobState, reason: str) -> None:
        job.state, job.reason, job.ended = state, reason, self._engine.now()
        self._engine.monitor.job(job.id, state.value, reason, self._requests.pop(job.id, ""))
        self._living.discard(job.id)
        self._ordered.pop(job.id, None)
        self._changed.add(job.id)
        self._engine.waiters.touch(waiting_for(job.id))
        self._engine.kept.drop(waiting_for(job.id))
        self._over_bytes += size_of(job.spec)
        while (over := len(self.jobs) - len(self._living)) > _KEPT or (
            self._over_bytes > _KEPT_BYTES and over > 1
        ):
            oldest = min((one for one in self.jobs.values() if one.state.over), key=lambda one: one.order)
            self._forget(oldest)
            self._over_bytes -= size_of(oldest.spec)
            self._changed.add(oldest.id)

    # ---- inside -----------------------------------------------------------------------------

    def _request(self, job: Job) -> core.Submit:
        return core.Submit(job.request, job.id, f"job:{job.id}", job.uid, 0)

    def _enter_queue(self, job: Job) -> None:
        """Raises Refused."""
        self._add(job)
        try:
            self._engine.decide(self._request(job))
        except Refused:
            self._engine.kept.drop(waiting_for(job.id))
            self._requests.pop(job.id, None)
            self._living.discard(job.id)
            self._forget(job)
            raise
        self._touch(job.id)

    def _forget(self, job: Job) -> None:
        """Others of its array are still found by their key."""
        del self.jobs[job.id]
        there = self._by_key[job.uid, job.key]
        there.remove(job.id)
        if not there:
            del self._by_key[job.uid, job.key]

    def _release(self, job: Job) -> None:
        state = self._engine.state
        if job.id in state.waiting or job.id in state.leases:
            self._engine.happens(core.Release(job.id, job.uid, job.why or _TAKEN_AWAY))

    def _add(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.accounts.know(job.owner, job.uid)
        self._by_key.setdefault((job.uid, job.key), []).append(job.id)
        if job.state.over:
            self._over_bytes += size_of(job.spec)
        else:
            self._living.add(job.id)
            self._requests[job.id] = self._engine.monitor.request
            self._engine.kept.add(waiting_for(job.id), job.uid, job.spec)

    def _touch(self, id: str) -> None:
        self._touched[id] = None
        self._changed.add(id)

    def _say(self, id: str, reason: str) -> None:
        if id in self._living:
            self.jobs[id].reason = reason
            self._touch(id)

    def _fresh_id(self) -> str:
        state = self._engine.state
        while True:
            id = secrets.token_hex(4)
            if not self.find(id) and id not in state.leases and id not in state.waiting:
                return id
