"""Many nodes in one process, each with a connection of its own: they join, beat, and do as they are told.

    python -m hal.scheduler.bench.agents ADDRESS NODES DEVICES GIB

Says ``ready`` when all have joined, and ends with its standard input. Each second every node beats, and one
in ten of them says that others use more or less of a device than before.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from typing import Any

import msgspec
import zmq

from hal.scheduler import wire
from hal.scheduler.agent.binding import Beat, Join
from hal.scheduler.bench.ground import node_facts
from hal.scheduler.core.facts import NodeFacts

_STEP = 0.02  # seconds between looks at what has come
_NEWS = 10  # beats of a node between two that say something new
_MADE = {"environments": [], "enforcement": {"memory": "none", "compute": "none"}}
_ORDERS: dict[str, dict[str, Any]] = {"bind": _MADE, "unbind": {"ended": True}}


class _Node:
    """As a scheduler sees one: what it sends, and how it answers."""

    def __init__(self, number: int, context: zmq.Context[zmq.Socket[bytes]], address: str, facts: NodeFacts):
        self.facts = facts
        self.term: int | None = None
        self._beats = number  # so that not all of them have news at once
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(address)

    def speak(self) -> None:
        if self.term is None:
            sent = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._send("join", Join(self.facts.id, "boot", 0, sent, "bench", self.facts))
            return
        self._beats += 1
        news = self._beats % _NEWS == 0
        self._send("beat", Beat(self.facts.id, self.term, self._changed() if news else None))

    def hear(self) -> None:
        while True:
            try:
                message = wire.unpack_message(self.socket.recv(flags=zmq.DONTWAIT))
            except zmq.Again:
                return
            if isinstance(message, wire.Request):
                reply = wire.Reply(wire.VERSION, message.id, True, _ORDERS[message.op])
                self.socket.send(wire.pack(reply))
            elif message.id == "join" and message.ok and not message.body.get("again"):
                self.term = message.body["term"]
            elif not message.ok:
                self.term = None

    def _changed(self) -> NodeFacts:
        first, *rest = self.facts.devices
        used = (1 << 30) * (self._beats // _NEWS % 4)
        changed = msgspec.structs.replace(first, outside_bytes=used)
        return msgspec.structs.replace(self.facts, devices=(changed, *rest))

    def _send(self, op: str, body: Join | Beat) -> None:
        request = wire.Request(wire.VERSION, op, op, msgspec.to_builtins(body))
        self.socket.send(wire.pack(request), flags=zmq.DONTWAIT)


def main(address: str, count: int, devices: int, gib: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stopping = threading.Event()

    def await_the_end() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=await_the_end, daemon=True).start()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * count + 16)
    nodes = [
        _Node(number, context, address, node_facts(f"node-{number:04d}", devices, gib))
        for number in range(count)
    ]
    poller = zmq.Poller()
    for node in nodes:
        poller.register(node.socket, zmq.POLLIN)
    by_socket = {node.socket: node for node in nodes}
    ready, turn = False, 0
    per_step = max(round(count * _STEP), 1)
    begun = time.monotonic()
    while not stopping.is_set():
        for _ in range(per_step):
            nodes[turn % count].speak()
            turn += 1
        time.sleep(max(begun + turn / per_step * _STEP - time.monotonic(), 0))
        for socket, _ in poller.poll(0):
            by_socket[socket].hear()
        if not ready and all(node.term is not None for node in nodes):
            ready = True
            print("ready", flush=True)
    context.destroy(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
