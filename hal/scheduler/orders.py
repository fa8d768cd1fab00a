"""Orders to nodes, until they are answered.

The scheduler's own node is reached by a call, any other by a message to its agent, which is sent again
until it is answered or overtaken: an order has one effect, however often it comes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from hal.backend import HalError, StateError
from hal.scheduler import wire
from hal.scheduler.agent import binding as on
from hal.scheduler.agent.agent import Agent
from hal.scheduler.answers import Address
from hal.scheduler.node import Node

__all__ = ["AGAIN", "Orders"]

AGAIN = 3.0  # seconds after which what was not answered, or not done, is ordered again


class _Open(Struct, eq=False):
    """One that is not answered yet."""

    node: Node
    lease: str
    kind: type[Struct]
    done: Callable[[Any], None]
    message: bytes
    sent: float


class Orders:
    """``outbox`` has what is to be sent once that from which it follows is durable. Times are seconds on the
    monotonic clock."""

    def __init__(self, agent: Agent | None) -> None:
        """``agent``: the scheduler's own node's, if it has one."""
        self.outbox: list[tuple[Address, bytes]] = []
        self._agent = agent
        self._open: dict[str, _Open] = {}
        self._own: list[tuple[on.Order, Callable[[Any], None]]] = []
        self._start = secrets.token_hex(4)  # no answer is taken for one to an order of an earlier start
        self._numbered = 0
        self._until = float("-inf")  # none is to be repeated before

    def give(
        self, node: Node, order: on.Order, done: Callable[[Any], None], now: float, lease: str = ""
    ) -> None:
        """``done`` gets the answer or a HalError: at once from this node, from another when it answers, and
        never when that is lost before: its leases are settled when it joins again. Programs of this node hear
        of it with ``carry_out``."""
        if self._agent is not None and self._agent.node == node.id:
            if isinstance(order, on.RunOrder | on.SignalOrder):
                self._own.append((order, done))
            else:
                self._perform(self._agent, order, done, now)
        elif node.address is not None:
            self._numbered += 1
            id, (op, kind) = f"{self._start}-{self._numbered}", on.ORDERS[type(order)]
            message = wire.pack(wire.Request(wire.VERSION, id, op, msgspec.to_builtins(order)))
            self._open[id] = _Open(node, lease, kind, done, message, now)
            self.outbox.append((node.address, message))

    def answered(self, address: Address, reply: wire.Reply) -> None:
        """By an agent; of an order that was overtaken, nothing."""
        order = self._open.get(reply.id)
        if order is None or order.node.address != address:
            return
        del self._open[reply.id]
        at = order.node.id
        if not reply.ok:
            reason = "it gave no reason" if reply.error is None else reply.error.message
            order.done(StateError(f"node '{at}': {reason}"))
            return
        try:
            order.done(msgspec.convert(reply.body, order.kind))
        except msgspec.ValidationError as wrong:
            order.done(StateError(f"node '{at}' gave an answer that cannot be read: {wrong}"))

    def repeat(self, now: float) -> None:
        """Ask others again what they have not answered."""
        if now < self._until:
            return
        for order in self._open.values():
            if now - order.sent >= AGAIN and order.node.address is not None:
                order.sent = now
                self.outbox.append((order.node.address, order.message))
        self._until = min((one.sent for one in self._open.values()), default=now) + AGAIN

    def carry_out(self, now: float) -> None:
        """What programs of this node are told: what it follows from is durable by now."""
        own, self._own = self._own, []
        for order, done in own:
            assert self._agent is not None
            self._perform(self._agent, order, done, now)

    def drop(self, *, node: Node | None = None, lease: str | None = None) -> None:
        """Those to a node, or about a lease, which something has overtaken."""
        self._open = {
            id: order for id, order in self._open.items() if order.node is not node and order.lease != lease
        }

    @staticmethod
    def _perform(agent: Agent, order: on.Order, done: Callable[[Any], None], now: float) -> None:
        answer: Any
        try:
            answer = agent.perform(order, now)
        except HalError as wrong:
            answer = wrong
        done(answer)
