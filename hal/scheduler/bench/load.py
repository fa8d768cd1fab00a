"""One client process of the bench: acquire, release, and again, for as long as it is told.

    python -m hal.scheduler.bench.load ADDRESS SECONDS WINDOW BATCH
    python -m hal.scheduler.bench.load ADDRESS hold NUMBER

It keeps WINDOW messages in flight, each for BATCH leases; what it measured it prints as JSON. It says
``ready`` when the scheduler has answered once, and begins when it is told to on its standard input. With
``hold`` it takes so many leases, says ``ready``, and keeps them until its standard input ends.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from hal.scheduler import wire
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.security.keys import ClientKey, read_client_key

__all__ = ["Measured", "own_key"]

_PATIENCE = 30_000  # milliseconds for any one answer
_AT_ONCE = 64  # requests for leases that are kept
_WARM = 0.3  # seconds that do not count
# What a user asks for: a slice, on one of the large devices, or else on any that has room.
_SLICE = {"memory_bytes": 1 << 30}
_CHOICE = [{"selector": "memory >= 100Gi", **_SLICE}, _SLICE]
_REQUEST = {"members": [{"alternatives": _CHOICE}], "ttl_ms": 60_000}


class Measured(msgspec.Struct):
    """What one client saw; times in seconds."""

    pairs: int = 0
    refused: int = 0
    why: str = ""  # the last refusal's words
    took: list[float] = []  # each: from the request to acquire to the reply to release


def own_key(address: str) -> ClientKey | None:
    """HAL_KEY's, where the address needs one. Raises StateError when it cannot be used."""
    file = os.environ.get("HAL_KEY")
    return read_client_key(Path(file)) if file and address.startswith("tcp://") else None


class _Answer(msgspec.Struct):
    id: str
    ok: bool
    body: dict[str, Any] = {}
    error: dict[str, Any] | None = None


class _Client:
    """As quick as Python can be, so that the daemon is what is measured."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVTIMEO, _PATIENCE)
        Endpoint(address, own_key(address)).dial(self._socket)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Answer).decode

    def send(self, id: str, op: str, body: dict[str, Any]) -> None:
        self._socket.send(self._encode({"v": wire.VERSION, "id": id, "op": op, "body": body}))

    def receive(self) -> _Answer:
        try:
            return self._decode(self._socket.recv())
        except zmq.Again:
            raise SystemExit("the scheduler does not answer") from None

    def close(self) -> None:
        self._context.destroy(0)


class _Load:
    def __init__(self, client: _Client, seconds: float, batch: int) -> None:
        self._client = client
        self._batch = batch
        self._keys = itertools.count()
        self._prefix = f"{os.getpid():x}-{time.monotonic_ns():x}"
        self._begun: dict[str, float] = {}
        self._counted = time.perf_counter() + _WARM
        self._until = self._counted + seconds
        self.found = Measured()

    def run(self, window: int) -> None:
        for _ in range(window):
            self._begin()
        while self._begun:
            answer = self._client.receive()
            now = time.perf_counter()
            kind, key = answer.id[0], answer.id[1:]
            if kind == "a" and self._release(key, answer):
                continue
            begun = self._begun.pop(key)
            if self._counted <= begun and now <= self._until:
                if answer.ok and kind == "r":
                    self.found.pairs += self._batch
                    self.found.took.append(now - begun)
                else:
                    self.found.refused += self._batch
                    self.found.why = str((answer.error or {}).get("message", answer.body))[:200]
            if now < self._until:
                self._begin()

    def _begin(self) -> None:
        key = f"{self._prefix}-{next(self._keys)}"
        self._begun[key] = time.perf_counter()
        if self._batch == 1:
            self._client.send("a" + key, "acquire", {"key": key, "request": _REQUEST})
        else:
            each = [{"key": f"{key}.{n}", "request": _REQUEST} for n in range(self._batch)]
            self._client.send("a" + key, "acquire_many", {"requests": each})

    def _release(self, key: str, answer: _Answer) -> bool:
        """Whether there is something to release."""
        if not answer.ok:
            return False
        if self._batch == 1:
            self._client.send("r" + key, "release", {"lease": answer.body["lease"]["id"]})
            return True
        granted = [one["body"]["lease"]["id"] for one in answer.body["replies"] if one["ok"]]
        if granted:
            self._client.send("r" + key, "release_many", {"leases": granted})
        return bool(granted)


def hold(client: _Client, number: int) -> None:
    """Leases that are taken and kept, as many at once as a scheduler takes well."""
    request = _REQUEST | {"ttl_ms": 3_600_000}
    waiting, granted, asked = 0, 0, 0
    while granted < number:
        while waiting < _AT_ONCE and asked < number:
            client.send("a", "acquire", {"key": f"{os.getpid():x}-{asked}", "request": request})
            asked += 1
            waiting += 1
        answer = client.receive()
        waiting -= 1
        if not answer.ok:
            raise SystemExit(f"{granted} leases were granted, and then: {answer.error}")
        granted += 1


def main(address: str, seconds: float, window: int, batch: int) -> None:
    client = _Client(address)
    client.send("hello", "hello", {})
    client.receive()
    print("ready", flush=True)
    sys.stdin.readline()
    load = _Load(client, seconds, batch)
    load.run(window)
    sys.stdout.write(msgspec.json.encode(load.found).decode())
    client.close()


def main_hold(address: str, number: int) -> None:
    client = _Client(address)
    hold(client, number)
    print("ready", flush=True)
    sys.stdin.read()
    client.close()


if __name__ == "__main__" and sys.argv[2] == "hold":
    main_hold(sys.argv[1], int(sys.argv[3]))
elif __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
