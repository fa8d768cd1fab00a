"""Clients that say nothing, never read, or never end a message: others are served, and memory is kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.scheduler.client import Client
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.security.connections import Pressure, count_files
from hal.scheduler.security.keys import read_client_key
from hal.scheduler.wire import Request, pack, unpack_reply
from tests.conftest import HAL, wait_until
from tests.integration.support import Env, daemon_pid, places, start

MIB = 1 << 20
SILENT = 2000


class Daemon:
    def __init__(self, env: Env, folder: Path, limits: str = "", first: str = "", **options: Any) -> None:
        self.env, self.folder = env, folder
        config = folder / "hal.toml"
        memory = "" if "memory" in limits else 'memory = "512MiB"'
        config.write_text(f'[scheduler]\nlisten = ["tcp://127.0.0.1:*"]\n[limits]\n{memory}\n{limits}\n')
        self.process = start(env, *HAL, "serve", "--config", str(config), stdin=subprocess.DEVNULL, **options)
        assert self.process.stderr is not None
        if first:
            assert self.process.stderr.readline().startswith(first)
        said = self.process.stderr.readline()
        assert said.startswith("hal: serving"), said
        self.tcp = said.strip().split(", ")[-1]

    def answers(self) -> None:
        with Client(places(self.env), timeout=20.0) as client:
            assert client.call("hello")["pid"] == self.process.pid

    def memory(self) -> int:
        """Bytes of its own."""
        _, resident, shared, *_ = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return (int(resident) - int(shared)) * resource.getpagesize()

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def notes(self) -> list[dict[str, object]]:
        path = Path(self.env["HAL_RUNTIME_DIR"], "audit.log")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with emulated(load("none")) as env:
        daemon = Daemon(env, tmp_path)
        yield daemon
        assert daemon_pid(env) == daemon.process.pid  # the same, to the end
        daemon.process.terminate()
        assert daemon.process.wait(60) == 0


def test_more_connections_than_there_may_be_are_cut(tmp_path: Path) -> None:
    """Long before there is no file left for one more."""
    with emulated(load("none")) as env:
        daemon = Daemon(env, tmp_path, "connections = 300")
        silent = [connected(places(env).socket) for _ in range(400)]
        wait_until(lambda: bool(daemon.notes()))
        wait_until(lambda: daemon.files() < 300)
        daemon.answers()
        (note,) = daemon.notes()
        assert (note["op"], note["outcome"]) == ("connections", "cut")
        for one in silent:
            one.close()
        daemon.process.terminate()
        assert daemon.process.wait(60) == 0


def test_files_that_are_no_connections_are_no_pressure(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(100)
    address = {f"ipc://{tmp_path / 's'}"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        pressure = Pressure(None, 40)
        stack.callback(pressure.close)
        for number in range(100):
            stack.enter_context((tmp_path / str(number)).open("w"))
        assert pressure.look(1.0, address) is None
        accepted = []
        for _ in range(41):
            stack.enter_context(connected(tmp_path / "s"))
            accepted.append(stack.enter_context(listener.accept()[0]))
        assert pressure.look(1.1, address) is None  # it has looked a moment ago
        assert pressure.look(2.0, address) == f"41 connections: some were cut, 41 of uid:{os.geteuid()}"
        assert all(one.recv(1) == b"" for one in accepted)
        files = count_files()
        assert pressure.look(3.0, {"ipc:///another"}) is None
        assert count_files() == files  # looking has left none open


def test_what_the_scheduler_has_itself_is_no_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large state does not cut connections, nor does it when it grows; what else there is, once."""
    used = 100 * MIB
    monkeypatch.setattr(Pressure, "used", lambda _: used)
    pressure = Pressure(256 * MIB, 40)
    try:
        assert pressure.look(0.0, ()) is None
        used += 60 * MIB
        assert pressure.look(1.0, (), kept=60 * MIB) is None  # requests that wait have come
        used += 49 * MIB
        assert "all connections were cut" in str(pressure.look(2.0, (), kept=60 * MIB))
        used -= 5 * MIB
        assert pressure.look(3.0, (), kept=60 * MIB) is None  # something else of its own, such as leases
        used += 20 * MIB  # again from connections, while the effect is waited for
        assert [pressure.look(at, (), kept=60 * MIB) for at in (4.0, 6.9, 7.1, 8.0)] == [None] * 4
        used += 7 * MIB
        assert pressure.look(9.0, (), kept=60 * MIB) is not None
    finally:
        pressure.close()


def test_a_state_that_leaves_no_room_to_begin_says_so(tmp_path: Path) -> None:
    """Of before there were bounds, or with less memory than then. It ends in order; with more it serves."""
    with emulated(load("mixed")) as env:
        daemon = Daemon(env, tmp_path, 'memory = "none"')
        with Client(places(env), timeout=60.0) as client:
            client.call("cordon", target="local")
            job = {"command": ["true", "x" * 30_000], "environment": {"X": "x" * 30_000}}
            for number in range(15):
                client.call("submit", key=f"k{number}", job=job, array=list(range(130)))
        daemon.process.kill()
        daemon.process.wait(60)
        config = tmp_path / "hal.toml"
        config.write_text('[limits]\nmemory = "256MiB"\n')
        serve = [*HAL, "serve", "--config", str(config)]
        again = subprocess.run(serve, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert again.returncode == 6
        said = (
            r"hal: what the scheduler has to remember takes \d+\.\d MiB of the 256.0 MiB that limits.memory "
        )
        assert re.fullmatch(said + r"gives it: set limits.memory to \d+\.\d MiB or more\n", again.stderr)
        daemon = Daemon(env, tmp_path, 'memory = "2GiB"')
        with Client(places(env), timeout=60.0) as client:
            assert client.call("hello")["waiting"] == 15 * 130
        assert not any(note["op"] == "connections" for note in daemon.notes())
        daemon.process.terminate()
        assert daemon.process.wait(60) == 0


def test_few_files_are_few_connections(tmp_path: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with emulated(load("none")) as env:
        daemon = Daemon(env, tmp_path, preexec_fn=few, first="hal: there can be 64 connections, not 4096: ")
        daemon.answers()


def connected(path: Path) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(20)
    raw.connect(str(path))
    return raw


def test_two_thousand_that_say_nothing(daemon: Daemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < SILENT + 500:
        pytest.skip("this user may not have so many files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SILENT + 500), hard))
    host, port = daemon.tcp.removeprefix("tcp://").split(":")
    before = daemon.files()
    silent = [connected(places(daemon.env).socket) for _ in range(SILENT // 2)]
    silent += [socket.create_connection((host, int(port)), 20) for _ in range(SILENT // 2)]
    daemon.answers()
    assert daemon.memory() < 256 * MIB
    waiting = set(silent)

    def hung_up() -> bool:
        """The daemon does not keep who has not said in time who they are."""
        poll = select.poll()
        by_file = {one.fileno(): one for one in waiting}
        for file in by_file:
            poll.register(file, select.POLLIN)
        for file, _ in poll.poll(0):
            content = by_file[file].recv(4096)  # its own greeting comes first
            if not content:
                waiting.discard(by_file[file])
        return not waiting

    wait_until(hung_up, what="the end of silent connections")
    for one in silent:
        one.close()
    wait_until(lambda: daemon.files() <= before + 8)
    daemon.answers()


def test_a_reader_that_does_not_read_costs_little(daemon: Daemon) -> None:
    with Client(places(daemon.env), timeout=20.0) as client:
        for number in range(100):  # so that an answer has some 20 KiB
            client.call("set_queue", name=f"queue-{number:03}-{'x' * 40}")
    context = zmq.Context()
    lazy = context.socket(zmq.DEALER)
    lazy.set(zmq.LINGER, 0)
    lazy.set(zmq.RCVHWM, 1)
    lazy.connect(places(daemon.env).address)
    daemon.answers()
    before = daemon.memory()
    for number in range(10_000):
        lazy.send(pack(Request(1, str(number), "queues")))
    lazy.send(pack(Request(1, "", "set_queue", {"name": "last"})))
    wait_until(lambda: daemon.notes()[-1].get("name") == "last")  # it has answered all
    daemon.answers()
    assert daemon.memory() < before + 64 * MIB
    assert {note["op"] for note in daemon.notes()} == {"set_queue"}  # nobody had to be cut off
    assert lazy.poll(20_000)  # what was kept for it is there when it reads at last
    lazy.close()
    context.term()
    daemon.answers()


UNREAD = 100  # answers, of the 128 that are kept for a connection


def fill_ring(client: Client) -> None:
    """So that an answer to ``watch`` has some 150 KiB."""
    for number in range(1000):
        client.call("set_queue", name="x" * 60, weight=number + 1)


def test_a_reader_that_reads_slowly_gets_all_of_it_and_holds_up_nobody(daemon: Daemon) -> None:
    """Of answers that are far more than its connection takes, and of events of which it reads none."""
    context = zmq.Context()
    deaf = context.socket(zmq.SUB)
    slow = context.socket(zmq.DEALER)
    for one in (deaf, slow):
        one.set(zmq.LINGER, 0)
        one.set(zmq.RCVHWM, 1)
    deaf.subscribe(b"")
    deaf.connect(places(daemon.env).events_address)
    slow.connect(places(daemon.env).address)
    with Client(places(daemon.env), timeout=20.0) as client:
        fill_ring(client)
        body = {"after": 0, "limit": 1000}
        before = daemon.memory()
        for number in range(UNREAD):
            slow.send(pack(Request(1, str(number), "watch", body)))
        first: list[int] = []
        for number in range(UNREAD):
            assert slow.poll(20_000)
            reply = unpack_reply(slow.recv())
            assert (reply.id, reply.ok) == (str(number), True)
            numbers = [event["number"] for event in reply.body["events"]]
            assert len(numbers) == 1000 and numbers == sorted(set(numbers))
            first = first or numbers
            assert numbers == first
            assert client.call("hello")["pid"] == daemon.process.pid
        assert daemon.memory() < before + 128 * MIB
    assert all(note["op"] == "set_queue" for note in daemon.notes())
    slow.close()
    deaf.close()
    context.term()


def test_large_answers_that_nobody_reads_cost_connections_and_no_more(daemon: Daemon) -> None:
    """At half of the memory that it may have, the daemon cuts them; it lives on and keeps its leases."""
    context = zmq.Context()
    with Client(places(daemon.env), timeout=20.0) as client:
        fill_ring(client)
        lazy = [context.socket(zmq.DEALER) for _ in range(20)]
        for one in lazy:
            one.set(zmq.LINGER, 0)
            one.set(zmq.RCVHWM, 1)
            one.connect(places(daemon.env).address)
        watch = pack(Request(1, "", "watch", {"after": 0, "limit": 1000}))
        for _ in range(2 * UNREAD):
            for one in lazy:
                with contextlib.suppress(zmq.Again):
                    one.send(watch, zmq.DONTWAIT)
        wait_until(lambda: any(note["op"] == "connections" for note in daemon.notes()))
        for one in lazy:
            one.close()
        wait_until(lambda: daemon.memory() < 256 * MIB)
        daemon.answers()
        assert client.call("queues")["queues"]
    context.term()


def test_a_message_that_never_ends_costs_its_sender_the_connection(daemon: Daemon) -> None:
    key = ["keys", "new", "alice", "--directory", str(Path(daemon.env["HAL_RUNTIME_DIR"], "keys"))]
    subprocess.run([*HAL, *key], cwd=daemon.folder, check=True, capture_output=True, timeout=60)
    alice = Endpoint(daemon.tcp, read_client_key(daemon.folder / "alice.key"))
    frame = b"\x03" + struct.pack(">Q", 60_000) + b"x" * 60_000  # there is more, long
    with Client(alice, timeout=20.0) as innocent:
        innocent.call("hello")
        endless = endless_message(places(daemon.env).socket)
        try:
            for _ in range(2048 * MIB // len(frame)):  # far more than it may ever have
                endless.sendall(frame)
        except OSError:
            pass
        else:
            pytest.fail("it has taken 2 GiB of one message")
        endless.close()
        daemon.answers()
        innocent.call("hello")  # was cut off, too, and has come back by itself
    wait_until(lambda: daemon.memory() < 256 * MIB)
    assert [(note["op"], note["outcome"]) for note in daemon.notes()] == [("connections", "cut")]


def endless_message(path: Path) -> socket.socket:
    """A connection by hand (ZMTP 3.0, RFC 23, mechanism NULL): no library sends half a message."""
    raw = connected(path)
    raw.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31)
    stream = raw.makefile("rb")
    stream.read(64)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    raw.sendall(bytes([4, len(ready)]) + ready)
    flags, size = stream.read(2)
    assert (flags, stream.read(size)[:6]) == (4, b"\x05READY")
    return raw
