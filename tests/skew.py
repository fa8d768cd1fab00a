"""A conversation with a scheduler, as one version had it, and the same again with this one.

`python -m tests.skew FILE` records it anew, when a version is released: the file of the version before stays,
and is played to the present code (tests/integration/test_skew.py). Ids that the scheduler makes up are
written as the names of what they are, and replaced by its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgpack
import zmq

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.scheduler.places import Places
from tests.conftest import HAL
from tests.integration.support import start

__all__ = ["RECORDED", "Played", "body", "play"]

RECORDED = sorted(
    (Path(__file__).parent / "recorded").glob("messages-*.json"),
    key=lambda path: [int(part) for part in path.stem.removeprefix("messages-").split(".")],
)
GIB = 1 << 30
ON_GREEN = {
    "members": [
        {"alternatives": [{"selector": 'device.attributes["node"].name == "green"', "memory_bytes": GIB}]}
    ]
}

# Who asks, what, with which body, and where in the reply is an id that later ones name.
STEPS: list[tuple[str, str, dict[str, Any], dict[str, list[Any]]]] = [
    ("client", "hello", {}, {}),
    ("agent", "join", {
        "node": "green", "boot": "b", "term": 0, "sent": 1.0, "version": "0", "bound": {},
        "labels": {"rack": "a1"},
        "facts": {"id": "green", "cpu_milli": 8000, "ram_bytes": 64 * GIB, "labels": {}, "devices": [{
            "id": "x:0", "vendor": "x", "model": "X1", "memory_bytes": 80 * GIB, "outside_bytes": 0,
            "holds_slices": True, "attributes": {"sm": 9}, "fabric": None, "micros_per_hour": 0,
            "numa_node": 0,
        }]},
    }, {}),
    ("agent", "beat", {"node": "green", "term": 1, "facts": None, "ended": [], "use": {}, "runs": []}, {}),
    ("client", "acquire", {"key": "a", "request": ON_GREEN}, {"LEASE-01": ["lease", "id"]}),
    ("agent", "beat", {"node": "green", "term": 1, "facts": None, "ended": [], "use": {"LEASE-01": [{
        "device": "x:0", "limit_bytes": GIB, "used_bytes": 5, "refused": 0, "over_bytes": 0,
        "peak_bytes": 5}]}, "runs": []}, {}),
    ("client", "wait", {"lease": "LEASE-01"}, {}),
    ("client", "renew", {"lease": "LEASE-01"}, {}),
    ("client", "list", {"limit": 10, "after": 0}, {}),
    ("client", "lease", {"lease": "LEASE-01"}, {}),
    ("client", "explain", {"lease": "LEASE-01"}, {}),
    ("client", "status", {}, {}),
    ("client", "nodes", {}, {}),
    ("client", "label", {"node": "green", "labels": {"shelf": "3"}}, {}),
    ("client", "queues", {}, {}),
    ("client", "set_queue", {"name": "other", "quota_devices_milli": 1000, "weight": 2}, {}),
    ("client", "remove_queue", {"name": "other"}, {}),
    ("client", "release", {"lease": "LEASE-01"}, {}),
    ("client", "submit", {"key": "j", "retries": 1, "request": ON_GREEN, "job": {
        "command": ["sleep", "1000"], "environment": {"A": "b"}, "directory": "/", "output_bytes": 16 << 20,
        "umask": 18,
    }}, {"JOB-0001": ["jobs", 0]}),
    ("client", "wait_job", {"job": "JOB-0001", "timeout_seconds": 0.5}, {}),
    ("client", "job", {"job": "JOB-0001"}, {}),
    ("client", "jobs", {"over": True}, {}),
    ("client", "signal_job", {"job": "JOB-0001", "signal": 10}, {}),
    ("client", "job_logs", {"job": "JOB-0001", "stream": "stdout", "offset": 0}, {}),
    ("agent", "beat", {"node": "green", "term": 1, "facts": None, "ended": [], "use": {}, "runs": [{
        "lease": "JOB-0001", "epoch": 2, "member": 0, "code": 0, "signal": None, "error": "", "begun_ms": 1,
        "ended_ms": 2, "cpu_seconds": 0.5, "lost": False}]}, {}),
    ("client", "wait_job", {"job": "JOB-0001", "timeout_seconds": 20.0}, {}),
    ("client", "cancel_job", {"job": "JOB-0001"}, {}),
    ("client", "accounting", {"since": "2026-01-01"}, {}),
    ("client", "cordon", {"target": "green", "reason": "dust"}, {}),
    ("client", "acquire", {"key": "w", "request": ON_GREEN | {"wait": True}}, {
        "WAITS-01": ["waiting", "id"]}),
    ("client", "release", {"lease": "WAITS-01"}, {}),
    ("client", "uncordon", {"target": "green"}, {}),
    ("client", "acquire_many", {"requests": [{"key": "m"} | {"request": ON_GREEN}]}, {
        "LEASE-02": ["replies", 0, "body", "waiting", "id"]}),
    ("client", "release_many", {"leases": ["LEASE-02"]}, {}),
    ("client", "drain", {"target": "green"}, {}),
    ("client", "watch", {"after": 0, "limit": 100, "timeout_seconds": 0.0}, {}),
    ("client", "forget", {"node": "green"}, {}),
]  # fmt: skip

# What an agent answers to each order.
ANSWERS: dict[str, dict[str, Any]] = {
    "bind": {
        "environments": [[0, {"HAL_SLICE": "x"}]],
        "enforcement": {"memory": "guard", "compute": "none"},
        "port": 0,
    },
    "unbind": {"ended": True},
    "run": {},
    "signal": {},
    "output": {"offset": 0, "data": "c2FpZAo=", "end": False},
}


class Played:
    """What was asked and answered, by operation; ``orders`` that the scheduler gave, and their answers."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.orders: list[dict[str, str]] = []
        self.replies: list[dict[str, Any]] = []


def play(recorded: dict[str, Any] | None) -> Played:
    """With a scheduler of the present version; ``recorded`` None: the steps of this one, to be recorded."""
    played = Played()
    with ExitStack() as stack:
        env = stack.enter_context(emulated(load("none")))
        daemon = start(env, *HAL, "serve", "--lost-after", "60", stdin=subprocess.DEVNULL)
        stack.callback(daemon.kill)
        assert daemon.stderr is not None
        assert daemon.stderr.readline().startswith("hal: serving")
        context = stack.enter_context(zmq.Context())
        sockets = {}
        for who in ("client", "agent"):
            sockets[who] = stack.enter_context(context.socket(zmq.DEALER))
            sockets[who].linger = 0
            sockets[who].connect(Places(Path(env["HAL_RUNTIME_DIR"])).address)
        steps: list[Any] = STEPS if recorded is None else recorded["asked"]
        answers = (
            ANSWERS if recorded is None else {one["op"]: body(one["reply"]) for one in recorded["orders"]}
        )
        ids: dict[str, str] = {}
        for number, step in enumerate(steps):
            if recorded is None:
                who, op, content, learns = step
                frame = msgpack.packb({"v": 1, "id": str(number), "op": op, "body": content})
            else:
                who, op, learns = step["who"], step["op"], step["learns"]
                frame = bytes.fromhex(step["request"])
            sockets[who].send(_renamed(frame, ids))
            reply = _answered(sockets, who, str(number), answers, played, ids)
            for name, path in learns.items():
                ids[name] = str(_at(msgpack.unpackb(reply)["body"], path))
                assert len(ids[name]) == len(name), "ids are replaced in frames"
            frames = {
                "request": frame.hex(),
                "reply": _renamed(reply, {id: name for name, id in ids.items()}).hex(),
            }
            played.asked.append({"who": who, "op": op, "learns": learns} | frames)
            played.replies.append(msgpack.unpackb(reply))
    return played


def _answered(
    sockets: dict[str, zmq.Socket[bytes]],
    who: str,
    id: str,
    answers: dict[str, dict[str, Any]],
    played: Played,
    ids: dict[str, str],
) -> bytes:
    """The reply to this request; orders are answered meanwhile."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for name, socket in sockets.items():
            if not socket.poll(20):
                continue
            frame = socket.recv()
            message = msgpack.unpackb(frame)
            if "op" not in message:
                if name == who and message["id"] == id:
                    return frame
                continue
            reply = {"v": 1, "id": message["id"], "ok": True, "body": answers[message["op"]], "error": None}
            written = msgpack.packb(reply)
            socket.send(written)
            order = _renamed(frame, {id: name for name, id in ids.items()})
            played.orders.append({"op": message["op"], "request": order.hex(), "reply": written.hex()})
    raise AssertionError(f"no answer to request {id}")


def _renamed(frame: bytes, names: dict[str, str]) -> bytes:
    for before, after in names.items():
        frame = frame.replace(before.encode(), after.encode())
    return frame


def _at(value: Any, path: list[Any]) -> Any:
    for part in path:
        value = value[part]
    return value


def body(frame: str) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(bytes.fromhex(frame))["body"]
    return found


if __name__ == "__main__":
    made = play(None)
    recording = {"version": version("gpu-hal"), "asked": made.asked, "orders": made.orders}
    Path(sys.argv[1]).write_text(json.dumps(recording, indent=1) + "\n")
    for asked, answer in zip(made.asked, made.replies, strict=True):
        print(asked["op"], "ok" if answer["ok"] else answer["error"])
