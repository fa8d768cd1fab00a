"""Frames of every kind of wrong, by the thousand and in a soak by the million (HAL_FRAMES): duplicated,
reordered, delayed, cut short, changed, made up. The daemon answers on, keeps its promises, and does not grow.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from hal.scheduler import wire
from hal.scheduler.agent.binding import Beat, Join
from hal.scheduler.bench.ground import node_facts

FRAMES = int(os.environ.get("HAL_FRAMES", "6000"))
DEVICES = 16
PATIENCE = 60_000  # milliseconds
GIB = 1 << 30
TOGETHER = 50  # frames between two looks whether the daemon still answers

pack = msgspec.msgpack.Encoder().encode


class Daemon:
    """A real one, over devices of which nothing is made."""

    def __init__(self, directory: str) -> None:
        command = [sys.executable, "-m", "hal.scheduler.bench.ground", directory, str(DEVICES)]
        pipe = subprocess.PIPE
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.socket = f"{directory}/scheduler.sock"

    def bytes_of_its_own(self) -> int:
        _, resident, shared, *_ = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> tuple[int, str]:
        self.process.terminate()
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="hal-fuzz-") as directory:
        Path(directory).chmod(0o700)
        found = Daemon(directory)
        try:
            yield found
        finally:
            found.process.kill()
            found.process.communicate()


class Peer:
    """A connection of the fuzzer's, which reads all that it is told."""

    def __init__(self, daemon: Daemon, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{daemon.socket}")
        self.count = 0

    def send(self, frames: list[bytes]) -> None:
        self.socket.send_multipart(frames)

    def ask(self, op: str, **body: Any) -> dict[str, Any]:
        """An orderly request, whose answer has to come; what is told before it has to be in order, too."""
        self.count += 1
        id = f"orderly {self.count}"
        self.send([pack({"v": 1, "id": id, "op": op, "body": body})])
        while self.socket.poll(PATIENCE):
            (frame,) = self.socket.recv_multipart()
            try:
                reply = wire.unpack_reply(frame)
            except wire.Malformed:
                self.obey(wire.unpack_request(frame))
                continue
            assert reply.ok is (reply.error is None)
            if reply.id == id:
                assert reply.ok, reply.error
                return reply.body
            if reply.error is not None and reply.error.code == "failed":
                # A node that does not do as it is told, and a queue that somebody is in.
                assert any(who in reply.error.message for who in ("node '", "queue '")), reply.error
        raise AssertionError("the daemon does not answer any more")

    def obey(self, order: wire.Request) -> None:
        """It has said that it is an agent, and so it is given orders. Of ten it forgets one."""
        self.count += 1
        made = {"environments": [], "enforcement": {"memory": "none", "compute": "none"}}
        body = {"bind": made, "unbind": {"ended": True}}[order.op]
        if self.count % 10:
            self.send([pack({"v": 1, "id": order.id, "ok": True, "body": body})])


class Fuzzer:
    """Makes frames: orderly ones first, which are then kept, repeated, held back and damaged."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.leases = ["none"]
        self.serial = 0
        self.kept = [self.orderly() for _ in range(20)]  # to be sent again, and damaged
        self.held: list[bytes] = []  # to be sent later, in another order
        self.ways: list[tuple[int, Callable[[], list[bytes]]]] = [
            (6, lambda: [self.keep(self.orderly())]),
            (4, lambda: [self.chance.choice(self.kept)]),
            (3, self.later),
            (3, lambda: [self.cut(self.chance.choice(self.kept))]),
            (6, lambda: [self.damaged(self.chance.choice(self.kept))]),
            (3, lambda: [self.chance.randbytes(self.chance.choice((0, 1, 3, 20, 300)))]),
            (4, lambda: [pack(self.thing(3))]),
            (4, lambda: [self.odd()]),
            (1, lambda: [self.chance.choice(self.kept)] * self.chance.randint(2, 5)),
            (1, lambda: [b"", self.chance.choice(self.kept)]),
            (1, lambda: [self.promises()]),
        ]
        self.weights = [weight for weight, _ in self.ways]

    def frames(self) -> list[bytes]:
        (_, way) = self.chance.choices(self.ways, self.weights)[0]
        return way()

    def keep(self, frame: bytes) -> bytes:
        self.kept[self.chance.randrange(len(self.kept))] = frame
        return frame

    def later(self) -> list[bytes]:
        self.held.append(self.orderly())
        if len(self.held) < 40:
            return [self.chance.choice(self.kept)]
        return [self.held.pop(self.chance.randrange(len(self.held)))]

    # ---- in order ---------------------------------------------------------------------------

    def orderly(self) -> bytes:
        self.serial += 1
        op, body = self.operation()
        request = {"v": 1, "id": f"i{self.serial}", "op": op, "body": body}
        if self.chance.random() < 0.1:
            request["deadline_ms"] = self.chance.choice((0, 1, 1 << 62, -5))
        return pack(request)

    def operation(self) -> tuple[str, dict[str, Any]]:
        chance = self.chance
        match chance.randrange(14):
            case 0 | 1 | 2 | 3:
                return "acquire", self.acquire()
            case 4:
                return "acquire_many", {"requests": [self.acquire() for _ in range(chance.randint(0, 4))]}
            case 5 | 6 | 7:
                return chance.choice(("release", "renew", "explain")), {"lease": self.lease()}
            case 8:
                return "release_many", {"leases": [self.lease() for _ in range(chance.randint(0, 4))]}
            case 9:
                return "wait", {"lease": self.lease(), "timeout_seconds": chance.choice((0, 0.1, 60, 61))}
            case 10:
                return "watch", {
                    "after": chance.choice((None, 0, 1 << 32, -1, 1 << 63)),
                    "timeout_seconds": chance.choice((0, 0.1)),
                    "limit": chance.choice((0, 1, 100)),
                }
            case 11:
                return "list", {"limit": chance.choice((1, 10, 1000)), "after": chance.choice((0, 7, -1))}
            case 12:
                name = chance.choice(("default", "q", "q/a", ""))
                if chance.random() < 0.3:
                    return "remove_queue", {"name": name}
                return "set_queue", {"name": name, "weight": chance.choice((0, 1, 5))}
            case _:
                return self.agent()

    def acquire(self) -> dict[str, Any]:
        chance = self.chance
        key = f"k{chance.randrange(200)}"
        if chance.random() < 0.5:
            size = chance.choice((None, GIB, 300 * GIB, 0, -1))
            return {
                "key": key,
                "memory_bytes": size,
                "ttl_seconds": 1.0,
                "vendor": chance.choice((None, "simulated")),
            }
        alternative = {
            "memory_bytes": chance.choice((None, GIB, 90 * GIB)),
            "count": chance.choice((1, 1, 2, 99)),
            "selector": chance.choice(
                ("", 'vendor == "amd"', "device.x", f"memory > {chance.randrange(99)}")
            ),
        }
        if alternative["memory_bytes"] is None:
            del alternative["memory_bytes"]
        member = {"alternatives": [alternative] * chance.choice((1, 2)), "replicas": chance.choice((1, 1, 3))}
        waits = {"wait": True, "deadline_ms": 500} if chance.random() < 0.5 else {}
        priority = chance.randrange(-3, 4)
        request = {"members": [member], "ttl_ms": 1000, "priority": priority, **waits}
        return {"key": key, "request": request}

    def agent(self) -> tuple[str, dict[str, Any]]:
        name = self.chance.choice(("local", "n1", "n2"))
        if self.chance.random() < 0.5:
            facts = node_facts(name, self.chance.randrange(3))
            sent = self.chance.random() * 100
            joining = Join(
                node=name, boot="b", term=self.chance.randrange(3), sent=sent, version="1", facts=facts
            )
            return "join", msgspec.to_builtins(joining)
        return "beat", msgspec.to_builtins(Beat(name, self.chance.randrange(3), ended=[("x", 1)]))

    def lease(self) -> str:
        return self.chance.choice(self.leases)

    # ---- and not ----------------------------------------------------------------------------

    def cut(self, frame: bytes) -> bytes:
        return frame[: self.chance.randrange(len(frame))]

    def damaged(self, frame: bytes) -> bytes:
        damaged = bytearray(frame)
        for _ in range(self.chance.randint(1, 4)):
            damaged[self.chance.randrange(len(damaged))] = self.chance.randrange(256)
        if self.chance.random() < 0.2:
            at = self.chance.randrange(len(damaged))
            damaged[at:at] = self.chance.randbytes(self.chance.randint(1, 20))
        return bytes(damaged)

    def odd(self) -> bytes:
        """A message of the right shape with things in it that do not belong there."""
        op, body = self.operation()
        for name in list(body):
            if self.chance.random() < 0.4:
                body[name] = self.thing(2)
        if self.chance.random() < 0.3:
            body[self.word()] = self.thing(2)
        message = {"v": 1, "id": "odd", "op": op, "body": body}
        if self.chance.random() < 0.2:
            message[self.chance.choice(("v", "id", "op", "body", "ok", "deadline_ms"))] = self.thing(2)
        if self.chance.random() < 0.1:  # an agent's answer to an order that nobody gave
            message = {"v": 1, "id": f"1-{self.chance.randrange(50)}", "ok": True, "body": body}
        return pack(message)

    def thing(self, depth: int) -> Any:
        chance = self.chance
        kinds = 9 if depth else 7
        match chance.randrange(kinds):
            case 0:
                return None
            case 1:
                return chance.random() < 0.5
            case 2:
                return chance.choice(
                    (0, 1, -1, 1 << 31, -(1 << 63), (1 << 64) - 1, chance.randrange(1 << 40))
                )
            case 3:
                return chance.choice((0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan"), 1e300))
            case 4:
                return self.word() * chance.choice((1, 1, 1, 30))
            case 5:
                return chance.randbytes(chance.choice((0, 5, 70)))
            case 6:
                return chance.choice(("acquire", "default", "\0", "a/b", "🂡", "../x", "''", "%s"))
            case 7:
                return [self.thing(depth - 1) for _ in range(chance.randrange(5))]
        return {self.word(): self.thing(depth - 1) for _ in range(chance.randrange(5))}

    def word(self) -> str:
        return self.chance.choice(("key", "lease", "request", "members", "name", "ttl_seconds", "x", ""))

    def promises(self) -> bytes:
        """Of far more than comes."""
        head = self.chance.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"))
        return b"\x81\xa4body" + head + b"\xff\xff\xff\x7f" + self.chance.randbytes(20)


def sound(leases: list[dict[str, Any]]) -> None:
    """No device is lent whole to two, or whole to one and in part to another."""
    whole: dict[str, str] = {}
    for lease in leases:
        for part in lease["parts"]:
            for device in part["devices"] if part["whole"] else ():
                assert device not in whole, f"{device} is {whole[device]}'s and {lease['id']}'s"
                whole[device] = lease["id"]
    for lease in leases:
        for part in lease["parts"]:
            shared = set() if part["whole"] else whole.keys() & set(part["devices"])
            assert not shared, f"{shared} lent whole and in part"


def everything(peer: Peer) -> list[dict[str, Any]]:
    found, after = list[dict[str, Any]](), 0
    while True:
        page = peer.ask("list", after=after)
        found += page["leases"] + page["waiting"]
        if page["next"] is None:
            return found
        after = page["next"]


@pytest.mark.timeout(120 + FRAMES // 500)
def test_no_frames_break_it_or_make_it_grow(daemon: Daemon) -> None:
    seed = 1 if "CI" in os.environ or FRAMES < 10_000 else random.SystemRandom().randrange(1 << 32)
    fuzzer = Fuzzer(seed)
    with zmq.Context() as context:
        peers = [Peer(daemon, context) for _ in range(5)]
        sizes, sent = list[int](), 0
        while sent < FRAMES:
            peer = fuzzer.chance.choice(peers)
            for _ in range(TOGETHER):
                peer.send(fuzzer.frames())
            sent += TOGETHER
            assert peer.ask("hello")["pid"] == daemon.process.pid, f"seed {seed}"
            if sent % (TOGETHER * 20) == 0:
                there = everything(peer)
                sound([one for one in there if "parts" in one])
                fuzzer.leases = ["none", *(one["id"] for one in there[:50])]
                sizes.append(daemon.bytes_of_its_own())
                stranger(daemon, fuzzer.chance.randbytes(200))
            if fuzzer.chance.random() < 0.02:  # one that hangs up, with answers under way
                gone = peers.pop(fuzzer.chance.randrange(len(peers)))
                gone.socket.close()
                peers.append(Peer(daemon, context))
        last = peers[0]
        for one in everything(last):
            last.ask("release_many", leases=[one["id"]])
        left = [one for one in everything(last) if "parts" in one]
        nodes = [{part["node"] for part in one["parts"]} for one in left]
        assert all(each - {"local"} for each in nodes), "only what has a part on a node that never was"
        for peer in peers:
            peer.socket.close()
    code, said = daemon.end()
    assert (code, "Traceback" in said) == (0, False), (seed, said)
    third = len(sizes) // 3
    grown = max(sizes[-third:]) - max(sizes[:third])
    print(f"sizes {[size >> 20 for size in sizes[:: max(len(sizes) // 20, 1)]]} MiB, seed {seed}")
    assert grown < 24 << 20, f"seed {seed}: {grown >> 20} MiB more at the end than after a third: {sizes}"


def stranger(daemon: Daemon, noise: bytes) -> None:
    """Somebody who does not speak ZeroMQ."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(daemon.socket)
        one.sendall(noise)
