"""Whatever arrives at its socket, the daemon answers or drops it, and goes on serving others."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.scheduler import core, operations, wire
from hal.scheduler.client import Client
from hal.scheduler.store.care import journal_of
from hal.scheduler.store.journal import Batch
from tests.conftest import wait_until
from tests.integration.support import Env, daemon_pid, leases, places, serving

PATIENCE = 10_000  # milliseconds


class Raw:
    """A client that sends what it likes."""

    def __init__(self, env: Env) -> None:
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDTIMEO, PATIENCE)
        self.socket.connect(places(env).address)

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def answers(self, *frames: bytes) -> list[dict[str, Any]]:
        """What is said to these frames before the answer to an orderly request after them."""
        self.socket.send_multipart(frames)
        self.socket.send(packed(id="the last"))
        said = []
        while True:
            assert self.socket.poll(PATIENCE), "the daemon does not answer any more"
            (frame,) = self.socket.recv_multipart()
            reply = msgpack.unpackb(frame)
            if reply["id"] == "the last":
                assert reply["ok"]
                return said
            said.append(reply)

    def answer(self, *frames: bytes) -> dict[str, Any]:
        (reply,) = self.answers(*frames)
        assert reply["v"] == wire.VERSION
        return reply


def packed(**changes: Any) -> bytes:
    message: bytes = msgpack.packb({"v": 1, "id": "i", "op": "hello", "body": {}} | changes)
    return message


def acquire(**body: Any) -> bytes:
    return packed(op="acquire", body={"key": "k", "memory_bytes": 1 << 30} | body)


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    """One daemon for all tests here: it has to be the same process at the end, and to end well."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    with emulated(load("mixed"), clean) as machine, serving(machine) as daemon:
        yield machine
        assert daemon_pid(machine) == daemon.pid
        assert leases(machine) == []


@pytest.fixture
def raw(env: Env) -> Iterator[Raw]:
    client = Raw(env)
    yield client
    client.close()
    assert leases(env) == []


def nested(kind: bytes, depth: int) -> bytes:
    return packed()[:-1] + kind * depth + b"\xc0"  # in place of the empty body


MALFORMED = {
    "no frame's content": [b""],
    "an envelope": [b"", packed()],
    "several frames": [packed(), packed()],
    "a thousand frames": [b"x" * 1000] * 1000,
    "text": [b"GET / HTTP/1.1\r\n\r\n"],
    "cut short": [packed()[:-1]],
    "trailing bytes": [packed() + b"\0"],
    "a reserved byte": [b"\xc1"],
    "a promised array": [b"\xdd\xff\xff\xff\xff"],
    "promised bytes": [b"\xc6\xff\xff\xff\xff"],
    "nested arrays": [b"\x91" * 60_000],
    "nested maps": [b"\x81\xa1a" * 20_000],
    "a deeply nested body": [nested(b"\x91", 60_000)],
    "a key that is a number": [msgpack.packb({1: 2})],
    "a key that is a map": [b"\x81\x80\x01"],
    "a bad timestamp": [b"\xc7\x05\xff12345"],
    "bad UTF-8": [b"\x81\xa2id\xa2\xff\xfe"],
    "nothing": [msgpack.packb(None)],
    "a list": [msgpack.packb([1, "i", "hello", {}])],
    "an empty map": [msgpack.packb({})],
    "keys of bytes": [msgpack.packb({b"v": 1, b"id": b"i", b"op": b"hello"})],
    "version 0": [packed(v=0)],
    "version 2": [packed(v=2)],
    "version as text": [packed(v="1")],
    "version true": [packed(v=True)],
    "a huge version": [packed(v=2**64 - 1)],
    "id a number": [packed(id=7)],
    "op nothing": [packed(op=None)],
    "body a list": [packed(body=[])],
    "body nothing": [packed(body=None)],
    "no op": [msgpack.packb({"v": 1, "id": "i"})],
    "acquire: no key": [packed(op="acquire", body={})],
    "acquire: an empty key": [acquire(key="")],
    "acquire: a long key": [acquire(key="k" * 65)],
    "acquire: key a number": [acquire(key=1)],
    "acquire: a long name": [acquire(name="n" * 65)],
    "acquire: an unknown field": [acquire(compute_ratio=0.5)],
    "acquire: no memory": [acquire(memory_bytes=0)],
    "acquire: less than no memory": [acquire(memory_bytes=-1)],
    "acquire: memory of 64 bits": [acquire(memory_bytes=2**64 - 1)],
    "acquire: half a byte": [acquire(memory_bytes=0.5)],
    "acquire: memory as text": [acquire(memory_bytes="1GiB")],
    "acquire: memory true": [acquire(memory_bytes=True)],
    "acquire: for NaN seconds": [acquire(ttl_seconds=float("nan"))],
    "acquire: forever": [acquire(ttl_seconds=float("inf"))],
    "acquire: for less than no time": [acquire(ttl_seconds=-1)],
    "acquire: for years": [acquire(ttl_seconds=1e300)],
    "acquire: vendor a list": [acquire(vendor=["amd"])],
    "acquire: a request and a name": [packed(op="acquire", body={"key": "k", "request": {}, "name": "n"})],
    "acquire: a request and a time": [
        packed(op="acquire", body={"key": "k", "request": {}, "ttl_seconds": 60})
    ],
    "acquire: a field of 60 KB": [packed(op="acquire", body={"key": "k", "x" * 60_000: 1})],
    "renew: no lease": [packed(op="renew", body={})],
    "release: lease a number": [packed(op="release", body={"lease": 2**63})],
}


@pytest.mark.parametrize("frames", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_message_is_answered_as_malformed(frames: list[bytes], raw: Raw) -> None:
    reply = raw.answer(*frames)
    assert (reply["ok"], reply["error"]["code"]) == (False, "malformed")
    assert 0 < len(reply["error"]["message"]) < 1000


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (packed(op="frobnicate"), "unknown_op"),
        (packed(op="x" * 60_000), "unknown_op"),
        (packed(op=""), "unknown_op"),
        (packed(op="__init__"), "unknown_op"),
        (packed(op="renew", body={"lease": "../../../etc/passwd"}), "not_found"),
        (packed(op="release", body={"lease": "\0" * 1000}), "not_found"),
        (acquire(device="\0"), "no_device"),
        (acquire(vendor="x" * 60_000), "malformed"),
        (acquire(memory_bytes=1 << 60), "too_large"),
        (packed(op="acquire", body={"key": "k", "device": "cpu:host", "memory_bytes": 1}), "no_device"),
    ],
)
def test_what_cannot_be_is_refused_with_its_code(frame: bytes, code: str, raw: Raw) -> None:
    reply = raw.answer(frame)
    assert (reply["id"], reply["ok"], reply["error"]["code"]) == ("i", False, code)


def test_an_answer_names_the_request_where_that_can_be_read(raw: Raw) -> None:
    for frame in (packed(v=2), packed(body=[]), acquire(memory_bytes=0), packed(op="?")):
        assert raw.answer(frame)["id"] == "i"
    assert raw.answer(b"\xc1")["id"] == ""


def test_fields_of_the_future_and_odd_bodies_are_ignored_where_nobody_reads_them(raw: Raw) -> None:
    for frame in (packed(future=1), packed(body={"odd": [1] * 1000}), nested(b"\x81\xa1a", 100)):
        assert raw.answer(frame)["ok"]


def test_a_frame_may_have_64_kib_and_no_more(raw: Raw, env: Env) -> None:
    largest = packed(id="i" * (wire.MAX_FRAME_BYTES - len(packed(id="i" * 60_000)) + 60_000))
    assert len(largest) == wire.MAX_FRAME_BYTES
    assert raw.answer(largest)["ok"]
    for size in (wire.MAX_FRAME_BYTES + 1, 10 << 20):
        raw.socket.send(b"x" * size)  # costs the sender its connection
        other = Raw(env)
        assert other.answers(packed())[0]["ok"]
        other.close()


def test_a_client_that_never_reads_holds_up_nobody(raw: Raw, env: Env) -> None:
    raw.socket.set(zmq.RCVHWM, 1)
    for _ in range(5000):
        raw.socket.send(packed(op="list"))
    other = Raw(env)
    assert other.answer(packed())["ok"]
    other.close()


def test_a_stranger_to_zeromq_is_dropped(raw: Raw, env: Env) -> None:
    strangers = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for stranger in strangers:
        stranger.connect(str(places(env).socket))
        stranger.sendall(b"\xff" * 9 + os.urandom(100))
    assert raw.answer(packed())["ok"]
    for stranger in strangers:
        stranger.close()
    assert raw.answer(packed())["ok"]


def test_the_same_key_is_the_same_lease(raw: Raw, env: Env) -> None:
    """From another connection, too, and also when the first answer was never read."""
    other = Raw(env)
    first = raw.answer(acquire(key="once"))["body"]["lease"]
    assert raw.answer(acquire(key="once"))["body"]["lease"]["id"] == first["id"]
    assert other.answer(acquire(key="once"))["body"]["lease"]["id"] == first["id"]
    assert other.answer(acquire(key="twice"))["body"]["lease"]["id"] != first["id"]
    assert len(leases(env)) == 2
    for lease in leases(env):
        assert raw.answer(packed(op="release", body={"lease": lease["id"]}))["body"]["ended"]
    other.close()


# ---- fuzz ------------------------------------------------------------------------------------

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from([0, 1, 1 << 30, 1 << 60])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=70) | st.binary(max_size=70)
OBJECTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["key", "memory_bytes", "vendor", "device", "name", "ttl_seconds", "lease", "more"]
BODIES = st.dictionaries(st.sampled_from(FIELDS), SCALARS, max_size=5) | OBJECTS
OPERATIONS = st.sampled_from(["acquire", "renew", "release", "list", "hello"])
MESSAGES = st.fixed_dictionaries(
    {"v": st.just(1) | SCALARS, "id": st.just("i") | SCALARS, "op": OPERATIONS | SCALARS, "body": BODIES}
)


@settings(max_examples=200, deadline=None, database=None)
@given(
    frames=st.lists(st.binary(max_size=200) | (MESSAGES | OBJECTS).map(msgpack.packb), min_size=1, max_size=3)
)
def test_no_frames_kill_the_daemon(env: Env, frames: list[bytes]) -> None:
    client = Raw(env)
    try:
        reply = client.answer(*frames)
        assert reply["ok"] is (reply["error"] is None)
        if reply["ok"] and "lease" in reply["body"]:
            lease = reply["body"]["lease"]["id"]
            assert client.answer(packed(op="release", body={"lease": lease}))["ok"]
    finally:
        client.close()


# ---- every field of every operation ----------------------------------------------------------

ALTERNATIVE = {
    "selector": "kind == 'gpu'",
    "memory_bytes": 1 << 50,
    "compute_milli": 1,
    "count": 1,
    "weight": 1,
    "cpu_milli": 1,
    "ram_bytes": 1,
    "topology": "any",
    "isolation": "any",
    "max_micros_per_hour": 1,
    "slack_ms": 1,
}
MEMBER = {"alternatives": [ALTERNATIVE], "replicas": 1}
REQUEST = {
    "members": [MEMBER],
    "name": "n",
    "queue": "default",
    "priority": 1,
    "preemptible": True,
    "price_weight": 1,
    "duration_ms": 1,
    "deadline_ms": 1,
    "wait": False,
    "requeue": False,
    "movable": False,
    "ttl_ms": 1000,
}
PLAIN = {
    "memory_bytes": 1 << 50,
    "vendor": "amd",
    "device": None,
    "name": "n",
    "ttl_seconds": 15,
    "class": "batch",
}
JOB = {
    "command": ["true"],
    "environment": {"environment": "A"},  # a name that an error can be seen to name
    "directory": "/",
    "output_bytes": 8192,
    "umask": 0,
}
SOUND: dict[str, dict[str, Any]] = {
    "acquire": {"key": "k"} | PLAIN,
    "acquire_many": {"requests": [{"key": "k", "request": REQUEST}]},
    "wait": {"lease": "none", "timeout_seconds": 0},
    "renew": {"lease": "none"},
    "release": {"lease": "none"},
    "release_many": {"leases": ["none"]},
    "list": {"limit": 1, "after": 0},
    "lease": {"lease": "none"},
    "explain": {"lease": "none"},
    "watch": {
        "after": 0,
        "limit": 1,
        "timeout_seconds": 0,
        "lease": "none",
        "node": "local",
        "kinds": ["queued"],
        "owner": "root",
        "since_ms": 0,
    },
    "set_queue": {
        "name": "default",
        "parent": "",
        "weight": 1,
        "quota_devices_milli": -1,
        "quota_memory_bytes": -1,
        "limit_devices_milli": -1,
        "limit_memory_bytes": -1,
    },
    "remove_queue": {"name": "none"},
    "nodes": {"limit": 1, "after": "", "node": "local"},
    "cordon": {"target": "none", "reason": ""},
    "drain": {"target": "none", "reason": ""},
    "uncordon": {"target": "none", "reason": ""},
    "label": {"node": "local", "labels": {"labels": "b"}},
    "forget": {"node": "none", "force": False},
    "submit": {
        "key": "k",
        "job": JOB,
        "request": REQUEST,
        "class": "batch",
        "retries": 0,
        "array": [1],
        "lease": None,
    },
    "jobs": {"limit": 1, "after": 0, "array": "none", "over": True},
    "job": {"job": "none"},
    "wait_job": {"job": "none", "timeout_seconds": 0},
    "cancel_job": {"job": "none"},
    "signal_job": {"job": "none", "signal": 1, "member": 0},
    "job_logs": {"job": "none", "member": 0, "stream": "stdout", "offset": 0, "limit": 1},
    "accounting": {"since": "2026-01-31", "until": "2026-01-31", "owner": "root", "by": ["day"]},
}
UNREAD = {"hello", "queues", "status"}  # have no body that is read
OF_AGENTS = {"join", "beat"}
WRONG: list[Any] = [
    True,
    -(2**63),
    2**63,
    2**64 - 1,
    1.5,
    float("nan"),
    "\0",
    "x" * 300,
    b"x",
    [],
    [[]],
    {},
    {"x": 1},
]
CODES = {"malformed", "not_found", "no_room", "no_device", "too_large", "failed", "ended", "limit"}


def with_wrong(value: Any, wrong: Any) -> Iterator[tuple[str, Any]]:
    """The value with one of all that is in it replaced, and the name of the field that is or holds it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, one in inner:
        for name, changed in [("", wrong), *with_wrong(one, wrong)]:
            copy = value.copy()
            copy[at] = changed
            yield name or (at if isinstance(at, str) else ""), copy


def test_every_operation_is_tried() -> None:
    assert set(SOUND) | UNREAD | OF_AGENTS == set(operations.OPERATIONS)


@pytest.mark.parametrize("op", SOUND)
def test_whatever_is_in_a_field_is_answered_and_one_that_is_wrong_is_named(
    op: str, raw: Raw, env: Env
) -> None:
    for wrong in WRONG:
        for field, body in with_wrong(SOUND[op], wrong):
            reply = raw.answer(packed(op=op, body=body))
            if reply["ok"]:
                continue  # it may be right here
            error = reply["error"]
            assert error["code"] in CODES, body
            assert len(error["message"]) < 1000 and "\n" not in error["message"], body
            if error["code"] == "malformed":
                assert field in error["message"], (body, error)
    for body in (dict.fromkeys(SOUND[op], 0), SOUND[op] | {"unknown": 1}):
        assert raw.answer(packed(op=op, body=body))["error"]["code"] == "malformed", body
    for lease in leases(env):  # a body that was sound after all
        raw.answers(packed(op="release", body={"lease": lease["id"]}))
    wait_until(lambda: leases(env) == [])


def test_a_renewal_of_what_is_not_there_is_no_event(env: Env, raw: Raw) -> None:
    """Events are kept, and whoever may ask could fill the disk with them."""
    made_up = packed(op="renew", body={"lease": "x" * 50_000})
    for _ in range(20):
        assert raw.answer(made_up)["error"]["code"] == "not_found"
    with Client(places(env)) as client:
        id = client.call("acquire", key="written down", memory_bytes=1 << 30)["lease"]["id"]
        client.call("release", lease=id)
        wait_until(lambda: leases(env) == [])
    entries = [
        entry for one in journal_of(places(env).store) if isinstance(one, Batch) for _, entry in one.entries
    ]
    assert not [one for one in entries if isinstance(one, core.Renew)]
    assert [one for one in entries if isinstance(one, core.Release)]


GPU = {"id": "x:1", "vendor": "x", "model": "m", "memory_bytes": 1 << 30}
ALL_BITS = (1 << 64) - 1
NO_FACTS = [
    {"cpu_milli": ALL_BITS},
    {"ram_bytes": ALL_BITS},
    {"ram_bytes": -1},
    {"devices": [GPU | {"memory_bytes": ALL_BITS}]},
    {"devices": [GPU | {"outside_bytes": ALL_BITS}]},
    {"devices": [GPU | {"micros_per_hour": -1}]},
]


@pytest.mark.parametrize("wrong", NO_FACTS, ids=str)
def test_an_agent_whose_driver_says_nonsense_is_refused_with_a_sentence(
    env: Env, raw: Raw, wrong: dict[str, Any]
) -> None:
    sound = {"id": "far", "cpu_milli": 1, "ram_bytes": 1, "devices": []}
    joining = {"node": "far", "boot": "b", "term": 0, "version": "1", "bound": {}, "facts": sound | wrong}
    error = raw.answer(packed(op="join", body=joining | {"sent": 1.0}))["error"]
    assert error["code"] == "malformed"
    assert "is between 0 and" in error["message"]
    beat = {"node": "far", "term": 1, "facts": sound | wrong}
    assert raw.answer(packed(op="beat", body=beat))["error"]["code"] == "malformed"


def test_an_agent_that_counts_beyond_all_measure_is_refused(env: Env, raw: Raw) -> None:
    use = {"device": "x:1", "limit_bytes": 1, "used_bytes": ALL_BITS, "refused": 0}
    run = {"lease": "l", "epoch": 1, "member": 0, "code": None, "signal": ALL_BITS, "error": ""}
    run |= {"begun_ms": 0, "ended_ms": 0, "cpu_seconds": None}
    for told in ({"use": {"l": [use, use]}}, {"runs": [run]}):
        error = raw.answer(packed(op="beat", body={"node": "far", "term": 1} | told))["error"]
        assert error["code"] == "malformed"
