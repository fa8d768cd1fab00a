"""How much one client may ask at a time: requests a second, bytes a request, answers outstanding, and of the
scheduler's time, of which all have the same thread.

A client is a peer by name: the local user or the key, however many connections it has. Admins and agents
are bounded in size only: they can do worse than ask often, and beats must not be turned away.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from hal.scheduler.answers import Peer, Refused
from hal.scheduler.kept import Kept
from hal.scheduler.security.roles import Role
from hal.units import format_bytes

__all__ = ["PLAIN", "Allowance", "Limits"]

PLAIN = 0.00025  # seconds: what takes no longer costs as much as any request
_PRICE = 10  # seconds of a client's allowance for each second that it has taken beyond: it has a tenth of all
_DEAREST = 1.0  # seconds that are charged at once: the machine, and not the request, may have been slow

_MOST_CLIENTS = 10_000  # remembered; who has asked nothing for the longest time is forgotten first


class Allowance(Struct, frozen=True):
    """What each client has."""

    requests_per_second: float
    burst: int  # that may be asked at once after a pause
    outstanding: int  # requests that wait for their answer
    request_bytes: int
    waiting: int = 10_000  # requests in queues, jobs among them
    waiting_bytes: int = 64 << 20  # that are kept for them
    all_bytes: int | None = None  # and for those of all owners together


class _Client(Struct):
    tokens: float
    filled: float  # when, on the caller's clock
    outstanding: int = 0


class Limits:
    """Counts for each client. ``now`` is seconds on a clock that never goes back."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance  # may be replaced while it runs
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self.refused = 0  # requests turned away since the start

    def admit(self, peer: Peer, size: int, now: float, *, count: int = 1) -> None:
        """Take a message of so many bytes with ``count`` requests in it: more than are left are paid for with
        time. Raises Refused: ``busy``, or ``malformed``: it is too large."""
        allowed = self.allowance
        if size > allowed.request_bytes:
            self.refused += 1
            raise Refused(
                "malformed", f"the request has {size} bytes; {allowed.request_bytes} are allowed here"
            )
        if _is_exempt(peer):
            return
        client = self._client(peer, now)
        passed = max(now - client.filled, 0.0)
        client.tokens = min(client.tokens + passed * allowed.requests_per_second, float(allowed.burst))
        client.filled = now
        if client.tokens < 1:
            self.refused += 1
            later = (1 - client.tokens) / allowed.requests_per_second
            much = f"asks more than {allowed.requests_per_second:g} times a second"
            if client.tokens < 0:
                much = "has asked for much at once, or for what takes long"
            raise Refused("busy", f"{peer.name} {much}; try again in {max(later, 0.001):.3f} s")
        client.tokens -= count

    def charge(self, peer: Peer, seconds: float, now: float) -> None:
        """So long took what it asked, beyond what is plain: its sender pays, and not who asks beside it."""
        if not _is_exempt(peer):
            seconds = min(max(seconds, 0.0), _DEAREST)
            self._client(peer, now).tokens -= seconds * _PRICE * self.allowance.requests_per_second

    def owes(self, peer: Peer, now: float) -> float:
        """Seconds until it has paid for what it has had."""
        if _is_exempt(peer):
            return 0.0
        client = self._client(peer, now)
        return max(-client.tokens / self.allowance.requests_per_second - max(now - client.filled, 0.0), 0.0)

    def begin(self, peer: Peer, now: float) -> None:
        """One more answer is outstanding. Raises Refused (``busy``) when there are enough."""
        if _is_exempt(peer):
            return
        client = self._client(peer, now)
        if client.outstanding >= self.allowance.outstanding:
            self.refused += 1
            raise Refused(
                "busy",
                f"{peer.name} waits for {client.outstanding} answers already; try again when one has come",
            )
        client.outstanding += 1

    def queue(self, peer: Peer, there: int, more: int, kept: Kept, size: int) -> None:
        """So many more requests are to wait, of so many bytes together, beside those that do and what is kept
        for them. Raises Refused (``limit``)."""
        allowed, own, all = self.allowance, kept.of_owner[peer.uid], kept.total
        reason = ""
        if not _is_exempt(peer):
            if there + more > allowed.waiting:
                reason = f"{peer.name} has {there} requests that wait, and may have {allowed.waiting}"
            elif own + size > allowed.waiting_bytes:
                reason = (
                    f"what waits for {peer.name} has {format_bytes(own)}, and with this more than the "
                    f"{format_bytes(allowed.waiting_bytes)} that it may have (limits.waiting_bytes)"
                )
        if not reason and allowed.all_bytes is not None and all + size > allowed.all_bytes:
            reason = (
                f"what waits for all users has {format_bytes(all)}, and with this more than the "
                f"{format_bytes(allowed.all_bytes)} that it may have, a quarter of limits.memory"
            )
        if reason:
            self.refused += 1
            raise Refused("limit", f"{reason}; try again when some have been served")

    def end(self, peer: Peer) -> None:
        """An answer that was outstanding has been given, or nobody waits for it any more."""
        client = self._clients.get(peer.name)
        if client is not None and client.outstanding > 0:
            client.outstanding -= 1

    def _client(self, peer: Peer, now: float) -> _Client:
        client = self._clients.get(peer.name)
        if client is None:
            client = self._clients[peer.name] = _Client(float(self.allowance.burst), now)
            self._forget()
        self._clients.move_to_end(peer.name)
        return client

    def _forget(self) -> None:
        for name in list(self._clients)[: max(len(self._clients) - _MOST_CLIENTS, 0)]:
            if self._clients[name].outstanding == 0:
                del self._clients[name]


def _is_exempt(peer: Peer) -> bool:
    return peer.role in (Role.ADMIN, Role.AGENT)
