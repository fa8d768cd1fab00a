"""Who gets through, with real CURVE sockets: a small server around the gate, as the daemon has it."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import zmq

from hal.backend import StateError
from hal.scheduler import wire
from hal.scheduler.answers import Address, Peer, Refused
from hal.scheduler.operations import OPERATIONS
from hal.scheduler.security.connections import bounded
from hal.scheduler.security.gate import Gate
from hal.scheduler.security.keys import Keys, Pair, new_pair
from hal.scheduler.security.roles import ACCESS, Role
from tests.conftest import wait_until

NOWHERE = Address(cast("zmq.Socket[bytes]", None), b"")
PATIENCE = 10_000  # milliseconds


class Server:
    """Tells each who they are: name, uid, role and whether they are local."""

    def __init__(self, gate: Gate, local: Path, *remote: str) -> None:
        self.gate = gate
        self.refused: list[tuple[str, str]] = []
        gate.on_refused = lambda address, reason: self.refused.append((address, reason))
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set(zmq.LINGER, 0)
        self._poller = zmq.Poller()
        bounded(self._router)
        self._stop = False
        try:
            gate.listen(self._router, self._poller, f"ipc://{local}", remote)
        except StateError:
            self._close()
            raise
        self._poller.register(self._router, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            events = dict(self._poller.poll(20))
            self.gate.serve(events)
            self.gate.refresh()
            while self._router in events:
                try:
                    sender, *frames = self._router.recv_multipart(flags=zmq.DONTWAIT, copy=False)
                except zmq.Again:
                    break
                answer = self._answer(Address(self._router, sender.bytes), frames[0])
                self._router.send_multipart([sender.bytes, msgpack.packb(answer)])

    def _answer(self, address: Address, frame: zmq.Frame) -> list[Any]:
        try:
            peer = self.gate.peer(address, frame)
            self.gate.check(peer, frame.bytes.decode())
        except (Refused, wire.Malformed) as refused:
            return [getattr(refused, "code", "malformed"), str(refused)]
        return [peer.name, peer.uid, peer.role.value, peer.pid >= 0]

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._close()

    def _close(self) -> None:
        self.gate.close()
        self._router.close()
        self._context.term()


class Client:
    def __init__(self, address: str, pair: Pair | None = None, server: str = "") -> None:
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        if pair is not None:
            self.socket.set(zmq.CURVE_SERVERKEY, server.encode())
            self.socket.set(zmq.CURVE_PUBLICKEY, pair.public.encode())
            self.socket.set(zmq.CURVE_SECRETKEY, pair.secret.encode())
        self.monitor = self.socket.get_monitor_socket()
        self.socket.connect(address)

    def ask(self, op: str = "hello") -> list[Any]:
        self.socket.send(op.encode())
        assert self.socket.poll(PATIENCE), "no answer"
        answer: list[Any] = msgpack.unpackb(self.socket.recv())
        return answer

    def fate(self) -> int:
        """What becomes of the handshake."""
        wanted = (
            zmq.EVENT_HANDSHAKE_SUCCEEDED,
            zmq.EVENT_HANDSHAKE_FAILED_AUTH,
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            zmq.EVENT_DISCONNECTED,
        )
        while True:
            assert self.monitor.poll(PATIENCE), "nothing became of the handshake"
            event = struct.unpack("=hi", self.monitor.recv_multipart()[0])[0]
            if event in wanted:
                return int(event)

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self._context.term()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def local(own_environment: Path) -> Path:
    own_environment.mkdir(mode=0o700)
    return own_environment / "s.sock"


@pytest.fixture
def server(keys: Keys, local: Path) -> Iterator[Server]:
    server = Server(Gate(keys), local, "tcp://127.0.0.1:*")
    yield server
    server.close()


@pytest.fixture
def alice(keys: Keys) -> Pair:
    pair = new_pair()
    keys.add("alice", Role.USER, pair.public)
    return pair


@pytest.fixture
def connect(server: Server, keys: Keys) -> Iterator[Any]:
    made: list[Client] = []

    def connect(pair: Pair | None, server_key: str | None = None, address: str | None = None) -> Client:
        made.append(Client(address or server.gate.addresses[0], pair, server_key or keys.own().public))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def test_a_key_is_who_it_was_made_for(connect: Any, alice: Pair) -> None:
    assert connect(alice).ask() == ["alice", 1 << 32, "user", False]


def test_a_peer_of_this_machine_is_known_by_its_user(connect: Any, local: Path) -> None:
    peer = connect(None, address=f"ipc://{local}")
    assert peer.ask() == [f"uid:{os.geteuid()}", os.geteuid(), "admin", True]


def test_an_unknown_key_is_refused(connect: Any, alice: Pair, server: Server) -> None:
    stranger = new_pair()
    client = connect(stranger)
    assert client.fate() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    assert server.refused[0] == ("127.0.0.1", f"the key {stranger.public} is not known")
    assert server.gate.turned_away >= 1
    assert connect(alice).ask()[0] == "alice"


def test_another_servers_key_is_refused(connect: Any, alice: Pair, server: Server) -> None:
    """The client must not talk to whoever answers at the address."""
    client = connect(alice, new_pair().public)
    assert client.fate() not in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    with suppress(zmq.Again):
        client.socket.send(b"hello", zmq.DONTWAIT)
    assert not client.socket.poll(300)
    assert server.refused == []


def test_a_public_key_without_its_secret_is_refused(connect: Any, alice: Pair) -> None:
    client = connect(Pair(alice.public, new_pair().secret))
    assert client.fate() != zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_a_plain_connection_to_a_curve_socket_is_refused(connect: Any, alice: Pair) -> None:
    client = connect(None)
    assert client.fate() != zmq.EVENT_HANDSHAKE_SUCCEEDED
    with suppress(zmq.Again):  # between two attempts there is nobody to send it to
        client.socket.send(b"hello", zmq.DONTWAIT)
    assert not client.socket.poll(300)


def test_a_key_that_is_added_needs_no_new_start(connect: Any, keys: Keys) -> None:
    late = new_pair()
    keys.add("late", Role.READER, late.public)
    assert connect(late).ask() == ["late", 1 << 32, "reader", False]


def test_a_revoked_key_is_refused_on_its_living_connection_too(
    connect: Any, alice: Pair, keys: Keys, server: Server
) -> None:
    client = connect(alice)
    assert client.ask()[0] == "alice"
    peer = Peer(NOWHERE, "alice", 1 << 32, -1, Role.USER, key=alice.public)
    assert server.gate.still(peer)
    keys.revoke("alice")
    wait_until(lambda: client.ask()[0] == "denied")
    assert not server.gate.still(peer)
    assert connect(alice).fate() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    known = len(keys.all())
    keys.add("alice", Role.USER, new_pair().public, uid=1 << 32)  # another key of the same name and owner
    wait_until(lambda: server.gate._keys is not None and len(server.gate._keys.all()) == known + 1)
    assert not server.gate.still(peer)


def test_a_list_that_cannot_be_read_changes_nothing(
    connect: Any, alice: Pair, keys: Keys, server: Server
) -> None:
    client = connect(alice)
    assert client.ask()[0] == "alice"
    (keys.directory / "known.json").write_text("{")
    wait_until(lambda: server.gate.complaint is not None)
    assert client.ask()[0] == "alice"
    assert connect(alice).ask()[0] == "alice"


def test_what_a_client_says_of_itself_counts_for_nothing(local: Path, server: Server, alice: Pair) -> None:
    """The properties of ZMTP's READY can have any name: those that ZeroMQ gives itself win."""
    public = alice.public.encode()
    forged = {b"Socket-Type": b"DEALER", b"User-Id": b"remote " + public, b"Peer-Address": b"x:4242:4242:1"}
    answer = raw_request(local, forged, b"hello")
    assert answer[:2] == [f"uid:{os.geteuid()}", os.geteuid()]


def test_without_tcp_there_is_no_key_and_still_nothing_to_forge(local: Path, alice: Pair) -> None:
    server = Server(Gate(), local)
    forged = {b"Socket-Type": b"DEALER", b"User-Id": b"remote " + alice.public.encode()}
    try:
        assert raw_request(local, forged, b"hello")[:2] == [f"uid:{os.geteuid()}", os.geteuid()]
    finally:
        server.close()


def raw_request(path: Path, properties: dict[bytes, bytes], request: bytes) -> list[Any]:
    """One request over ZMTP 3.0 (RFC 23) with the NULL mechanism, by hand."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE / 1000)
        raw.connect(str(path))
        raw.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31)
        stream = raw.makefile("rb")
        stream.read(64)
        ready = b"\x05READY" + b"".join(
            bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
            for name, value in properties.items()
        )
        raw.sendall(bytes([4, len(ready)]) + ready)
        asked = False
        while True:
            flags, size = stream.read(2)
            content = stream.read(size)
            if not flags & 4:
                answer: list[Any] = msgpack.unpackb(content)
                return answer
            if not asked and content.startswith(b"\x05READY"):
                raw.sendall(bytes([0, len(request)]) + request)
                asked = True


def test_tcp_needs_keys(local: Path) -> None:
    with pytest.raises(StateError, match="TCP is served with CURVE only"):
        Server(Gate(), local, "tcp://127.0.0.1:*")


def test_an_address_that_cannot_be_had(local: Path, keys: Keys) -> None:
    with pytest.raises(StateError, match=r"cannot listen at tcp://203.0.113.1:7421: "):
        Server(Gate(keys), local, "tcp://203.0.113.1:7421")


# ---- roles -----------------------------------------------------------------------------------

MAY = {
    "hello": "admin user reader agent",
    "acquire": "admin user",
    "acquire_many": "admin user",
    "wait": "admin user",
    "renew": "admin user",
    "release": "admin user",
    "release_many": "admin user",
    "list": "admin user reader",
    "lease": "admin user reader",
    "explain": "admin user reader",
    "watch": "admin user reader",
    "submit": "admin user",
    "jobs": "admin user reader",
    "job": "admin user reader",
    "job_logs": "admin user reader",
    "wait_job": "admin user reader",
    "cancel_job": "admin user",
    "signal_job": "admin user",
    "accounting": "admin user reader",
    "queues": "admin user reader",
    "set_queue": "admin",
    "remove_queue": "admin",
    "nodes": "admin user reader",
    "status": "admin user reader",
    "cordon": "admin",
    "drain": "admin",
    "uncordon": "admin",
    "label": "admin",
    "forget": "admin",
    "join": "admin agent",
    "beat": "admin agent",
}


def test_every_operation_has_its_roles() -> None:
    assert set(ACCESS) == set(OPERATIONS)
    assert {op: set(access.roles) for op, access in ACCESS.items()} == {
        op: {Role(name) for name in roles.split()} for op, roles in MAY.items()
    }


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("op", [*ACCESS, "frobnicate", "__init__", ""])
def test_a_role_may_ask_what_is_its_own_and_nothing_else(op: str, role: Role) -> None:
    peer = Peer(NOWHERE, "p", 7, 1, role)
    if op not in MAY:
        with pytest.raises(Refused) as refused:
            Gate().check(peer, op)
        assert refused.value.code == "unknown_op"
    elif role.value in MAY[op].split():
        Gate().check(peer, op)
    else:
        with pytest.raises(Refused) as refused:
            Gate().check(peer, op)
        assert refused.value.code == "denied"
        assert str(refused.value).startswith("this takes the role admin")


def test_whose_things_a_peer_sees_and_ends() -> None:
    mine, others = 7, 8
    expected = {
        Role.ADMIN: (True, True, True, True),
        Role.USER: (True, True, False, False),
        Role.READER: (True, True, True, False),
        Role.AGENT: (True, True, False, False),
    }
    for role, expectation in expected.items():
        peer = Peer(NOWHERE, "p", mine, 1, role)
        assert (peer.sees(mine), peer.commands(mine), peer.sees(others), peer.commands(others)) == expectation
    assert Peer(NOWHERE, "n1", 9, -1, Role.AGENT).speaks_for("n1")
    assert not Peer(NOWHERE, "n1", 9, -1, Role.AGENT).speaks_for("n2")
    assert not Peer(NOWHERE, "n1", 9, 3, Role.USER).speaks_for("n1")
