"""The daemon: sockets, clocks and files around the core.

One thread, one poll. It drains what has arrived, applies it, makes it durable with one commit, and only
then replies and sends orders to the nodes. Holders on this machine are watched by pidfd, so that a lease
ends with the process that took it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable

import msgspec
import zmq

from hal.backend import HalError, StateError
from hal.scheduler import bodies, clock, core, frames, watch, wire
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.binding import Beat, Join
from hal.scheduler.answers import (
    FAULTS,
    Address,
    Later,
    Peer,
    Refused,
    Waiter,
    code_of,
    error,
    fault,
    leaving,
)
from hal.scheduler.config import Config, changed, reloaded
from hal.scheduler.core import records
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.holders import SILENCE, Holders
from hal.scheduler.jobs.board import Board
from hal.scheduler.logs import Log
from hal.scheduler.monitor import Monitor
from hal.scheduler.nodes import Nodes
from hal.scheduler.operating import labelled
from hal.scheduler.operations import OPERATIONS, granted
from hal.scheduler.places import Places
from hal.scheduler.prices import Prices
from hal.scheduler.process import AlreadyRunning, collect_rarely, locked, signals_as_bytes
from hal.scheduler.security.door import Door
from hal.scheduler.store import NotDurable, Store, journal
from hal.scheduler.waiters import Waiters
from hal.scheduler.watch import Watch

__all__ = ["AlreadyRunning", "Daemon"]

_DRAIN = 256  # requests answered with one commit
_TICK = 1.0  # seconds between looks at what nobody reports: dead processes, slow endings
_FRESH = 0.5  # seconds for which the devices' outside use is believed
_LINGER = 1.0  # seconds without a lease after which a private daemon goes
_UNWRITTEN = frozenset({"hello", "status", "nodes", "renew", "beat"})  # answered while nothing can be written
_ENDING = 4.0  # seconds that a private daemon gives what it ends when it leaves


class Daemon:
    """Serves leases until ``stop()``, SIGTERM or SIGINT, on this machine (``agent``) and on all that join.

    A private daemon was started for one command: it leaves when nobody needs it, and takes every lease
    with it when told to stop. Any other keeps its leases on disk for its successor.
    """

    def __init__(
        self,
        agent: Agent | None,
        places: Places,
        *,
        config: Config | None = None,
        door: Door | None = None,
        private: bool = False,
        reread: Callable[[], Config] | None = None,
        log: Log | None = None,
        version: str = "",
    ) -> None:
        """``reread`` gives the configuration again, at SIGHUP; ``log``: without one, nothing is told."""
        self.pid = os.getpid()
        self.private = private
        self.version = version
        self.config = Config() if config is None else config
        self.prices = Prices(self.config.prices)
        lost, grace = self.config.scheduler.lost_seconds, self.config.scheduler.grace_seconds
        self.state = core.State(grace_ms=round(grace * 1000))
        self.nodes = Nodes(agent, lost_seconds=lost, grace_seconds=grace)
        self.over: dict[str, tuple[str, str]] = {}  # what has become of leases: code and message
        self.board = Board(self)
        self.agent = self._agent = agent
        self._places = places
        self._door = Door(self.config, places, None) if door is None else door
        self.limits = self._door.limits
        self._reread = reread
        self._joined: dict[str, Peer] = {}  # who speaks for each other node
        self._agents: dict[bytes, str] = {}  # their names, by what ZeroMQ calls them
        self._ending: dict[str, float] = {}  # lease id -> since when
        self.monitor = Monitor(log)
        self.watch_ring = Watch(tell=self.monitor.happened)
        self._published = 0
        self.trouble: str | None = None  # why nothing can be written
        self.waiters = self._waiters = Waiters()
        self._stopping = False
        self._zero = clock.zero_today()
        self.started_ms = self.now()
        self._seen = float("-inf")
        self._needed = time.monotonic()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve. ``ready`` is called once requests are answered.

        Raises AlreadyRunning, or StateError when the directory or the store cannot be used.
        """
        self._places.make()
        with locked(self._places), contextlib.ExitStack() as stack:
            self._store = Store(self._places.store)
            stack.callback(self._store.close)
            if self._agent is not None:
                stack.callback(self._agent.close)
                self._agent.start()
            self._poller = zmq.Poller()
            if self._agent is not None:
                self._poller.register(self._agent.descriptor, zmq.POLLIN)
            self._holders = Holders(self._poller)
            stack.callback(self._holders.close)
            self._recover()
            wakeup = stack.enter_context(signals_as_bytes(signal.SIGHUP))
            self._poller.register(wakeup, zmq.POLLIN)
            context = stack.enter_context(zmq.Context())
            self._routers = [self._door.open(context, self._poller)]
            for router in self._routers:
                stack.callback(router.close, linger=200)
            stack.callback(self._door.close)
            self._numbers = context.socket(zmq.PUB)
            stack.callback(self._numbers.close, linger=0)
            self._door.add(self._numbers, self._places.events)
            collect_rarely()
            ready()
            while not self._stopping:
                self._turn(wakeup)
            self._leave()

    def stop(self) -> None:
        self._stopping = True

    # ---- the loop ---------------------------------------------------------------------------

    def _turn(self, wakeup: socket.socket) -> None:
        events = dict(self._poller.poll(int(self._patience() * 1000) + 1))
        if wakeup.fileno() in events:
            self._hear(wakeup.recv(64))
        if self._door.turn(events, time.monotonic()):
            self._drop_revoked()
        for id in self._holders.gone(events):
            self.happens(core.HolderGone(id))
        for id in self._holders.silent(time.monotonic()):  # a lease expires by itself, a place does not
            if id in self.state.waiting:
                self.happens(core.HolderGone(id, SILENCE))
        if (troubled := self.trouble is not None) and self._commit():
            troubled = False  # there is room again
        replies = [reply for router in self._routers if router in events for reply in self._drain(router)]
        if self.state.waiting and time.monotonic() - self._seen >= _TICK:
            with contextlib.suppress(HalError):  # of a driver that does not answer, the last look counts
                self.look_at_devices()  # what others use may have become less
        self._look_at_nodes()
        self.happens(core.Tick())
        self._finish_endings(time.monotonic())
        self.board.turn()
        if not self._commit(quiet=not replies):
            replies = [(address, self._unsaid(reply, troubled)) for address, reply in replies]
        replies += self._waited()
        if self.trouble is None:
            self._publish()
        self._door.flush(durable=self.trouble is None)
        self.monitor.flush()
        # A client that has gone in the meantime is no error: its lease ends with its process.
        messages = [(address, wire.pack(reply)) for address, reply in replies]
        if self.trouble is None:
            messages += self.nodes.outbox
            self.nodes.outbox = []
        else:
            self.nodes.outbox = list(dict.fromkeys(self.nodes.outbox))  # what is ordered again is one
        for address, message in messages:
            with contextlib.suppress(zmq.ZMQError):
                frames.send(address.socket, address.identity, message)
        if self.trouble is None:
            self.nodes.carry_out(time.monotonic())
        if self.state.leases or self.state.waiting or self.board.pauses:
            self._needed = time.monotonic()
        elif self.private and time.monotonic() - self._needed > _LINGER:
            self._stopping = True

    def _publish(self) -> None:
        """Tell everybody how far it has gone. What has happened is served to those who may see it."""
        if self.watch_ring.last != self._published:
            self._published = self.watch_ring.last
            with contextlib.suppress(zmq.ZMQError):
                self._numbers.send(msgspec.msgpack.encode(self._published), flags=zmq.DONTWAIT)

    def _hear(self, signals: bytes) -> None:
        if signal.SIGHUP in signals:
            self._reload()
        self._stopping = self._stopping or any(number != signal.SIGHUP for number in signals)

    def _reload(self) -> None:
        """What of the configuration can take effect now, does; one with an error changes nothing."""
        if self._reread is None:
            return
        try:
            after = self._reread()
            self._door.reload(after)
        except StateError as wrong:
            self._door.say(f"the configuration stays as it is: {wrong}")
            return
        now, later = changed(self.config, after)
        said = reloaded(self.config, after)
        self.config, self.prices = after, Prices(after.prices)
        if self._agent is not None and self._agent.launcher is not None:
            self._agent.launcher.section = after.jobs
        self.nodes.lost_seconds = after.scheduler.lost_seconds
        self.nodes.grace_seconds = after.scheduler.grace_seconds
        self.state.grace_ms = round(after.scheduler.grace_seconds * 1000)
        self.noted(journal.Grace(self.state.grace_ms))
        self.monitor.log.level = after.scheduler.log_level
        self._seen = float("-inf")
        self.look_at_devices()
        for node in self.nodes.nodes.values():
            if node.facts is not None and node.address is not None:
                self.happens(core.InventoryChanged(self.laid_over(node.facts)))
        self._door.say(said)
        self._door.note(None, "reload", "ok", changed=now, later=later)

    def _patience(self) -> float:
        deadline = self.state.next_deadline()
        due = _TICK if deadline is None else max(deadline - self.now(), 0) / 1000
        if (waited := self._waiters.next_due()) is not None:
            due = min(due, max(waited - time.monotonic(), 0))
        due = min(due, self._door.patience(time.monotonic()))
        return min(due, 0.05 if self.nodes.busy or self._ending else _TICK)

    def _drain(self, router: zmq.Socket[bytes]) -> list[tuple[Address, wire.Reply]]:
        replies = []
        for _ in range(_DRAIN):
            message = frames.receive(router)
            if message is None:
                break
            address = Address(router, message[0])
            reply = self._answer(address, message[1])
            if reply is not None:
                replies.append((address, reply))
        return replies

    def _unsaid(self, reply: wire.Reply, troubled: bool) -> wire.Reply:
        """In place of this one, as what is not durable is not said. ``troubled``: only such was answered as
        needs nothing to be written."""
        if reply.ok and "durable" in reply.body:  # an agent's beat: it is not to stop its slices
            return wire.Reply(wire.VERSION, reply.id, True, {"durable": False})
        return reply if troubled else self._not_now(reply.id)

    def _not_now(self, id: str) -> wire.Reply:
        return error(id, "failed", f"{self.trouble}; ask again with the same key")

    def _answer(self, address: Address, parts: list[zmq.Frame]) -> wire.Reply | None:
        """None: it is answered later, or not at all."""
        now = time.monotonic()
        who: Peer | None = None
        message: wire.Request | wire.Reply | None = None
        reply: wire.Reply | None = None
        try:
            if len(parts) != 1:
                raise wire.Malformed("a message has one frame, not several")
            message = wire.unpack_message(parts[0].bytes)
            who = self._door.admit(address, parts[0], message, now)
            if isinstance(message, wire.Reply):
                # An identity is free again when its connection has ended: the name has to be the same.
                if self._agents.get(address.identity) == who.name:
                    self.nodes.answered(address, message)
                return None
            self._needed = now
            self._door.gate.check(who, message.op)
            if message.deadline_ms is not None and message.deadline_ms <= self.now():
                raise Refused("late", "its deadline had passed before it was read: nothing was done")
            if self.trouble is not None and message.op not in _UNWRITTEN:
                raise Refused("failed", f"{self.trouble}; nothing was done")
            self.monitor.begin(message.id)
            body = OPERATIONS[message.op](self, message.body, who)
            if isinstance(body, Waiter):
                self._door.limits.begin(who, now)
                body.peer, body.request = who, message.id
                self._waiters.add(body)
            else:
                reply = wire.Reply(wire.VERSION, message.id, True, body)
        except FAULTS as wrong:
            id = wrong.id if isinstance(wrong, wire.Malformed) else ""
            reply = wire.Reply(wire.VERSION, id or _id(message), False, error=fault(wrong))
        if isinstance(message, wire.Request):
            self._door.answered(who, message, reply)
            self.monitor.answered(who, message, reply)
        elif message is None:
            self.monitor.unreadable()
        return reply

    # ---- what is decided --------------------------------------------------------------------

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
            self._store.note(now, event)
        self.watch_ring.note(event, decisions, now)
        self.board.note(decisions)
        for decision in decisions:
            match decision:
                case core.Grant(lease=lease, again=False):
                    self._waiters.touch(lease.id)
                    self._begin(lease)
                case core.Queued(id=id, again=False):
                    self.watch_ring.queued(self.state.waiting[id], now, decision.reason)
                    self._holders.hear(id)
                case core.Revoke(lease=lease) | core.Preempt(lease=lease):
                    self.over[lease.id] = ("ended", f"the lease '{lease.id}' has ended: {decision.reason}")
                    self._waiters.touch(lease.id)
                    self._end(lease)
                case core.Withdrawn(id=id):
                    self._waiters.touch(id)
                    self.over[id] = ("ended", f"'{id}' waits no longer: {decision.reason}")
                    self._holders.unwatch(id)
        while len(self.over) > 1024:
            del self.over[next(iter(self.over))]
        return decisions

    def noted(self, entry: journal.Entry) -> None:
        """Put a change that no event makes into the journal."""
        self._store.note(self.now(), entry)

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
                self.happens(core.HolderGone(id))
                self.over[id] = ("failed", reason)

    def look_at_devices(self) -> None:
        """Ask this node again what others use of its devices, unless it was asked a moment ago."""
        if self._agent is not None and time.monotonic() - self._seen >= _FRESH:
            self.happens(core.InventoryChanged(self.laid_over(self._agent.facts())))
            self._seen = time.monotonic()

    # ---- nodes ------------------------------------------------------------------------------

    def labels(self, node: str) -> dict[str, str]:
        """Of a node: what its agent says, and over that what operators have set."""
        known = self.nodes.nodes.get(node)
        return ({} if known is None else known.labels) | self.state.world.counters.labels.get(node, {})

    def host_of(self, node: str) -> str:
        """Where its agent has joined from; "": this machine."""
        joined = self._joined.get(node)
        return "" if joined is None else joined.host

    def laid_over(self, facts: NodeFacts) -> NodeFacts:
        """With the prices of the configuration, and the labels of the node."""
        return self.prices.laid_over(labelled(facts, self.labels(facts.id)))

    def join(self, joining: Join, who: Peer) -> wire.Body:
        """An agent reports for its node. Raises Refused."""
        _must_speak_for(who, joining.node)
        answer = self.nodes.join(who.address, joining, self.state.leases, time.monotonic())
        facts = self.nodes.nodes[joining.node].facts
        if (before := self._joined.get(joining.node)) is not None:
            self._agents.pop(before.address.identity, None)
        self._joined[joining.node] = who
        self._agents[who.address.identity] = who.name
        if facts is not None and not answer.again:
            self.decide(core.NodeJoined(self.laid_over(facts)))
            self._store.put([("node", facts.id, msgspec.msgpack.encode(facts))])
            self.noted(journal.Known(facts))
            self.board.joined(facts.id)
        return msgspec.to_builtins(answer)  # type: ignore[no-any-return]

    def beat(self, beat: Beat, who: Peer) -> None:
        """Raises Refused when the agent has to join first."""
        _must_speak_for(who, beat.node)
        if not self.nodes.beat(who.address, beat, time.monotonic()):
            raise Refused("not_joined", f"node '{beat.node:.64}' has to join first")
        self.board.ended(beat.node, beat.runs)
        facts = self.nodes.nodes[beat.node].facts
        if beat.facts is not None and facts is not None:
            self.happens(core.InventoryChanged(self.laid_over(facts)))

    def _drop_revoked(self) -> None:
        """Send no more orders to agents whose keys are no longer in force: their nodes will be lost."""
        for id, who in list(self._joined.items()):
            if not self._door.gate.still(who):
                del self._joined[id]
                self._agents.pop(who.address.identity, None)
                self.nodes.nodes[id].address = None
        self._waiters.touch_all()

    def _look_at_nodes(self) -> None:
        now = time.monotonic()
        self.nodes.turn(now)
        for id in self.nodes.lost(now):
            self.happens(core.NodeLost(id))
        self._give_up_failures()

    # ---- who waits for an answer ------------------------------------------------------------

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

    def _waited(self) -> list[tuple[Address, wire.Reply]]:
        """The answers for which somebody has waited: only those who may have one now are looked at."""
        replies = []
        for id in self.nodes.settled:
            self._waiters.touch(id)
        self.nodes.settled.clear()
        if self.watch_ring.last != self._published:
            self._waiters.touch(watch.NAME)
        for waiter in self._waiters.take(time.monotonic()):
            assert waiter.peer is not None
            if self.trouble is not None:
                # Who only watches waits on, for as long as was asked for.
                if isinstance(waiter, watch.Watcher) and time.monotonic() < waiter.until:
                    self._waiters.add(waiter)
                    continue
                self._door.limits.end(waiter.peer)
                replies.append((waiter.peer.address, self._not_now(waiter.request)))
                continue
            try:
                if not self._door.gate.still(waiter.peer):
                    raise Refused("denied", "this key is no longer known to the scheduler")
                body = self.outcome(waiter)
                reply = None if body is None else wire.Reply(wire.VERSION, waiter.request, True, body)
            except Refused as refused:
                reply = error(waiter.request, refused.code, str(refused))
            if reply is None:
                self._waiters.add(waiter)
            else:
                self._door.limits.end(waiter.peer)
                replies.append((waiter.peer.address, reply))
        return replies

    # ---- holders and endings ----------------------------------------------------------------

    def watch(self, id: str, pid: int) -> None:
        """End this lease, or place in the queue, with the process."""
        if not self._holders.watch(id, pid):
            self.happens(core.HolderGone(id))

    def unwatch(self, id: str) -> None:
        self._holders.unwatch(id)

    def _end(self, lease: core.Lease) -> None:
        now = time.monotonic()
        self._ending[lease.id] = now
        if lease.id in self.board.jobs:
            self._holders.unwatch(lease.id)  # what runs in it is the scheduler's, and ends with it
        self.nodes.unbind(lease, now)
        self._finish(lease, now)

    def _finish_endings(self, now: float) -> None:
        for id in list(self._ending):
            lease = self.state.leases.get(id)
            if lease is not None:  # else it has ended with one before it
                self._finish(lease, now)

    def _finish(self, lease: core.Lease, now: float) -> None:
        """It has ended once none of the slices' processes is left, and the holder, whose program may not
        have allocated yet, has gone, or has had the time in which it must notice."""
        time_to_notice = lease.request.ttl_ms / 1000
        held = lease.id in self._holders and now - self._ending[lease.id] < time_to_notice
        if held or not self.nodes.has_ended(lease.id, now):
            return
        del self._ending[lease.id]
        self.nodes.forget(lease.id)
        self._holders.unwatch(lease.id)
        self.board.charge(lease)
        self.happens(core.Ended(lease.id))

    # ---- start and end ----------------------------------------------------------------------

    def _commit(self, *, quiet: bool = False) -> bool:
        """False: it cannot be written now, and is kept until it can. Memory may be ahead: nobody is told."""
        changes = [*records.changes(self.state), *self.nodes.changes(), *self.board.changes()]
        begun = time.monotonic()
        self._store.put(changes)
        if self._store.wants_base(quiet=quiet):
            nodes = tuple(self.state.world.fleet.facts)
            self._store.rebase(self.now(), records.everything(self.state), nodes, self.state.grace_ms)
        try:
            self._store.commit()
        except NotDurable as wrong:
            if self.trouble is None:
                self._door.say(f"{wrong}; requests that need it are refused until it can")
                self._waiters.touch_all()
            self.trouble = str(wrong)
            return False
        if changes:
            self.monitor.committed(time.monotonic() - begun)
        if self.trouble is not None:
            self.trouble = None
            self._door.say("the lease store can be written again")
            self._waiters.touch_all()
        return True

    def _recover(self) -> None:
        now = time.monotonic()
        try:
            rows = self._store.rows()
            saved = records.read(rows)
            self._load_apart(rows, now)
            if saved.counters is not None:
                self.state.world.counters = saved.counters  # has the labels to be laid over nodes
            gone = [lease for lease in saved.leases if not self.nodes.take_over(lease, now)]
            saved.leases = [lease for lease in saved.leases if lease not in gone]
            lost = set() if saved.counters is None else set(saved.counters.lost)
            own = [] if self._agent is None else [self.laid_over(self._agent.facts())]
            known = lost | {facts.id for facts in own}
            others = [self.laid_over(node) for node in saved.nodes if node.id not in known]
            nodes = own + others
            self.state = records.restore(saved, nodes, grace_ms=self.state.grace_ms)
        except records.DamagedError as wrong:
            raise StateError(f"the lease store {self._places.store} is damaged: {wrong}") from None
        for facts in nodes:
            self.nodes.know(facts, now)
        for id in lost:
            self.nodes.know_lost(id, now)
        if saved.leases or saved.waiting:
            handed_on = clock.handed_on(self._places.clock)
            self._zero = self._zero if handed_on is None else handed_on
        # The clock may have been set back since, or be another machine's: time goes on from what was seen.
        self._zero += max(_latest(saved) - self.now(), 0)
        clock.keep(self._places.clock, self._zero)
        self.started_ms = self.now()
        self._seen = now
        self._store.put([("lease", lease.id, None) for lease in gone])
        counters = self.state.world.counters
        # A node that has obeyed a scheduler of more starts than these would refuse this one.
        counters.term = self.nodes.term = max(counters.term, self._agent.term if self._agent else 0) + 1
        self.state.world.note("meta", "counters")
        ids = tuple(lease.id for lease in gone)
        self.noted(journal.Began(counters.term, self.state.grace_ms, ids, tuple(nodes)))
        self.watch_ring.begin(self.nodes.term, [*self.state.leases.values(), *self.state.waiting.values()])
        self._published = self.watch_ring.last
        self._store.put(records.changes(self.state))
        self._store.commit()
        self._resume(now)
        self._store.put(records.changes(self.state))
        self._store.commit()

    def _load_apart(self, rows: list[records.Row], now: float) -> None:
        """Raises DamagedError."""
        try:
            self.nodes.load(rows, now)
            self.board.load(rows)
        except msgspec.DecodeError as error:
            raise records.DamagedError(f"a job, account or node cannot be read: {error}") from None

    def _resume(self, now: float) -> None:
        leases = list(self.state.leases.values())
        if self._agent is not None:
            self._agent.keep(self.nodes.term, {lease.id: lease.epoch for lease in leases}, now)
        for lease in leases:
            if lease.state is core.LeaseState.ENDING:
                self.watch(lease.id, lease.holder_pid)  # it may not have noticed yet
                self._end(lease)
            else:
                self.nodes.bind(lease, now)
                self.watch(lease.id, lease.holder_pid)
        self._give_up_failures()
        for one in list(self.state.waiting.values()):
            self.watch(one.id, one.holder_pid)
        self.happens(core.Resumed())

    def _leave(self) -> None:
        """Orderly end: a private daemon ends every lease first, then all removes what is empty."""
        self._places.events.unlink(missing_ok=True)
        self._places.socket.unlink(missing_ok=True)  # nobody is answered from here on: nobody is to wait
        left = [(one.peer.address, one.request) for one in self._waiters if one.peer is not None]
        for router in self._routers:
            with contextlib.suppress(zmq.Again):
                while True:
                    frames = router.recv_multipart(flags=zmq.DONTWAIT)
                    id = ""
                    with contextlib.suppress(wire.Malformed):
                        id = wire.unpack_request(frames[-1]).id
                    left.append((Address(router, frames[0]), id))
        for address, id in left:
            message = wire.pack(leaving(id))
            with contextlib.suppress(zmq.ZMQError):
                address.socket.send_multipart([address.identity, message], flags=zmq.DONTWAIT)
        if self.private:
            for id in [*self.state.waiting, *self.state.leases]:
                self._holders.unwatch(id)
                self.happens(core.HolderGone(id))
            patience = time.monotonic() + _ENDING
            while self._ending and time.monotonic() < patience:
                time.sleep(0.02)
                self.nodes.turn(time.monotonic())
                self._finish_endings(time.monotonic())
            self.board.turn()
        self._commit()
        if not self.board.is_worth_keeping and not self.state.is_worth_keeping and not self.nodes.has_others:
            self._store.close()
            self._store.unlink()
            if self._agent is not None:
                self._agent.forget()


def _latest(saved: records.Saved) -> int:
    """The latest time that anything written down happened at."""
    times = [lease.granted for lease in saved.leases] + [one.arrived for one in saved.waiting]
    return max([*times, 0 if saved.counters is None else saved.counters.faded_until])


def _must_speak_for(who: Peer, node: str) -> None:
    """Raises Refused."""
    if not who.speaks_for(node):
        raise Refused("denied", f"the key '{who.name}' is not that of node '{node:.64}'")


def _id(message: wire.Request | wire.Reply | None) -> str:
    return "" if message is None else message.id
