"""What the scheduler makes of events: the core applies them, the nodes carry them out, the store keeps them.

No socket is here. The daemon (daemon.py) says what arrives, and what is to be answered once ``commit`` has
made it durable.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from hal.backend import StateError
from hal.scheduler import bodies, clock, core, wire
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.binding import Beat, Join
from hal.scheduler.answers import Later, Peer, Refused, Waiter, code_of
from hal.scheduler.config import Config
from hal.scheduler.core import records
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.holders import Holders
from hal.scheduler.jobs.board import Board
from hal.scheduler.kept import Kept
from hal.scheduler.monitor import Monitor
from hal.scheduler.nodes import Nodes
from hal.scheduler.operating import labelled
from hal.scheduler.operations import granted
from hal.scheduler.past import Past
from hal.scheduler.places import Places
from hal.scheduler.prices import Prices
from hal.scheduler.security.limits import Limits
from hal.scheduler.store import NotDurable, Store, journal
from hal.scheduler.waiters import Waiters
from hal.scheduler.watch import Watch

__all__ = ["Engine"]

_FRESH = 0.5  # seconds for which the devices' outside use is believed at least
_LOOKING = 9  # times as long as a look has taken: slow drivers keep nobody waiting for long
_REMEMBERED = 1024  # leases and requests that are over, of which it is known why


class Engine:
    """State and all that follows from it; ``store`` and ``holders`` are there once it is opened."""

    store: Store
    holders: Holders

    def __init__(
        self,
        agent: Agent | None,
        places: Places,
        config: Config,
        limits: Limits,
        *,
        private: bool,
        monitor: Monitor,
        version: str,
        say: Callable[[str], None],
    ) -> None:
        """``say`` is told what an operator should know."""
        self.pid = os.getpid()
        self.private = private
        self.version = version
        self.config = config
        self.limits = limits
        self.prices = Prices(config.prices)
        lost, grace = config.scheduler.lost_seconds, config.scheduler.grace_seconds
        self.state = core.State(grace_ms=round(grace * 1000))
        self.nodes = Nodes(agent, lost_seconds=lost, grace_seconds=grace)
        self.over: OrderedDict[str, tuple[str, str]] = OrderedDict()  # what became of leases: code, message
        self.past = Past()
        self.kept = Kept()
        self.board = Board(self)
        self.agent = agent
        self.places = places
        self.joined: dict[str, Peer] = {}  # who speaks for each other node
        self.unowned: list[str] = []  # leases of this node that were found at the start, and nobody knew of
        self._turned_away: dict[str, str] = {}  # nodes that may not join, and why
        self.speakers: dict[bytes, str] = {}  # their names, by what ZeroMQ calls them
        self.ending: dict[str, float] = {}  # lease id -> since when
        self._departed: dict[str, DeviceFacts] = {}  # that no node has any more, and leases are still on
        self.monitor = monitor
        self.watch_ring = Watch(tell=monitor.happened)
        self.trouble: str | None = None  # why nothing can be written
        self.unnoted: str | None = None  # why what is done is in no audit log
        self.waiters = Waiters()
        self.say = say
        self.seen = float("-inf")  # when this node's devices were looked at
        self._fresh = _FRESH  # and for how long that is believed
        self._zero = clock.zero_today()
        self.started_ms = self.now()
        self._follow: dict[type[core.Decision], Callable[[Any, int], None]] = {
            core.Grant: self._granted,
            core.Queued: self._queued,
            core.Revoke: self._taken_away,
            core.Preempt: self._taken_away,
            core.Withdrawn: self._withdrawn,
        }

    # ---- what is decided -------------------------------------------------------------------

    def now(self) -> int:
        """Milliseconds since 1970 when this daemon started, or the one before it whose leases it keeps, and
        from then on a clock that nobody sets."""
        return self._zero + time.monotonic_ns() // 1_000_000

    def decide(self, event: core.Event) -> None:
        """Apply what somebody asked for. Raises Refused when that is the answer."""
        for decision in self.happens(event):
            if isinstance(decision, core.Refuse):
                gone = decision.code in (core.Refusal.ENDED, core.Refusal.NOT_FOUND)
                if gone and decision.id in self.over:
                    raise Refused(*self.over[decision.id])
                raise Refused(code_of(decision), decision.reason)

    def happens(self, event: core.Event) -> list[core.Decision]:
        """Apply an event and carry out what follows."""
        now = self.now()
        worth_noting = not journal.changes_nothing(self.state, event, now)
        decisions = self.state.apply(event, now)
        if worth_noting:
            self.store.note(now, event)
        elif not decisions:
            return decisions
        self.watch_ring.note(event, decisions, now)
        self.past.note(event, decisions, now, self.monitor.who)
        self.board.note(decisions)
        for decision in decisions:
            follow = self._follow.get(type(decision))
            if follow is not None:
                follow(decision, now)
        return decisions

    def _granted(self, decision: core.Grant, _now: int) -> None:
        if not decision.again:
            self.kept.drop(decision.lease.id)
            self.waiters.touch(decision.lease.id)
            self._begin(decision.lease)

    def _queued(self, decision: core.Queued, now: int) -> None:
        one = self.state.waiting.get(decision.id)
        if one is not None and not decision.again:  # else it is granted in the same go
            self.kept.add(one.id, one.uid, one.request)
            self.watch_ring.queued(one, now, decision.reason)
            self.holders.hear(one.id)

    def _taken_away(self, decision: core.Revoke | core.Preempt, _now: int) -> None:
        lease = decision.lease
        self._is_over(lease.id, "ended", f"the lease '{lease.id}' has ended: {decision.reason}")
        self.waiters.touch(lease.id)
        self._end(lease)

    def _withdrawn(self, decision: core.Withdrawn, _now: int) -> None:
        self.waiters.touch(decision.id)
        self.kept.drop(decision.id)
        self._is_over(decision.id, "ended", f"'{decision.id}' waits no longer: {decision.reason}")
        self.holders.unwatch(decision.id)

    def _is_over(self, id: str, code: str, message: str) -> None:
        self.over[id] = (code, message)
        if len(self.over) > _REMEMBERED:
            self.over.popitem(last=False)

    def noted(self, entry: journal.Entry) -> None:
        """Put a change that no event makes into the journal."""
        self.store.note(self.now(), entry)

    def _begin(self, lease: core.Lease) -> None:
        self.nodes.bind(lease, time.monotonic())
        self._give_up_failures()
        if self.state.leases.get(lease.id) is lease and lease.state is not core.LeaseState.ENDING:
            self.watch(lease.id, lease.holder_pid)

    def _give_up_failures(self) -> None:
        """End leases that a node could not give, or has lost."""
        for id, reason in self.nodes.failures():
            lease = self.state.leases.get(id)
            if lease is not None and lease.state is not core.LeaseState.ENDING:
                if not self.nodes.was_usable(id):
                    self.unwatch(id)  # its holder, who was told nothing, has nothing to notice
                self.happens(core.HolderGone(id, reason, core.Cause.FAILED))
                self._is_over(id, "failed", reason)

    def look_at_devices(self) -> None:
        """Ask this node again what others use of its devices, unless it was asked a moment ago."""
        begun = time.monotonic()
        if self.agent is not None and begun - self.seen >= self._fresh:
            facts = self.laid_over(self.agent.facts())
            self._departs(self.nodes.nodes[facts.id].facts, facts)
            self.happens(core.InventoryChanged(facts))
            self.seen = time.monotonic()
            self._fresh = max(_FRESH, _LOOKING * (self.seen - begun))

    # ---- nodes -----------------------------------------------------------------------------

    def labels(self, node: str) -> dict[str, str]:
        """Of a node: what its agent says, and over that what operators have set."""
        known = self.nodes.nodes.get(node)
        return ({} if known is None else known.labels) | self.state.world.counters.labels.get(node, {})

    def device(self, id: str) -> DeviceFacts | None:
        """As it is, or was when it was heard of last; None: it has gone, and no lease was on it then."""
        found = self.state.world.fleet.device(id)
        if found is None and (name := self.nodes.node_of(id)) is not None:
            facts = self.nodes.nodes[name].facts
            there = () if facts is None else self.laid_over(facts).devices
            found = next((one for one in there if one.id == id), None)
        return self._departed.get(id) if found is None else found

    def _departs(self, before: NodeFacts | None, after: NodeFacts | None) -> None:
        """What a node has no more is remembered for the leases on it, until they have been charged."""
        there = () if after is None else {device.id for device in after.devices}
        if before is None or all(device.id in there for device in before.devices):
            return
        for device in self.laid_over(before).devices:
            if device.id not in there and self.state.world.on_device(device.id):
                self._departed[device.id] = device

    def host_of(self, node: str) -> str:
        """Where its agent has joined from; "": this machine."""
        joined = self.joined.get(node)
        return "" if joined is None else joined.host

    def laid_over(self, facts: NodeFacts) -> NodeFacts:
        """With the prices of the configuration, and the labels of the node."""
        return self.prices.laid_over(labelled(facts, self.labels(facts.id)))

    def join(self, joining: Join, who: Peer) -> wire.Body:
        """An agent reports for its node. Raises Refused."""
        _must_speak_for(who, joining.node)
        known = self.nodes.nodes.get(joining.node)
        had, said = (None, {}) if known is None else (known.facts, known.labels)
        try:
            answer = self.nodes.join(who.address, joining, self.state.leases, time.monotonic())
        except Refused as wrong:
            if self._turned_away.get(joining.node) != str(wrong):  # it asks each second
                if len(self._turned_away) >= _REMEMBERED:
                    self._turned_away.clear()
                self._turned_away[joining.node] = str(wrong)
                self.say(f"node '{joining.node}' was not let in: {wrong}")
            raise
        self._turned_away.pop(joining.node, None)
        facts = self.nodes.nodes[joining.node].facts
        self._departs(had, facts)
        if (before := self.joined.get(joining.node)) is not None:
            self.speakers.pop(before.address.identity, None)
        self.joined[joining.node] = who
        self.speakers[who.address.identity] = who.name
        if facts is not None and not answer.again:
            if joining.labels != said:
                self._tell_of_labels(joining)
            self.decide(core.NodeJoined(self.laid_over(facts)))
            self.store.put([("node", facts.id, msgspec.msgpack.encode(facts))])
            self.noted(journal.Known(facts))
            self.board.joined(facts.id)
        return msgspec.to_builtins(answer)  # type: ignore[no-any-return]

    def _tell_of_labels(self, joining: Join) -> None:
        """Who changes them in the node's own file wonders why nothing follows."""
        kept = self.state.world.counters.labels.get(joining.node, {})
        for name, value in joining.labels.items():
            if kept.get(name, value) != value:
                self.say(
                    f"node '{joining.node}' says {name}={value}, and 'hal node label' has set "
                    f"{name}={kept[name]}, which counts"
                )

    def beat(self, beat: Beat, who: Peer) -> None:
        """Raises Refused when the agent has to join first."""
        _must_speak_for(who, beat.node)
        known = self.nodes.nodes.get(beat.node)
        had = None if known is None else known.facts
        if not self.nodes.beat(who.address, beat, time.monotonic()):
            raise Refused("not_joined", f"node '{beat.node:.64}' has to join first")
        self.board.ended(beat.node, beat.runs)
        facts = self.nodes.nodes[beat.node].facts
        if beat.facts is not None and facts is not None:
            self._departs(had, facts)
            self.happens(core.InventoryChanged(self.laid_over(facts)))

    def forget(self, node: str) -> None:
        """Listen no longer to who spoke for a node that is no more."""
        if (who := self.joined.pop(node, None)) is not None:
            self.speakers.pop(who.address.identity, None)
        self._departs(self.nodes.nodes[node].facts, None)
        self.nodes.forget_node(node)

    def drop_revoked(self, still: Callable[[Peer], bool]) -> None:
        """Send no more orders to agents whose keys are no longer in force: their nodes will be lost."""
        for id, who in list(self.joined.items()):
            if not still(who):
                del self.joined[id]
                self.speakers.pop(who.address.identity, None)
                self.nodes.nodes[id].address = None
        self.waiters.touch_all()

    def look_at_nodes(self) -> None:
        now = time.monotonic()
        self.nodes.turn(now)
        for id in self.nodes.lost(now):
            self.happens(core.NodeLost(id))
        self._give_up_failures()

    # ---- who waits for an answer -----------------------------------------------------------

    def outcome(self, waiter: Waiter) -> wire.Body | None:
        """What to say now; None: nothing yet. Raises Refused when there is nothing to wait for."""
        if isinstance(waiter, Later):
            return waiter.answer(at_once=time.monotonic() >= waiter.until)
        lease = self.state.leases.get(waiter.lease)
        lives = lease is not None and lease.state is not core.LeaseState.ENDING
        if lease is not None and lives and self.nodes.is_bound(lease):
            return granted(self, lease)
        one = self.state.waiting.get(waiter.lease)
        if one is None and not lives and (lease is None or waiter.lease in self.over):
            gone = ("not_found", f"there is no lease '{waiter.lease}'")
            raise Refused(*self.over.get(waiter.lease, gone))
        if time.monotonic() < waiter.until:
            return None
        if one is not None:
            return {"waiting": bodies.queued(one, self.now())}
        return {"waiting": {} if lease is None else bodies.being_made(lease, self.now())}

    # ---- holders and endings ---------------------------------------------------------------

    def watch(self, id: str, pid: int) -> None:
        """End this lease, or place in the queue, with the process."""
        if not self.holders.watch(id, pid):
            self.happens(core.HolderGone(id))

    def unwatch(self, id: str) -> None:
        self.holders.unwatch(id)

    def _end(self, lease: core.Lease) -> None:
        now = time.monotonic()
        self.ending[lease.id] = now
        if lease.id in self.board.jobs:
            self.holders.unwatch(lease.id)  # what runs in it is the scheduler's, and ends with it
        self.nodes.unbind(lease, now)
        self._finish(lease, now)

    def finish_endings(self, now: float) -> None:
        for id in list(self.ending):
            lease = self.state.leases.get(id)
            if lease is not None:  # else it has ended with one before it
                self._finish(lease, now)

    def _finish(self, lease: core.Lease, now: float) -> None:
        """It has ended once none of the slices' processes is left, and the holder, whose program may not
        have allocated yet, has gone, or has had the time in which it must notice."""
        time_to_notice = lease.request.ttl_ms / 1000
        held = lease.id in self.holders and now - self.ending[lease.id] < time_to_notice
        if held or not self.nodes.has_ended(lease.id, now):
            return
        del self.ending[lease.id]
        self.nodes.forget(lease.id)
        self.holders.unwatch(lease.id)
        self.board.charge(lease)
        self.happens(core.Ended(lease.id))
        if self._departed:
            on = self.state.world.on_device
            self._departed = {id: device for id, device in self._departed.items() if on(id)}

    # ---- store -----------------------------------------------------------------------------

    def commit(self, *, quiet: bool = False) -> bool:
        """False: it cannot be written now, and is kept until it can. Memory may be ahead: nobody is told."""
        changes = self._changes()
        begun = time.monotonic()
        self.store.put(changes)
        if self.store.wants_base(quiet=quiet):
            nodes = tuple(self.state.world.fleet.facts)
            self.store.rebase(self.now(), records.everything(self.state), nodes, self.state.grace_ms)
        try:
            self.store.commit()
        except NotDurable as wrong:
            if self.trouble is None:
                self.say(f"{wrong}; requests that need it are refused until it can")
                self.waiters.touch_all()
            self.trouble = str(wrong)
            return False
        if changes:
            self.monitor.committed(time.monotonic() - begun)
        if self.trouble is not None:
            self.trouble = None
            self.say("the lease store can be written again")
            self.waiters.touch_all()
        return True

    def _changes(self) -> list[records.Row]:
        return [*records.changes(self.state), *self.nodes.changes(), *self.board.changes()]

    def recover(self) -> None:
        now = time.monotonic()
        try:
            rows = self.store.rows()
            saved, seen = records.read(rows), self.store.seen()
            self._load_apart(rows, now)
            if saved.counters is not None:
                self.state.world.counters = saved.counters  # has the labels to be laid over nodes
            gone = [lease for lease in saved.leases if not self.nodes.take_over(lease, now)]
            saved.leases = [lease for lease in saved.leases if lease not in gone]
            lost = set() if saved.counters is None else set(saved.counters.lost)
            own = [] if self.agent is None else [self.laid_over(self.agent.facts())]
            known = lost | {facts.id for facts in own}
            others = [self.laid_over(node) for node in saved.nodes if node.id not in known]
            nodes = own + others
            self.state = records.restore(saved, nodes, grace_ms=self.state.grace_ms)
        except records.DamagedError as wrong:
            raise StateError(f"the lease store {self.places.store} is damaged: {wrong}") from None
        for facts in nodes:
            self.nodes.know(facts, now)
        for facts in saved.nodes:
            if facts.id in lost:
                self.nodes.know(facts, now)
        for id in lost:
            self.nodes.know_lost(id, now)
        if saved.leases or saved.waiting:
            handed_on = clock.handed_on(self.places.clock)
            self._zero = self._zero if handed_on is None else handed_on
        # The clock may have been set back since, or be another machine's: time goes on from what was seen.
        charged = max(map(self.board.accounts.charged_until, saved.leases), default=0)
        self._zero += max(_latest(saved) - self.now(), charged - self.now(), 0)
        clock.keep(self.places.clock, self._zero)
        self.started_ms = self.now()
        self.seen = now
        self.store.put([("lease", lease.id, None) for lease in gone])
        counters = self.state.world.counters
        # A node that has obeyed a scheduler of more starts than these would refuse this one.
        counters.term = self.nodes.term = max(counters.term, self.agent.term if self.agent else 0) + 1
        self.state.world.note("meta", "counters")
        ids = tuple(lease.id for lease in gone)
        self.noted(journal.Began(counters.term, self.state.grace_ms, ids, tuple(nodes)))
        self.watch_ring.begin(self.nodes.term, [*self.state.leases.values(), *self.state.waiting.values()])
        for lease in gone:
            self.board.because(lease.id, f"node '{self.nodes.own}' has lost its slice")
            self.board.charge(lease, until=min(seen, self.now()))
        self.store.put(self._changes())
        self.store.commit()
        self._resume(now)
        self.store.put(self._changes())
        self.store.commit()

    def _load_apart(self, rows: list[records.Row], now: float) -> None:
        """Raises DamagedError."""
        try:
            self.nodes.load(rows, now)
            self.board.load(rows)
        except msgspec.DecodeError as error:
            raise records.DamagedError(f"a job, account or node cannot be read: {error}") from None

    def _resume(self, now: float) -> None:
        leases = list(self.state.leases.values())
        if self.agent is not None:
            wanted = {lease.id: lease.epoch for lease in leases}
            self.unowned = self.agent.keep(self.nodes.term, wanted, now)
        for lease in leases:
            if lease.state is core.LeaseState.ENDING:
                self.watch(lease.id, lease.holder_pid)  # it may not have noticed yet
                self._end(lease)
            else:
                self.nodes.bind(lease, now)
                self.watch(lease.id, lease.holder_pid)
        self._give_up_failures()
        for one in list(self.state.waiting.values()):
            self.kept.add(one.id, one.uid, one.request)
            self.watch(one.id, one.holder_pid)
        self.happens(core.Resumed())


def _latest(saved: records.Saved) -> int:
    """The latest time that anything written down happened at."""
    times = [lease.granted for lease in saved.leases] + [one.arrived for one in saved.waiting]
    return max([*times, 0 if saved.counters is None else saved.counters.faded_until])


def _must_speak_for(who: Peer, node: str) -> None:
    """Raises Refused."""
    if not who.speaks_for(node):
        raise Refused("denied", f"the key '{who.name}' is not that of node '{node:.64}'")
