"""Whose each message is, and what they may do.

Over ipc the kernel vouches for the peer's user; over TCP a CURVE key does. One ROUTER serves both. As soon
as it has a TCP address every connection, the local ones too, goes through ZeroMQ's authentication (ZAP,
RFC 27), which this serves from the daemon's own poll loop. The "User-Id" that it gives cannot be put there
by the client, so it alone says which way a message came.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import zmq
from zmq.utils import z85

from hal.backend import StateError
from hal.scheduler import wire
from hal.scheduler.answers import Address, Peer, Refused
from hal.scheduler.security.keys import Keys
from hal.scheduler.security.roles import ACCESS, Role

__all__ = ["Gate"]

_LOCAL, _REMOTE = "local", "remote"  # ZAP domains, one for each transport
_ZAP = "inproc://zeromq.zap.01"
_ELSEWHERE = -1
_PEERS = 4096  # that are remembered
_MOST_HANDSHAKES = 64  # answered in one turn


class Gate:
    """For one daemon. ``keys`` None: local peers only.

    ``roles`` gives local users another role than ``user``; root and the daemon's own user are admins.
    ``open_to_others``: local users that are neither are served.
    """

    def __init__(
        self,
        keys: Keys | None = None,
        *,
        roles: Mapping[int, Role] | None = None,
        open_to_others: bool = False,
    ) -> None:
        self._keys = keys
        self._roles = dict(roles or {})
        self.open_to_others = open_to_others
        self.turned_away = 0  # connections, since the start
        self.complaint: str | None = None  # why the list of keys cannot be read
        self.on_refused: Callable[[str, str], None] = lambda _address, _reason: None
        self._zap: zmq.Socket[bytes] | None = None
        self._addresses: tuple[str, ...] = ()
        self._peers: dict[bytes, tuple[str, Peer]] = {}  # of this machine, as they were found last

    @property
    def roles(self) -> dict[int, Role]:
        """Of local users; may be replaced while it runs."""
        return self._roles

    @roles.setter
    def roles(self, roles: dict[int, Role]) -> None:
        self._roles = roles
        self._peers.clear()

    # ---- sockets ------------------------------------------------------------------------------

    def listen(
        self, router: zmq.Socket[bytes], poller: zmq.Poller, local: str, remote: tuple[str, ...] = ()
    ) -> None:
        """Bind to the local address and to those of TCP. Raises StateError when one cannot be had."""
        if remote:
            if self._keys is None:
                raise StateError(f"{remote[0]} needs keys: TCP is served with CURVE only")
            pair = self._keys.own()
            self._keys.refresh()
            # Before the first bind: ZeroMQ lets everybody in while nobody answers at this address.
            self._zap = router.context.socket(zmq.REP)
            self._zap.set(zmq.LINGER, 0)
            self._zap.bind(_ZAP)
            poller.register(self._zap, zmq.POLLIN)
            router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            router.set(zmq.ZAP_DOMAIN, _LOCAL.encode())
        self._bind(router, local)
        if remote:
            router.set(zmq.CURVE_SERVER, 1)
            router.set(zmq.CURVE_SECRETKEY, pair.secret.encode())
            router.set(zmq.ZAP_DOMAIN, _REMOTE.encode())
        for address in remote:
            self._bind(router, address)
            self._addresses += (router.get_string(zmq.LAST_ENDPOINT),)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of TCP, with the ports that were chosen."""
        return self._addresses

    def _bind(self, socket: zmq.Socket[bytes], address: str) -> None:
        socket.set(zmq.IPV6, int("[" in address))
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            raise StateError(f"cannot listen at {address}: {error.strerror}") from None

    def close(self) -> None:
        if self._zap is not None:
            self._zap.close()
            self._zap = None

    # ---- who may connect ----------------------------------------------------------------------

    def serve(self, events: Mapping[Any, int]) -> None:
        """Answer the handshakes that the poll has found."""
        if self._zap is None or self._zap not in events:
            return
        self.refresh()
        for _ in range(_MOST_HANDSHAKES):
            try:
                frames = self._zap.recv_multipart(flags=zmq.DONTWAIT)
            except zmq.Again:
                return
            version, request, domain, address, _, mechanism, *credentials = frames
            user, reason = self._known(domain.decode(), mechanism, credentials)
            if user is None:
                self.turned_away += 1
                self.on_refused(address.decode(errors="replace"), reason)
            status = (b"400", reason.encode(), b"") if user is None else (b"200", b"OK", user.encode())
            self._zap.send_multipart([version, request, *status, b""])

    def _known(self, domain: str, mechanism: bytes, credentials: list[bytes]) -> tuple[str | None, str]:
        """The "User-Id" of a connection; or None, and why it is refused."""
        if domain == _LOCAL:
            return _LOCAL, ""
        if self._keys is None or mechanism != b"CURVE" or len(credentials) != 1:
            return None, "no key"
        public = z85.encode(credentials[0]).decode()
        key = self._keys.of(public)
        if key is None:
            return None, f"the key {public} is not known"
        if key.revoked is not None:
            return None, f"the key '{key.name}' was revoked"
        return f"{_REMOTE} {public}", ""

    def refresh(self) -> bool:
        """Read the list of keys again if it has changed; True when it has. A list that cannot be read
        changes nothing: ``complaint`` says so."""
        if self._keys is None:
            return False
        try:
            changed = self._keys.refresh()
        except StateError as error:
            self.complaint = str(error)
            return False
        self.complaint = None
        return changed

    # ---- who has sent this --------------------------------------------------------------------

    def peer(self, address: Address, frame: zmq.Frame) -> Peer:
        """Raises Refused: ``denied``, also when the key was revoked while its connection lives on."""
        if self._zap is None:
            return self._of_this_machine(address, frame)
        user = _property(frame, "User-Id")
        if user == _LOCAL:
            return self._of_this_machine(address, frame)
        domain, _, public = user.partition(" ")
        key = self._keys.of(public) if self._keys is not None and domain == _REMOTE else None
        if key is None or key.revoked is not None:
            raise Refused("denied", "this key is not, or no longer, known to the scheduler")
        return Peer(
            address, key.name, key.uid, _ELSEWHERE, key.role, _property(frame, "Peer-Address"), public
        )

    def still(self, peer: Peer) -> bool:
        """May somebody who asked earlier be answered now?"""
        if peer.pid != _ELSEWHERE:
            return True
        key = None if self._keys is None else self._keys.of(peer.key)
        return key is not None and key.revoked is None

    def _of_this_machine(self, address: Address, frame: zmq.Frame) -> Peer:
        """libzmq tells "host:uid:gid:pid" of a peer on ipc, as the kernel told it at the connection."""
        told = _property(frame, "Peer-Address")
        known = self._peers.get(address.identity)
        if known is not None and known[0] == told and known[1].address.socket is address.socket:
            return known[1]
        try:
            _, uid_, _, pid_ = told.rsplit(":", 3)
            uid, pid = int(uid_), int(pid_)
        except ValueError:
            raise wire.Malformed("the sender's user cannot be told") from None
        own = uid in (os.geteuid(), 0)
        if not own and not self.open_to_others:
            raise Refused("denied", "this scheduler serves another user")
        role = Role.ADMIN if own else self.roles.get(uid, Role.USER)
        peer = Peer(address, f"uid:{uid}", uid, pid, role)
        if len(self._peers) >= _PEERS:
            self._peers.clear()
        self._peers[address.identity] = (told, peer)
        return peer

    # ---- what they may do ---------------------------------------------------------------------

    def check(self, peer: Peer, op: str) -> None:
        """Raises Refused: ``denied``, and ``unknown_op`` for what no role may ask."""
        access = ACCESS.get(op)
        if access is None:
            raise Refused("unknown_op", f"there is no operation '{op:.40}'")
        if peer.role not in access.roles:
            roles = " or ".join(sorted(access.roles))
            raise Refused("denied", f"this takes the role {roles}, and {peer.name} has {peer.role.value}")


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
