"""The door of the daemon: gate, limits, audit log and memory, as one thing that its loop turns."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from hal.backend import StateError
from hal.scheduler import wire
from hal.scheduler.answers import Address, Peer
from hal.scheduler.config import Config
from hal.scheduler.places import Places
from hal.scheduler.security import connections
from hal.scheduler.security.audit import Audit
from hal.scheduler.security.connections import LOOK, Pressure
from hal.scheduler.security.gate import Gate
from hal.scheduler.security.keys import Keys
from hal.scheduler.security.limits import PLAIN, Limits
from hal.scheduler.security.roles import ACCESS, Role
from hal.units import parse_bytes

__all__ = ["Door", "group_id"]

_SUBJECTS = (
    "lease",
    "job",
    "node",
    "queue",
    "name",
    "target",
    "reason",
)  # what an operation's body says that it is about
_REPORTS = frozenset({"join", "beat"})  # of agents, whose size only the wire bounds
_BATCHES = ("requests", "leases")  # in these a message for many has them
_LAST_UID = (1 << 32) - 2  # one more is the kernel's word for none
_MOST_STRANGERS = 10  # connections that were refused, noted each second; the rest is counted


class Door:
    """For one daemon. ``say`` is told what an operator should know.

    A daemon that serves its own user alone keeps an audit log only when one is named: there is nobody else
    to tell of.
    """

    def __init__(
        self, config: Config, places: Places, keys: Keys | None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Raises StateError for a group or user that this machine does not have."""
        self._places = places
        self.say = say
        self._said = ""
        self._remote = config.scheduler.listen
        self._group = None if config.security.group is None else group_id(config.security.group)
        self.gate = Gate(
            keys if self._remote else None,
            roles=_roles(config),
            open_to_others=self._group is not None,
        )
        self.gate.on_refused = self._note_stranger
        self.limits = Limits(config.limits.allowance)
        self.audit = _audit(config, places)
        self._queued = config.limits.queued
        self._cap = config.limits.memory_bytes
        self._most = config.limits.connections
        self._pressure: Pressure | None = None
        self._strangers = 0
        self._second = 0.0

    def check(self, config: Config) -> dict[int, Role]:
        """What a configuration says of this machine, also for the next start: its roles. Changes nothing;
        raises StateError."""
        if config.security.group is not None:
            group_id(config.security.group)
        if (audit := _audit(config, self._places)) is not None:
            was_there = os.path.lexists(audit.path)
            audit.check()
            if not was_there:
                audit.path.unlink(missing_ok=True)
        return _roles(config)

    def reload(self, config: Config, roles: dict[int, Role]) -> None:
        """What of another configuration takes effect at once; ``roles`` as ``check`` gave them."""
        self.gate.roles = roles
        self.limits.allowance = config.limits.allowance
        if self.audit is not None:
            self.audit.largest = parse_bytes(config.security.audit_size)
            self.audit.kept = config.security.audit_files
            self.audit.reopen()

    # ---- sockets ------------------------------------------------------------------------------

    def open(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller) -> zmq.Socket[bytes]:
        """The ROUTER at all addresses, registered with the poller. Raises StateError."""
        most = connections.raise_files(self._most)
        if most < self._most and self.audit is not None:  # else all who connect are one's own
            self._tell(f"there can be {most} connections, not {self._most}: raise the limit of open files")
        if self._cap is not None:
            connections.cap_memory(self._cap)
        self._pressure = Pressure(self._cap, most)
        router = context.socket(zmq.ROUTER)
        try:
            connections.bounded(router, queued=self._queued)
            router.set(zmq.ROUTER_MANDATORY, 1)  # what cannot be sent is known
            self.gate.listen(router, poller, self._places.address, self._remote)
            self._let_in(self._places.socket)
        except BaseException:
            router.close(linger=0)
            self.gate.close()
            raise
        poller.register(router, zmq.POLLIN)
        endpoints = [address.rpartition(":")[2] for address in self.gate.addresses]
        self._endpoints = frozenset([self._places.address, *(f"tcp:{port}" for port in endpoints)])
        return router

    def add(self, socket: zmq.Socket[bytes], path: Path) -> None:
        """Another socket for those of this machine who may reach the first. Raises StateError."""
        connections.bounded(socket, queued=self._queued)
        try:
            socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            raise StateError(f"cannot listen at {path}: {error.strerror}") from None
        self._let_in(path)
        self._endpoints |= {f"ipc://{path}"}

    def _let_in(self, path: Path) -> None:
        if self._group is not None:
            os.chown(path, -1, self._group)
        path.chmod(0o600 if self._group is None else 0o660)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.gate.addresses

    def close(self) -> None:
        self.gate.close()
        if self._pressure is not None:
            self._pressure.close()
        if self.audit is not None:
            self.audit.close()

    # ---- each turn ----------------------------------------------------------------------------

    def turn(self, events: dict[Any, int], now: float, kept: int) -> bool:
        """Before requests are read: let in who has come. True when keys were added or revoked. ``now``:
        seconds on the monotonic clock; ``kept``: bytes that wait in queues."""
        changed = self.gate.refresh()
        self.gate.serve(events)
        if self.gate.complaint is not None:
            self._tell(f"{self.gate.complaint}; the keys known before are still in force")
        if self._pressure is not None and (cut := self._pressure.look(now, self._endpoints, kept)):
            self.say(cut)
            self.note(None, "connections", "cut", reason=cut)
        if now - self._second >= 1:
            self._second = now
            if self._strangers > _MOST_STRANGERS:
                self.note(None, "connect", "denied", more=self._strangers - _MOST_STRANGERS)
            self._strangers = 0
        return changed

    def flush(self, *, durable: bool = True) -> str | None:
        """Before replies are sent: write what was noted. ``durable``: what was done is. Why it cannot be."""
        if self.audit is None:
            return None
        self.audit.flush(durable=durable)
        if self.audit.complaint is not None:
            self._tell(self.audit.complaint)
        return self.audit.complaint

    @property
    def patience(self) -> float:
        """Seconds until it wants a turn."""
        return 1.0 if self._pressure is None else LOOK

    # ---- each request -------------------------------------------------------------------------

    def admit(
        self, address: Address, frame: zmq.Frame, message: wire.Request | wire.Reply, now: float
    ) -> Peer:
        """Who has sent this. Raises Refused when it is nobody who is served, or asks too much."""
        peer = self.gate.peer(address, frame)
        reports = isinstance(message, wire.Reply) or message.op in _REPORTS
        self.limits.admit(peer, 0 if reports else len(frame), now, count=_count(message))
        return peer

    def charge(self, peer: Peer, message: wire.Request, seconds: float, now: float) -> None:
        """So long it has taken."""
        self.limits.charge(peer, seconds - PLAIN * _count(message), now)

    def note(self, peer: Peer | None, op: str, outcome: str, **what: Any) -> None:
        if self.audit is not None:
            self.audit.note(peer, op, outcome, **what)

    def answered(
        self, peer: Peer | None, request: wire.Request | None, reply: wire.Reply | None, lease: str = ""
    ) -> None:
        """Note what was asked, if it is of interest: what changes something, and what was not allowed.
        ``reply`` None: it comes later, and is about this lease."""
        if self.audit is None or peer is None or request is None:
            return
        outcome = "later" if reply is None else "ok" if reply.error is None else reply.error.code
        access = ACCESS.get(request.op)
        if outcome in ("denied", "unknown_op") or (access is not None and access.noted):
            about = {
                name: request.body[name] for name in _SUBJECTS if isinstance(request.body.get(name), str)
            }
            about |= {"lease": lease or None} if reply is None else _made(reply.body)
            self.audit.note(peer, request.op, outcome, request=request.id, **about)

    # ---- inside -------------------------------------------------------------------------------

    def _note_stranger(self, host: str, reason: str) -> None:
        self._strangers += 1
        if self._strangers <= _MOST_STRANGERS:
            self.note(None, "connect", "denied", host=host, reason=reason)

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self.say(sentence)


def _count(message: wire.Request | wire.Reply) -> int:
    """Of the requests in it."""
    body, count = message.body, 1
    for name in _BATCHES:
        if name in body and isinstance(body[name], list):
            count = max(count, len(body[name]))
    return count


def _made(body: wire.Body) -> dict[str, Any]:
    """Which leases, places in the queue, or jobs a reply is about."""
    one = body.get("lease") or body.get("waiting")
    if isinstance(one, dict):
        return {"lease": one.get("id")}
    if "replies" in body:
        return {"leases": [_made(each.get("body", {})).get("lease") for each in body["replies"]]}
    if "jobs" in body:
        return {"jobs": [job["id"] if isinstance(job, dict) else job for job in body["jobs"]]}
    return {}


def _audit(config: Config, places: Places) -> Audit | None:
    shared = config.security.group is not None or bool(config.scheduler.listen)
    named = config.security.audit
    if named is None and not shared:
        return None
    size, kept = parse_bytes(config.security.audit_size), config.security.audit_files
    return Audit(places.directory / (named or "audit.log"), largest=size, kept=kept)


def _roles(config: Config) -> dict[int, Role]:
    found = {}
    for name, role in config.security.roles.items():
        try:
            uid = int(name) if name.isascii() and name.isdecimal() else pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            raise StateError(f"{config.file}: security.roles: there is no user '{name:.64}' here") from None
        if uid > _LAST_UID:
            raise StateError(f"{config.file}: security.roles: '{name}' is no uid; the last is {_LAST_UID}")
        found[uid] = role
    return found


def group_id(name: str) -> int:
    """Raises StateError when this machine has no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StateError(f"security.group: there is no group '{name}' on this machine") from None
