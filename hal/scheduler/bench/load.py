"""One client process of the bench: acquire, release, and again, for as long as it is told.

    python -m hal.scheduler.bench.load ADDRESS SECONDS WINDOW BATCH

It keeps WINDOW messages in flight, each of BATCH requests; what it measured it prints as JSON. It says
``ready`` when the scheduler has answered once, and begins when it is told to on its standard input.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import deque
from typing import Any

import msgspec
import zmq

from hal.scheduler import wire

__all__ = ["Measured"]

_PATIENCE = 30_000  # milliseconds for any one answer
_WARM = 0.2  # seconds that do not count
_SLICE = {"memory_bytes": 1 << 30, "compute_milli": 10}
_REQUEST = {
    "members": [
        {
            "alternatives": [
                {"selector": f'vendor == "{vendor}"', **_SLICE} for vendor in ("nvidia", "amd")
            ]
        }
    ],
    "ttl_ms": 60_000,
}


class Measured(msgspec.Struct):
    """What one client saw; times in seconds."""

    pairs: int = 0
    refused: int = 0
    seconds: float = 0.0
    acquires: list[float] = []  # each: from request to reply
    pairs_took: list[float] = []  # from the request to acquire to the reply to release


class _Answer(msgspec.Struct):
    id: str
    ok: bool
    body: dict[str, Any] = {}
    error: dict[str, Any] | None = None


class _Client:
    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.connect(address)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Answer).decode

    def send(self, id: str, op: str, body: dict[str, Any]) -> None:
        self._socket.send(self._encode({"v": wire.VERSION, "id": id, "op": op, "body": body}))

    def receive(self) -> _Answer:
        if not self._socket.poll(_PATIENCE):
            raise SystemExit("the scheduler does not answer")
        return self._decode(self._socket.recv())

    def close(self) -> None:
        self._context.destroy(0)


def drive(client: _Client, seconds: float, window: int) -> Measured:
    """``window`` clients in one: each acquires, releases, and begins again."""
    found = Measured()
    keys = itertools.count()
    begun: dict[str, float] = {}
    prefix = f"{os.getpid():x}-{time.monotonic_ns():x}"

    def begin() -> None:
        key = f"{prefix}-{next(keys)}"
        begun[key] = time.perf_counter()
        client.send("a" + key, "acquire", {"key": key, "request": _REQUEST})

    start = time.perf_counter()
    counted, end = start + _WARM, start + _WARM + seconds
    for _ in range(window):
        begin()
    while begun:
        answer = client.receive()
        now = time.perf_counter()
        kind, key = answer.id[0], answer.id[1:]
        counts = counted <= begun[key] and now <= end
        if kind == "a" and answer.ok:
            if counts:
                found.acquires.append(now - begun[key])
            client.send("r" + key, "release", {"lease": answer.body["lease"]["id"]})
            continue
        if counts:
            if answer.ok:
                found.pairs += 1
                found.pairs_took.append(now - begun[key])
            else:
                found.refused += 1
        del begun[key]
        if now < end:
            begin()
    found.seconds = seconds
    return found


def main(address: str, seconds: float, window: int) -> None:
    client = _Client(address)
    client.send("hello", "hello", {})
    client.receive()
    print("ready", flush=True)
    sys.stdin.readline()
    sys.stdout.write(msgspec.json.encode(drive(client, seconds, window)).decode())
    client.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
