"""The daemon: sockets, clocks and files around the core.

One thread, one poll. It drains what has arrived, applies it, makes it durable with one commit, and only
then replies. Holders are watched by pidfd, so that a lease ends with the process that took it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from typing import IO, Any

import msgspec
import zmq

from hal.backend import HalError, StateError
from hal.model import jsonable
from hal.scheduler import core, wire
from hal.scheduler.places import Places
from hal.scheduler.slices import Slices
from hal.scheduler.store import Store

__all__ = ["AlreadyRunning", "Daemon"]

_DRAIN = 256  # requests answered with one commit
_TICK = 1.0  # seconds between looks at what nobody reports: dead processes, slow endings
_GRACE = 2.0  # seconds from SIGTERM to SIGKILL for what is left in an ended slice
_FRESH = 0.5  # seconds for which the devices' outside use is believed
_LINGER = 1.0  # seconds without a lease after which a private daemon goes
_LONGEST_TTL = 24 * 3600.0


class AlreadyRunning(StateError):
    """Another daemon serves this runtime directory."""


class Daemon:
    """Serves one user's leases on one machine until ``stop()``, SIGTERM or SIGINT.

    A private daemon was started for one command: it leaves when nobody needs it, and takes every lease
    with it when told to stop. Any other keeps its leases on disk for its successor.
    """

    def __init__(self, slices: Slices, places: Places, *, private: bool = False) -> None:
        self._slices = slices
        self._places = places
        self._private = private
        self._state = core.State()
        self._holders: dict[int, str] = {}  # pidfd -> lease id
        self._ending: dict[str, float] = {}  # lease id -> since when
        self._stopping = False
        self._seen = float("-inf")
        self._needed = time.monotonic()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve. ``ready`` is called once requests are answered.

        Raises AlreadyRunning, or StateError when the directory or the store cannot be used.
        """
        self._places.make()
        with _locked(self._places), contextlib.ExitStack() as stack:
            self._store = Store(self._places.store)
            stack.callback(self._store.close)
            stack.callback(self._slices.close)
            self._poller = zmq.Poller()
            self._recover()
            wakeup = stack.enter_context(_signals_as_bytes())
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
        now = time.monotonic()
        if wakeup.fileno() in events:
            wakeup.recv(64)
            self._stopping = True
        for pidfd in events.keys() & self._holders.keys():
            self._forget_holder(pidfd, now)
        replies = self._drain(router) if router in events else []
        self._carry_out(self._state.apply(core.Tick(), now))
        self._finish_endings(now)
        self._slices.reap()
        self._store.commit()
        for reply in replies:
            # A client that has gone in the meantime is no error: its lease ends with its process.
            router.send_multipart(reply, flags=zmq.DONTWAIT)
        if self._state.leases:
            self._needed = now
        elif self._private and now - self._needed > _LINGER:
            self._stopping = True

    def _patience(self) -> float:
        deadline = self._state.next_deadline()
        due = _TICK if deadline is None else max(deadline - time.monotonic(), 0)
        return min(due, 0.05 if self._ending else _TICK)

    def _drain(self, router: zmq.Socket[bytes]) -> list[list[bytes]]:
        replies = []
        for _ in range(_DRAIN):
            try:
                frames = router.recv_multipart(flags=zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            sender = frames[0].bytes
            reply = self._answer(frames[1:])
            replies.append([sender, wire.pack(reply)])
        return replies

    def _answer(self, frames: list[zmq.Frame]) -> wire.Reply:
        id = ""
        try:
            if len(frames) != 1:
                raise wire.Malformed(f"a message has one frame, not {len(frames)}")
            request = wire.unpack_request(frames[0].bytes)
            id = request.id
            self._needed = time.monotonic()
            uid, pid = _peer(frames[0])
            if uid not in (os.geteuid(), 0):
                return _error(id, "denied", "this scheduler serves another user")
            handler = _OPERATIONS.get(request.op)
            if handler is None:
                return _error(id, "unknown_op", f"there is no operation '{request.op:.40}'")
            body = handler(self, request.body, uid, pid)
        except wire.Malformed as error:
            return _error(error.id or id, "malformed", str(error))
        except msgspec.ValidationError as error:
            return _error(id, "malformed", f"the request's body does not fit: {error}")
        except _Refused as refused:
            return _error(id, refused.code, str(refused))
        except HalError as error:
            return _error(id, "failed", str(error))
        return wire.Reply(wire.VERSION, id, True, body)

    # ---- operations -------------------------------------------------------------------------

    def _hello(self, _body: wire.Body, _uid: int, _pid: int) -> wire.Body:
        return {"pid": os.getpid(), "private": self._private, "leases": len(self._state.leases)}

    def _acquire(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        asked = msgspec.convert(body, _AcquireBody)
        self._look_at_devices()
        event = core.Acquire(
            core.Request(
                memory_bytes=asked.memory_bytes,
                vendor=asked.vendor,
                device=asked.device,
                name=asked.name,
                ttl_seconds=asked.ttl_seconds,
            ),
            lease_id=secrets.token_hex(4),
            key=asked.key,
            uid=uid,
            holder_pid=pid,
        )
        (decision,) = self._decide(event)
        assert isinstance(decision, core.Grant)
        lease = decision.lease
        if not decision.again:
            try:
                self._slices.create(lease)
            except StateError:
                self._state.apply(core.Ended(lease.id), time.monotonic())
                raise
            self._store.put(lease)
            self._watch(lease)
        return {
            "lease": self._described(lease),
            "environment": self._slices.environment(lease),
        }

    def _renew(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        lease_id = msgspec.convert(body, _LeaseBody).lease
        (decision,) = self._decide(core.Renew(lease_id, uid))
        assert isinstance(decision, core.Renewed)
        if lease_id not in self._holders.values() and decision.lease.holder_pid == pid:
            self._watch(decision.lease)  # a successor has not seen its holder yet
        return {"lease": self._described(decision.lease)}

    def _release(self, body: wire.Body, uid: int, pid: int) -> wire.Body:
        decisions = self._decide(core.Release(msgspec.convert(body, _LeaseBody).lease, uid))
        (end,) = decisions
        assert isinstance(end, core.End)
        if pid == end.lease.holder_pid:  # it has stopped its program before it says so
            self._unwatch(end.lease.id)
        self._carry_out(decisions)
        return {"lease": self._described(end.lease), "ended": end.lease.id not in self._state.leases}

    def _list(self, _body: wire.Body, _uid: int, _pid: int) -> wire.Body:
        return {"leases": [self._described(lease) for lease in self._state.leases.values()]}

    def _decide(self, event: core.Event) -> list[core.Decision]:
        decisions = self._state.apply(event, time.monotonic())
        for decision in decisions:
            if isinstance(decision, core.Refuse):
                raise _Refused(decision.code, decision.message)
        return decisions

    def _described(self, lease: core.Lease) -> dict[str, Any]:
        use = self._slices.use(lease)
        return {
            "id": lease.id,
            "name": lease.name,
            "device": lease.device,
            "whole": lease.whole,
            "memory_bytes": lease.memory_bytes,
            "used_bytes": None if use is None else use.used_bytes,
            "refused": None if use is None else use.refused,
            "state": lease.state.value,
            "epoch": lease.epoch,
            "holder_pid": lease.holder_pid,
            "ttl_seconds": lease.ttl_seconds,
            "expires_in_seconds": max(round(lease.expires - time.monotonic(), 3), 0),
            "enforcement": jsonable(self._slices.enforcement(lease)),
        }

    # ---- leases -----------------------------------------------------------------------------

    def _look_at_devices(self) -> None:
        if time.monotonic() - self._seen >= _FRESH:
            self._state.apply(core.DevicesSeen(self._slices.facts()), time.monotonic())
            self._seen = time.monotonic()

    def _watch(self, lease: core.Lease) -> None:
        """Learn of the holder's death at once. Where that cannot be, the lease still expires."""
        if lease.holder_pid == 0:
            return
        try:
            pidfd = os.pidfd_open(lease.holder_pid)
        except ProcessLookupError:
            self._carry_out(self._state.apply(core.HolderGone(lease.id), time.monotonic()))
        except OSError:
            return
        else:
            self._holders[pidfd] = lease.id
            self._poller.register(pidfd, zmq.POLLIN)

    def _forget_holder(self, pidfd: int, now: float) -> None:
        lease_id = self._holders.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        self._carry_out(self._state.apply(core.HolderGone(lease_id), now))

    def _carry_out(self, decisions: list[core.Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, core.End):
                self._store.put(decision.lease)  # ending, also for a successor
                self._end(decision.lease)

    def _end(self, lease: core.Lease) -> None:
        self._ending[lease.id] = time.monotonic()
        if self._is_over(lease, signal.SIGTERM, 0.0):
            self._ended(lease)

    def _finish_endings(self, now: float) -> None:
        for lease_id, since in list(self._ending.items()):
            lease = self._state.leases[lease_id]
            # Signal 0 only looks who is left.
            if self._is_over(lease, signal.SIGKILL if now - since >= _GRACE else 0, now - since):
                self._ended(lease)

    def _is_over(self, lease: core.Lease, with_signal: int, ending_for: float) -> bool:
        """Nobody uses it any more: none of the slice's processes is left, and the holder, whose program
        may not have allocated yet, has gone, or has had the time in which it must notice."""
        stopped = self._slices.stop(lease, with_signal)
        held = lease.id in self._holders.values() and ending_for < lease.ttl_seconds
        return stopped and not held

    def _ended(self, lease: core.Lease) -> None:
        self._ending.pop(lease.id, None)
        self._slices.remove(lease)
        self._store.delete(lease.id)
        self._state.apply(core.Ended(lease.id), time.monotonic())
        self._unwatch(lease.id)

    def _unwatch(self, lease_id: str) -> None:
        for pidfd in [fd for fd, held in self._holders.items() if held == lease_id]:
            del self._holders[pidfd]
            self._poller.unregister(pidfd)
            os.close(pidfd)

    # ---- start and end ----------------------------------------------------------------------

    def _recover(self) -> None:
        self._state.epoch = self._store.epoch()
        for lease in self._store.leases():
            if not self._slices.adopt(lease):
                self._store.delete(lease.id)
                continue
            self._state.adopt(lease, time.monotonic())
            if lease.state is core.LeaseState.ENDING:
                self._end(lease)
            else:
                self._watch(lease)
        self._slices.sweep()
        self._store.commit()

    def _leave(self, router: zmq.Socket[bytes]) -> None:
        """Orderly end: a private daemon ends every lease first, then all removes what is empty."""
        self._places.socket.unlink(missing_ok=True)  # nobody is answered from here on: nobody is to wait
        with contextlib.suppress(zmq.Again):
            while True:
                frames = router.recv_multipart(flags=zmq.DONTWAIT)
                id = ""
                with contextlib.suppress(wire.Malformed):
                    id = wire.unpack_request(frames[-1]).id
                reply = _error(id, "leaving", "this scheduler is on its way out")
                router.send_multipart([frames[0], wire.pack(reply)], flags=zmq.DONTWAIT)
        if self._private:
            for lease in list(self._state.leases.values()):
                lease.state = core.LeaseState.ENDING
                self._unwatch(lease.id)
                self._end(lease)
            patience = time.monotonic() + 2 * _GRACE
            while self._ending and time.monotonic() < patience:
                time.sleep(0.02)
                self._finish_endings(time.monotonic())
        for pidfd in self._holders:
            os.close(pidfd)
        self._store.commit()
        if not self._state.leases:
            self._store.close()
            self._store.unlink()


class _AcquireBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    memory_bytes: int | None = None
    vendor: str | None = None
    device: str | None = None
    name: str = ""
    ttl_seconds: float = 15.0

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= 64 or len(self.name) > 64:
            raise ValueError("key has 1 to 64 characters, name at most 64")
        if self.memory_bytes is not None and not 0 < self.memory_bytes <= 1 << 60:
            raise ValueError("memory_bytes is between 1 and 2**60")
        if self.vendor is not None and self.device is not None:
            raise ValueError("a request names a vendor or a device, not both")
        if not 1 <= self.ttl_seconds <= _LONGEST_TTL:
            raise ValueError("ttl_seconds is between 1 and 86400")


class _LeaseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lease: str


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_OPERATIONS: dict[str, Callable[[Daemon, wire.Body, int, int], wire.Body]] = {
    "hello": Daemon._hello,
    "acquire": Daemon._acquire,
    "renew": Daemon._renew,
    "release": Daemon._release,
    "list": Daemon._list,
}


def _error(id: str, code: str, message: str) -> wire.Reply:
    return wire.Reply(wire.VERSION, id, False, error=wire.ErrorBody(code, message))


def _peer(frame: zmq.Frame) -> tuple[int, int]:
    """uid and pid of the sender, as the kernel gave them to libzmq: "host:uid:gid:pid" on ipc."""
    try:
        _, uid, _, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
        return int(uid), int(pid)
    except (ValueError, zmq.ZMQError):
        raise wire.Malformed("the sender's user cannot be told; only local clients are served") from None


@contextlib.contextmanager
def _locked(places: Places) -> Any:
    """One daemon a directory: without this, a second one would take over the first one's socket."""
    while True:
        handle: IO[bytes] = places.lock.open("ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise AlreadyRunning(f"a scheduler already serves {places.directory}") from None
        # A predecessor may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), places.lock.stat()):
                break
        handle.close()
        places.make()
    try:
        yield
    finally:
        if not places.store.exists():
            places.lock.unlink(missing_ok=True)
            places.log.unlink(missing_ok=True)
            places.remove_empty()
        handle.close()


@contextlib.contextmanager
def _signals_as_bytes() -> Any:
    """SIGTERM and SIGINT arrive as bytes on a socket that the poll sees."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)  # whoever started this may have blocked them
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ours.close()
        pythons.close()
