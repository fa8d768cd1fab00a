"""The daemon: sockets, clocks and files around the core.

One thread, one poll. It drains what has arrived, applies it, makes it durable with one commit, and only
then replies. Holders are watched by pidfd, so that a lease ends with the process that took it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from hal.backend import HalError, StateError
from hal.scheduler import bodies, core, frames, wire
from hal.scheduler.answers import Refused, Waiter, code_of, error, leaving, peer
from hal.scheduler.core import records
from hal.scheduler.holders import Holders
from hal.scheduler.places import Places
from hal.scheduler.presets import Preset
from hal.scheduler.process import AlreadyRunning, locked, signals_as_bytes
from hal.scheduler.slices import Slices
from hal.scheduler.store import Store

__all__ = ["AlreadyRunning", "Daemon"]

_DRAIN = 256  # requests answered with one commit
_TICK = 1.0  # seconds between looks at what nobody reports: dead processes, slow endings
_GRACE = 2.0  # seconds from SIGTERM to SIGKILL for what is left in an ended slice
_FRESH = 0.5  # seconds for which the devices' outside use is believed
_LINGER = 1.0  # seconds without a lease after which a private daemon goes


class Daemon:
    """Serves one user's leases on one machine until ``stop()``, SIGTERM or SIGINT.

    A private daemon was started for one command: it leaves when nobody needs it, and takes every lease
    with it when told to stop. Any other keeps its leases on disk for its successor.
    """

    def __init__(
        self,
        slices: Slices,
        places: Places,
        *,
        private: bool = False,
        presets: dict[str, Preset] | None = None,
    ) -> None:
        self._slices = slices
        self._places = places
        self._private = private
        self._presets = presets or {}
        self._state = core.State()
        self._ending: dict[str, float] = {}  # lease id -> since when
        self._waiters: list[Waiter] = []
        self._over: dict[str, tuple[str, str]] = {}  # what has become of who waited: code and message
        self._stopping = False
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
            stack.callback(self._slices.close)
            self._poller = zmq.Poller()
            self._holders = Holders(self._poller)
            stack.callback(self._holders.close)
            self._recover()
            wakeup = stack.enter_context(signals_as_bytes())
            self._poller.register(wakeup, zmq.POLLIN)
            context = stack.enter_context(zmq.Context())
            router = context.socket(zmq.ROUTER)
            stack.callback(router.close, linger=200)
            router.set(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
            router.bind(self._places.address)
            self._places.socket.chmod(0o600)
            self._poller.register(router, zmq.POLLIN)
            ready()
            while not self._stopping:
                self._turn(router, wakeup)
            self._leave(router)

    def stop(self) -> None:
        self._stopping = True

    # ---- the loop ---------------------------------------------------------------------------

    def _turn(self, router: zmq.Socket[bytes], wakeup: socket.socket) -> None:
        events = dict(self._poller.poll(int(self._patience() * 1000) + 1))
        if wakeup.fileno() in events:
            wakeup.recv(64)
            self._stopping = True
        for id in self._holders.gone(events):
            self._happens(core.HolderGone(id))
        replies = self._drain(router) if router in events else []
        if self._state.waiting and time.monotonic() - self._seen >= _TICK:
            self._look_at_devices()  # what others use may have become less
        self._happens(core.Tick())
        self._finish_endings(time.monotonic())
        self._slices.reap()
        self._slices.correct_shares(time.monotonic())
        self._store.put(records.changes(self._state))
        self._store.commit()
        # A client that has gone in the meantime is no error: its lease ends with its process.
        for reply in [*replies, *self._waited()]:
            frames.send(router, *reply)
        if self._state.leases or self._state.waiting:
            self._needed = time.monotonic()
        elif self._private and time.monotonic() - self._needed > _LINGER:
            self._stopping = True

    def _patience(self) -> float:
        deadline = self._state.next_deadline()
        due = _TICK if deadline is None else max(deadline - _now(), 0) / 1000
        for waiter in self._waiters:
            due = min(due, max(waiter.until - time.monotonic(), 0))
        return min(due, 0.05 if self._ending else _TICK)

    def _drain(self, router: zmq.Socket[bytes]) -> list[list[bytes]]:
        replies = []
        for _ in range(_DRAIN):
            message = frames.receive(router)
            if message is None:
                break
            sender, parts = message
            reply = self._answer(sender, parts)
            if reply is not None:
                replies.append([sender, wire.pack(reply)])
        return replies

    def _answer(self, sender: bytes, parts: list[zmq.Frame]) -> wire.Reply | None:
        """None: it is answered later."""
        id = ""
        try:
            if len(parts) != 1:
                raise wire.Malformed(f"a message has one frame, not {len(parts)}")
            request = wire.unpack_request(parts[0].bytes)
            id = request.id
            self._needed = time.monotonic()
            uid, pid = peer(parts[0])
            if uid not in (os.geteuid(), 0):
                return error(id, "denied", "this scheduler serves another user")
            handler = _OPERATIONS.get(request.op)
            if handler is None:
                return error(id, "unknown_op", f"there is no operation '{request.op:.40}'")
            body = handler(self, request.body, uid, pid)
            if isinstance(body, Waiter):
                body.sender, body.request = sender, id
                self._waiters.append(body)
                return None
        except wire.Malformed as wrong:
            return error(wrong.id or id, "malformed", str(wrong))
        except msgspec.ValidationError as wrong:
            return error(id, "malformed", f"the request's body does not fit: {wrong}")
        except core.InvalidError as wrong:
            return error(id, "not_found" if wrong.field == "class" else "malformed", str(wrong))
        except Refused as refused:
            return error(id, refused.code, str(refused))
        except HalError as wrong:
            return error(id, "failed", str(wrong))
        return wire.Reply(wire.VERSION, id, True, body)

    # ---- operations -------------------------------------------------------------------------

    def _hello(self, _body: wire.Body, _uid: int, _pid: int) -> wire.Body:
        return {
            "pid": os.getpid(),
            "private": self._private,
            "leases": len(self._state.leases),
            "waiting": len(self._state.waiting),
            "classes": sorted(self._presets),
        }

    def _acquire(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        asked = msgspec.convert(body, bodies.Acquire)
        request = asked.wanted(self._presets)
        self._look_at_devices()
        id = self._fresh_id()
        self._decide(core.Submit(request, id, asked.key, uid, pid))
        one = self._state.find(uid, asked.key)
        if isinstance(one, core.Waiting):
            self._watch(one.id, one.holder_pid)
            told = self._state.explain(one.id, _now())
            reason = "" if told is None else "; ".join((*told.reasons, f"nearest: {told.nearest}"))
            return {"waiting": bodies.queued(one, _now(), reason)}
        if one is None or one.state is core.LeaseState.ENDING:
            raise Refused(*self._over.pop(id, ("failed", "the lease has ended at once")))
        return self._granted(one)

    def _granted(self, lease: core.Lease) -> wire.Body:
        environments = self._slices.environments(lease)
        return {
            "lease": self._described(lease),
            "environment": environments[0],
            "environments": environments,
        }

    def _wait(self, body: wire.Body, uid: int, pid: int) -> wire.Body | Waiter:
        asked = msgspec.convert(body, bodies.Wait)
        self._owned(asked.lease, uid)
        self._watch(asked.lease, pid)  # after a restart of the scheduler
        waiter = Waiter(asked.lease, time.monotonic() + asked.timeout_seconds)
        return waiter if (answer := self._outcome(waiter)) is None else answer

    def _renew(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        id = msgspec.convert(body, bodies.Named).lease
        self._decide(core.Renew(id, uid))
        if id in self._state.waiting:
            return {"waiting": bodies.queued(self._state.waiting[id], _now())}
        lease = self._state.leases[id]
        if lease.holder_pid == pid:
            self._watch(id, pid)  # a successor has not seen its holder yet
        return {"lease": self._described(lease)}

    def _release(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        id = msgspec.convert(body, bodies.Named).lease
        one = self._owned(id, uid)
        if isinstance(one, core.Waiting):
            self._decide(core.Release(id, uid))
            return {"waiting": bodies.queued(one, _now()), "ended": True}
        if pid == one.holder_pid:  # it has stopped its program before it says so
            self._holders.unwatch(id)
        self._decide(core.Release(id, uid))
        return {"lease": self._described(one), "ended": id not in self._state.leases}

    def _list(self, _body: wire.Body, _uid: int, _pid: int) -> wire.Body:
        now = _now()
        return {
            "leases": [self._described(lease) for lease in self._state.leases.values()],
            "waiting": [bodies.queued(one, now) for one in self._state.waiting.values()],
        }

    def _explain(self, body: wire.Body, uid: int, _pid: int) -> wire.Body:
        id = msgspec.convert(body, bodies.Named).lease
        self._owned(id, uid)
        self._look_at_devices()
        told = self._state.explain(id, _now())
        if told is None:  # it has been withdrawn this moment
            raise Refused("not_found", f"there is no lease '{id}'")
        return {"explanation": msgspec.to_builtins(told)}

    def _queues(self, _body: wire.Body, _uid: int, _pid: int) -> wire.Body:
        waiting = Counter(one.request.queue for one in self._state.waiting.values())
        return {"queues": bodies.queues(self._state.world.tree, waiting)}

    def _set_queue(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        asked = msgspec.convert(body, bodies.SetQueueBody)
        self._decide(core.SetQueue(asked.queue(self._state.world.tree.queues.get(asked.name))))
        return self._queues(body, uid, pid)

    def _owned(self, id: str, uid: int) -> core.Lease | core.Waiting:
        one = self._state.leases.get(id) or self._state.waiting.get(id)
        if one is None or uid not in (one.uid, 0):
            raise Refused(*self._over.get(id, ("not_found", f"there is no lease '{id}'")))
        return one

    def _fresh_id(self) -> str:
        while True:
            id = secrets.token_hex(4)
            if id not in self._state.leases and id not in self._state.waiting:
                return id

    def _described(self, lease: core.Lease) -> dict[str, Any]:
        return bodies.described(lease, self._slices.use(lease), self._slices.enforcement(lease), _now())

    # ---- what is decided --------------------------------------------------------------------

    def _decide(self, event: core.Event) -> None:
        """Apply what somebody asked for. Raises Refused when that is the answer."""
        for decision in self._happens(event):
            if isinstance(decision, core.Refuse):
                gone = decision.code in (core.Refusal.ENDED, core.Refusal.NOT_FOUND)
                if gone and decision.id in self._over:
                    raise Refused(*self._over[decision.id])
                raise Refused(code_of(decision), decision.reason)

    def _happens(self, event: core.Event) -> list[core.Decision]:
        """Apply an event and carry out what follows."""
        decisions = self._state.apply(event, _now())
        for decision in decisions:
            match decision:
                case core.Grant(lease=lease, again=False):
                    self._begin(lease)
                case core.Revoke(lease=lease) | core.Preempt(lease=lease):
                    self._over[lease.id] = ("ended", f"the lease '{lease.id}' has ended: {decision.reason}")
                    self._end(lease)
                case core.Withdrawn(id=id):
                    self._over[id] = ("ended", f"'{id}' waits no longer: {decision.reason}")
                    self._holders.unwatch(id)
        while len(self._over) > 1024:
            del self._over[next(iter(self._over))]
        return decisions

    def _begin(self, lease: core.Lease) -> None:
        try:
            self._slices.create(lease)
        except StateError as wrong:
            self._happens(core.HolderGone(lease.id))
            self._over[lease.id] = ("failed", str(wrong))
            return
        self._watch(lease.id, lease.holder_pid)

    def _look_at_devices(self) -> None:
        if time.monotonic() - self._seen >= _FRESH:
            self._happens(core.InventoryChanged(self._slices.facts()))
            self._seen = time.monotonic()

    # ---- who waits for an answer ------------------------------------------------------------

    def _outcome(self, waiter: Waiter) -> wire.Body | None:
        """What to say now; None: nothing yet. Raises Refused when there is nothing to wait for."""
        lease = self._state.leases.get(waiter.lease)
        if lease is not None and lease.state is not core.LeaseState.ENDING:
            return self._granted(lease)
        one = self._state.waiting.get(waiter.lease)
        if one is None and lease is None:
            gone = ("not_found", f"there is no lease '{waiter.lease}'")
            raise Refused(*self._over.get(waiter.lease, gone))
        if time.monotonic() < waiter.until:
            return None
        return {"waiting": bodies.queued(one, _now())} if one is not None else {"waiting": {}}

    def _waited(self) -> list[list[bytes]]:
        replies, left = [], []
        for waiter in self._waiters:
            try:
                body = self._outcome(waiter)
                reply = None if body is None else wire.Reply(wire.VERSION, waiter.request, True, body)
            except Refused as refused:
                reply = error(waiter.request, refused.code, str(refused))
            if reply is None:
                left.append(waiter)
            else:
                replies.append([waiter.sender, wire.pack(reply)])
        self._waiters = left
        return replies

    # ---- holders and endings ----------------------------------------------------------------

    def _watch(self, id: str, pid: int) -> None:
        if not self._holders.watch(id, pid):
            self._happens(core.HolderGone(id))

    def _end(self, lease: core.Lease) -> None:
        self._ending[lease.id] = time.monotonic()
        if self._is_over(lease, signal.SIGTERM, 0.0):
            self._ended(lease)

    def _finish_endings(self, now: float) -> None:
        for lease_id, since in list(self._ending.items()):
            lease = self._state.leases.get(lease_id)
            if lease is None:  # it has ended with one before it
                continue
            # Signal 0 only looks who is left.
            if self._is_over(lease, signal.SIGKILL if now - since >= _GRACE else 0, now - since):
                self._ended(lease)

    def _is_over(self, lease: core.Lease, with_signal: int, ending_for: float) -> bool:
        """Nobody uses it any more: none of the slice's processes is left, and the holder, whose program
        may not have allocated yet, has gone, or has had the time in which it must notice."""
        stopped = self._slices.stop(lease, with_signal)
        held = lease.id in self._holders and ending_for < lease.request.ttl_ms / 1000
        return stopped and not held

    def _ended(self, lease: core.Lease) -> None:
        self._ending.pop(lease.id, None)
        self._slices.remove(lease)
        self._holders.unwatch(lease.id)
        self._happens(core.Ended(lease.id))

    # ---- start and end ----------------------------------------------------------------------

    def _recover(self) -> None:
        try:
            saved = records.read(self._store.rows())
            gone = [lease for lease in saved.leases if not self._slices.adopt(lease)]
            saved.leases = [lease for lease in saved.leases if lease not in gone]
            self._state = records.restore(saved, [self._slices.facts()])
        except records.DamagedError as wrong:
            raise StateError(f"the lease store {self._places.store} is damaged: {wrong}") from None
        self._seen = time.monotonic()
        self._store.put([("lease", lease.id, None) for lease in gone])
        for lease in list(self._state.leases.values()):
            if lease.state is core.LeaseState.ENDING:
                self._end(lease)
            else:
                self._watch(lease.id, lease.holder_pid)
        for one in list(self._state.waiting.values()):
            self._watch(one.id, one.holder_pid)
        self._happens(core.Resumed())
        self._slices.sweep()
        self._store.put(records.changes(self._state))
        self._store.commit()

    def _leave(self, router: zmq.Socket[bytes]) -> None:
        """Orderly end: a private daemon ends every lease first, then all removes what is empty."""
        self._places.socket.unlink(missing_ok=True)  # nobody is answered from here on: nobody is to wait
        left = [[one.sender, wire.pack(leaving(one.request))] for one in self._waiters]
        with contextlib.suppress(zmq.Again):
            while True:
                frames = router.recv_multipart(flags=zmq.DONTWAIT)
                id = ""
                with contextlib.suppress(wire.Malformed):
                    id = wire.unpack_request(frames[-1]).id
                left.append([frames[0], wire.pack(leaving(id))])
        for reply in left:
            router.send_multipart(reply, flags=zmq.DONTWAIT)
        if self._private:
            for id in [*self._state.waiting, *self._state.leases]:
                self._holders.unwatch(id)
                self._happens(core.HolderGone(id))
            patience = time.monotonic() + 2 * _GRACE
            while self._ending and time.monotonic() < patience:
                time.sleep(0.02)
                self._finish_endings(time.monotonic())
        self._store.put(records.changes(self._state))
        self._store.commit()
        if not self._state.is_worth_keeping:
            self._store.close()
            self._store.unlink()


_OPERATIONS: dict[str, Callable[[Daemon, wire.Body, int, int], wire.Body | Waiter]] = {
    "hello": Daemon._hello,
    "acquire": Daemon._acquire,
    "wait": Daemon._wait,
    "renew": Daemon._renew,
    "release": Daemon._release,
    "list": Daemon._list,
    "explain": Daemon._explain,
    "queues": Daemon._queues,
    "set_queue": Daemon._set_queue,
}


def _now() -> int:
    """Milliseconds on the clock that the core is told."""
    return time.monotonic_ns() // 1_000_000
