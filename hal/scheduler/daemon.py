"""The daemon: sockets and signals around the engine.

One thread, one poll. It drains what has arrived, applies it, makes it durable with one commit, and only
then replies and sends orders to the nodes. Holders on this machine are watched by pidfd, so that a lease
ends with the process that took it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable

import msgspec
import zmq

from hal.backend import HalError, StateError
from hal.scheduler import core, frames, lender, watch, wire
from hal.scheduler.agent.agent import Agent, ended_as_unknown
from hal.scheduler.answers import FAULTS, Address, Later, Peer, Refused, Waiter, Work, error, fault, leaving
from hal.scheduler.config import Config, changed, check_there, reloaded
from hal.scheduler.engine import Engine
from hal.scheduler.holders import SILENCE, Holders
from hal.scheduler.jobs.launch import missing_users
from hal.scheduler.logs import Log
from hal.scheduler.monitor import Monitor
from hal.scheduler.operations import OPERATIONS
from hal.scheduler.places import Places
from hal.scheduler.prices import Prices
from hal.scheduler.process import AlreadyRunning, collect_rarely, locked, signals_as_bytes
from hal.scheduler.security.door import Door
from hal.scheduler.security.limits import PLAIN
from hal.scheduler.store import Store, journal

__all__ = ["AlreadyRunning", "Daemon"]

_DRAIN = 256  # requests answered with one commit
_LONG = 0.01  # seconds beyond what is plain, after which others are answered first
_TICK = 1.0  # seconds between looks at what nobody reports: dead processes, slow endings
_LINGER = 1.0  # seconds without a lease after which a private daemon goes
_UNWRITTEN = frozenset({"hello", "status", "nodes", "renew", "beat"})  # answered while nothing can be written
_MISTAKE = (
    "this request has met a mistake in hal: nothing was done, the scheduler's log has more, please report it"
)
_ENDING = 4.0  # seconds that a private daemon gives what it ends when it leaves


class Daemon(Engine):
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
        config = Config() if config is None else config
        self._door = Door(config, places, None) if door is None else door
        super().__init__(
            agent,
            places,
            config,
            self._door.limits,
            private=private,
            monitor=Monitor(log),
            version=version,
            say=self._door.say,
        )
        self._reread = reread
        self._started = config
        self._published = 0
        self._stopping = False
        self._took = 0.0  # seconds beyond what is plain, in this turn
        self._run = 0.0  # that this thread had run when it was looked at last
        self._needed = time.monotonic()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve. ``ready`` is called once requests are answered.

        Raises AlreadyRunning, or StateError when the directory or the store cannot be used.
        """
        self.places.make()
        who = None if self.agent is None else lender.RUN if self.private else lender.SERVE
        with locked(self.places, who), contextlib.ExitStack() as stack:
            self._door.check(self.config)  # before anything is made
            self.store = Store(self.places.store)
            stack.push(self._close_store)
            if self.agent is not None:
                stack.callback(self.agent.close)
                self.agent.start()
            self._poller = zmq.Poller()
            if self.agent is not None:
                self._poller.register(self.agent.descriptor, zmq.POLLIN)
            self.holders = Holders(self._poller)
            stack.callback(self.holders.close)
            self.recover()
            self._published = self.watch_ring.last
            wakeup = stack.enter_context(signals_as_bytes(signal.SIGHUP))
            self._poller.register(wakeup, zmq.POLLIN)
            context = stack.enter_context(zmq.Context())
            self._routers = [self._door.open(context, self._poller)]
            for router in self._routers:
                stack.callback(router.close, linger=200)
            stack.callback(self._door.close)
            self._numbers = context.socket(zmq.PUB)
            stack.callback(self._numbers.close, linger=0)
            self._door.add(self._numbers, self.places.events)
            collect_rarely()
            ready()
            if self.unowned:
                self.say(ended_as_unknown(self.unowned))
            while not self._stopping:
                self._turn(wakeup)
            self._leave()

    def stop(self) -> None:
        self._stopping = True

    def _close_store(self, fault: type[BaseException] | None, *_: object) -> None:
        if fault is None:
            self.store.close()
        else:
            self.store.abandon()

    # ---- the loop ---------------------------------------------------------------------------

    def _turn(self, wakeup: socket.socket) -> None:
        events = dict(self._poller.poll(int(self._patience() * 1000) + 1))
        if wakeup.fileno() in events:
            self._hear(wakeup.recv(64))
        if self._door.turn(events, time.monotonic(), self.kept.total):
            self.drop_revoked(self._door.gate.still)
        for id in self.holders.gone(events):
            self.happens(core.HolderGone(id))
        for id in self.holders.silent(time.monotonic()):  # a lease expires by itself, a place does not
            if id in self.state.waiting:
                self.happens(core.HolderGone(id, SILENCE))
        if (troubled := self.trouble is not None) and self.commit():
            troubled = False  # there is room again
        replies = [reply for router in self._routers if router in events for reply in self._drain(router)]
        if self.state.waiting and time.monotonic() - self.seen >= _TICK:
            with contextlib.suppress(HalError):  # of a driver that does not answer, the last look counts
                self.look_at_devices()  # what others use may have become less
        self.look_at_nodes()
        self.happens(core.Tick())
        self.finish_endings(time.monotonic())
        self.board.turn()
        if not self.commit(quiet=not replies):
            replies = [(address, self._unsaid(reply, troubled)) for address, reply in replies]
        replies += self._waited()
        if self.trouble is None:
            self._publish()
        self.unnoted = self._door.flush(durable=self.trouble is None)
        self.monitor.flush()
        # A client that has gone in the meantime is no error: its lease ends with its process.
        messages = [(address, _packed(reply)) for address, reply in replies]
        orders = self.nodes.orders
        if self.trouble is None:
            messages += orders.outbox
            orders.outbox = []
        else:
            orders.outbox = list(dict.fromkeys(orders.outbox))  # what is ordered again is one
        for address, message in messages:
            frames.send(address.socket, address.identity, message)
        if self.trouble is None:
            orders.carry_out(time.monotonic())
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
            check_there(self.config, after)
            roles = self._door.check(after)
            self.places.make(passable=after.jobs.of_others)
        except StateError as wrong:
            self._door.say(f"the configuration stays as it is: {wrong}")
            return
        self._door.reload(after, roles)
        now, later = changed(self._started, self.config, after)
        said = reloaded(self._started, self.config, after)
        self.config, self.prices = after, Prices(after.prices)
        if self.agent is not None and self.agent.launcher is not None:
            self.agent.launcher.section = after.jobs
            for sentence in missing_users(after.jobs):
                self.monitor.log.warn(sentence)
        self.nodes.lost_seconds = after.scheduler.lost_seconds
        self.nodes.grace_seconds = after.scheduler.grace_seconds
        self.state.grace_ms = round(after.scheduler.grace_seconds * 1000)
        self.noted(journal.Grace(self.state.grace_ms))
        self.monitor.log.level = after.scheduler.log_level
        self.seen = float("-inf")
        self.look_at_devices()
        for node in self.nodes.nodes.values():
            if node.facts is not None and node.address is not None:
                self.happens(core.InventoryChanged(self.laid_over(node.facts)))
        self._door.say(said)
        self._door.note(None, "reload", "ok", changed=now, later=later)

    def _patience(self) -> float:
        deadline = self.state.next_deadline()
        due = _TICK if deadline is None else max(deadline - self.now(), 0) / 1000
        if (waited := self.waiters.next_due()) is not None:
            due = min(due, max(waited - time.monotonic(), 0))
        due = min(due, self._door.patience)
        return min(due, 0.05 if self.nodes.busy or self.ending else _TICK)

    def _drain(self, router: zmq.Socket[bytes]) -> list[tuple[Address, wire.Reply]]:
        replies = []
        self._took, self._run = 0.0, time.thread_time()
        for _ in range(_DRAIN):
            message = frames.receive(router)
            if message is None:
                break
            address = Address(router, message[0])
            reply = self._answer(address, message[1])
            if reply is not None:
                replies.append((address, reply))
            if self._took > _LONG:
                break
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
        lease = ""  # about which it is answered later
        try:
            if len(parts) != 1:
                raise wire.Malformed("a message has one frame, not several")
            message = wire.unpack_message(parts[0].bytes)
            who = self._door.admit(address, parts[0], message, now)
            if isinstance(message, wire.Reply):
                # An identity is free again when its connection has ended: the name has to be the same.
                if self.speakers.get(address.identity) == who.name:
                    self.nodes.orders.answered(address, message)
                return None
            self._needed = now
            self._door.gate.check(who, message.op)
            if message.deadline_ms is not None and message.deadline_ms <= self.now():
                raise Refused("late", "its deadline had passed before it was read: nothing was done")
            if self.trouble is not None and message.op not in _UNWRITTEN:
                raise Refused("failed", f"{self.trouble}; nothing was done")
            self.monitor.begin(message.id, who.name)
            body = OPERATIONS[message.op](self, message.body, who)
            if isinstance(body, Waiter):
                self._door.limits.begin(who, now)
                body.peer, body.request = who, message.id
                self.waiters.add(body)
                lease = "" if isinstance(body, Later) else body.lease
            else:
                reply = wire.Reply(wire.VERSION, message.id, True, body)
        except FAULTS as wrong:
            id = wrong.id if isinstance(wrong, wire.Malformed) else ""
            reply = wire.Reply(wire.VERSION, id or _id(message), False, error=fault(wrong))
        except Exception:
            if isinstance(message, wire.Request):
                self._give_up(address, message.id, message.op)
            raise
        if isinstance(message, wire.Request):
            if (took := time.monotonic() - now) > PLAIN:
                self._has_taken(who, message, took)
            self._door.answered(who, message, reply, lease)
            self.monitor.answered(who, message, reply)
        elif message is None:
            self.monitor.unreadable()
        return reply

    def _has_taken(self, who: Peer | None, message: wire.Request, took: float) -> None:
        """It was no plain one. Where others kept this thread from running, nobody has to pay for it."""
        run = time.thread_time()
        took, self._run = min(took, run - self._run), run
        self._took += max(took - PLAIN, 0.0)
        if who is not None:
            self._door.charge(who, message, took, time.monotonic())

    def _give_up(self, address: Address, id: str, op: str) -> None:
        """Our own mistake: who knows what is half done. The next scheduler begins from what is on disk, and
        whoever asked is told, as the same request would end that one, too."""
        self._door.say(
            f"the request {id[:64]!r} ({op}) has met a mistake in hal and ends this scheduler; "
            "what was not on disk yet has not happened"
        )
        frames.send(address.socket, address.identity, wire.pack(error(id, "failed", _MISTAKE)))

    # ---- who waits for an answer ------------------------------------------------------------

    def _waited(self) -> list[tuple[Address, wire.Reply]]:
        """The answers for which somebody has waited: only those who may have one now are looked at."""
        replies = []
        for id in self.nodes.settled:
            self.waiters.touch(id)
        self.nodes.settled.clear()
        if self.watch_ring.last != self._published:
            self.waiters.touch(watch.NAME)
        first = time.monotonic()
        for waiter in self.waiters.take(first):
            assert waiter.peer is not None
            if self.trouble is not None:
                # Who only watches waits on, for as long as was asked for.
                if isinstance(waiter, watch.Watcher) and time.monotonic() < waiter.until:
                    self.waiters.add(waiter)
                    continue
                self._door.limits.end(waiter.peer)
                replies.append((waiter.peer.address, self._not_now(waiter.request)))
                continue
            begun = time.monotonic()
            if isinstance(waiter, watch.Watcher | Work) and begun - first > _LONG:
                self.waiters.put_off(waiter)
                continue
            if isinstance(waiter, Work) and (owes := self._door.limits.owes(waiter.peer, begun)):
                waiter.until = begun + owes
                self.waiters.add(waiter)
                continue
            run = time.thread_time() if isinstance(waiter, Later) else 0.0
            try:
                if not self._door.gate.still(waiter.peer):
                    raise Refused("denied", "this key is no longer known to the scheduler")
                body = self.outcome(waiter)
                reply = None if body is None else wire.Reply(wire.VERSION, waiter.request, True, body)
            except Refused as refused:
                reply = error(waiter.request, refused.code, str(refused))
            except Exception:
                self._give_up(waiter.peer.address, waiter.request, "which was waiting")
                raise
            if isinstance(waiter, Later):
                self._door.limits.charge(waiter.peer, time.thread_time() - run, begun)
            if reply is None:
                self.waiters.add(waiter)
            else:
                self._door.limits.end(waiter.peer)
                self.monitor.settled(waiter.peer, waiter.request, reply)
                replies.append((waiter.peer.address, reply))
        return replies

    # ---- the end ----------------------------------------------------------------------------

    def _leave(self) -> None:
        """Orderly end: a private daemon ends every lease first, then all removes what is empty."""
        self.places.events.unlink(missing_ok=True)
        self.places.socket.unlink(missing_ok=True)  # nobody is answered from here on: nobody is to wait
        left = [(one.peer.address, one.request) for one in self.waiters if one.peer is not None]
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
        for router in self._routers:  # what is asked from now on waits at the client for the next one
            router.close(linger=200)
        if self.private:
            for id in [*self.state.waiting, *self.state.leases]:
                self.holders.unwatch(id)
                self.happens(core.HolderGone(id))
            patience = time.monotonic() + _ENDING
            while self.ending and time.monotonic() < patience:
                time.sleep(0.02)
                self.nodes.turn(time.monotonic())
                self.finish_endings(time.monotonic())
            self.board.turn()
        self.commit()
        if not self.board.is_worth_keeping and not self.state.is_worth_keeping and not self.nodes.has_others:
            self.store.close()
            self.store.unlink()
            if self.agent is not None:
                self.agent.forget()


def _packed(reply: wire.Reply) -> bytes:
    """Or that it cannot be said: one answer that is of no use does not end what all others use."""
    try:
        found = wire.pack(reply)
    except (OverflowError, UnicodeError) as wrong:
        return wire.pack(error(reply.id, "failed", f"the answer cannot be written: {wrong}"))
    if len(found) > wire.MAX_REPLY_BYTES:
        return wire.pack(
            error(reply.id, "failed", f"the answer has {len(found)} bytes: ask for less at a time")
        )
    return found


def _id(message: wire.Request | wire.Reply | None) -> str:
    return "" if message is None else message.id
