"""The clock of the day is set, by an hour and by a day, forth and back, under leases, queues and jobs: on the
scheduler's machine, on a node's, on a client's, and on all. What was promised stays, what is over ends.

The clocks are those that each process sees (clock_steps.c): real processes, and no rights needed.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HAL, wait_until
from tests.integration.support import Env, ask, kill, start
from tests.integration.test_jobs import Site, member, on, settled

HOUR, DAY = 3600, 86400
STEPS = [  # on which machines, and how many seconds from the truth
    ("head", HOUR),
    ("user", -HOUR),
    ("node", DAY),
    ("head node user", -DAY),
    ("user node", DAY),
    ("head", DAY),
    ("head node user", 0),
]

# Holds a lease for as long as it lives; at each line asks for it again, by its key, and for one that there is
# no room for. ``lost`` is said with every answer.
HOLDER = """
import json, sys
import hal.client
from hal.backend import TemporaryError

lost = []
request = {"members": [{"alternatives": [{"selector": 'vendor == "amd"', "memory_bytes": 1 << 30}]}],
           "ttl_ms": 3000}
with hal.client.Client(timeout=20.0) as client:
    held = client.acquire(vendor="amd", memory_bytes=1 << 30, ttl_seconds=3.0, on_lost=lost.append)
    for line in sys.stdin:
        one, other = (client.call("acquire", key="twice", request=request)["lease"]["id"] for _ in range(2))
        client.call("release", lease=one)
        there = {lease.id for lease in client.leases()}
        print(json.dumps([held.id in there, one == other, lost]), flush=True)
"""


class Clocks:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "clock.so"
        source = Path(__file__).with_name("clock_steps.c")
        options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["cc", *options, "-o", self._library, source, "-ldl"], check=True)

    def env(self, machine: str) -> Env:
        """What a process on it is started with."""
        file = self._folder / f"clock-{machine}"
        if not file.exists():
            self.set(machine, 0)
        return {"LD_PRELOAD": str(self._library), "CLOCK_STEPS": str(file)}

    def set(self, machine: str, seconds: int) -> None:
        with os.fdopen(
            os.open(self._folder / f"clock-{machine}", os.O_WRONLY | os.O_CREAT, 0o644), "wb"
        ) as file:
            file.write(struct.pack("=q", seconds))


class Place(Site):
    """Scheduler, nodes and client each have a clock of their own; the client comes by TCP, with a key."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.clocks = Clocks(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.tcp = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        super().__init__(stack)
        keys = ["keys", "new", "alice", "--directory", f"{self.head['HAL_RUNTIME_DIR']}/keys"]
        subprocess.run([*HAL, *keys], cwd=folder, env=self.head, check=True, capture_output=True, timeout=60)
        own = {"HAL_SCHEDULER": self.tcp, "HAL_KEY": str(folder / "alice.key")}
        self.user = dict(os.environ) | own | self.clocks.env("user")

    def serve(self) -> subprocess.Popen[str]:
        directory = Path(self.head["HAL_RUNTIME_DIR"])
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / "hal.toml").write_text(f'[scheduler]\nlisten = ["{self.tcp}"]\n')
        self.head |= self.clocks.env("head")
        return super().serve()

    def agent(self, name: str) -> None:
        self.envs[name] |= self.clocks.env("node")
        super().agent(name)

    def restart(self) -> None:
        kill(self.scheduler.pid)
        self.serve()
        wait_until(lambda: {"green", "red"} <= self.up())

    def asked(self, **request: Any) -> dict[str, Any]:
        return self.call("acquire", key=secrets.token_hex(8), request=request)

    def up(self) -> set[str]:
        return {node["id"] for node in self.call("nodes")["nodes"] if node["state"] == "up"}

    def now(self, kind: str) -> set[str]:
        return {one["id"] for one in self.call("list")[kind]}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        one = Place(stack, tmp_path)
        yield one
        settled(one)


def told(holder: subprocess.Popen[str]) -> list[Any]:
    said = ask(holder, "")
    assert said, holder.communicate()
    return list(json.loads(said))


def sleeps_until(path: Path) -> str:
    return f"echo begun; while ! [ -e {path} ]; do sleep 0.05; done; exit 7"


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_what_was_promised_stays_and_what_is_over_ends(place: Place, restarted: bool, tmp_path: Path) -> None:
    place.add("green", "l40s-4")
    place.add("red", "mi210-4")
    holder = start(place.user, sys.executable, "-c", HOLDER)
    assert told(holder) == [True, True, []]
    # Two hours of all that there is of one kind; who waits for it would have it once they are over.
    whole = [member("nvidia", None, replicas=4)]
    long = {"duration_ms": 2 * HOUR * 1000, "ttl_ms": 10 * 60 * 1000}
    promised = place.asked(members=whole, **long)["lease"]["id"]
    patient = place.asked(members=whole, wait=True, deadline_ms=2 * HOUR * 1000)["waiting"]["id"]
    job = place.submit(sleeps_until(tmp_path / "end"), request=on("amd"))
    place.has_said(job, "begun")
    before = place.call("watch", timeout_seconds=0)["next"]
    for machines, seconds in STEPS:
        forgotten = place.asked(**on("amd"), ttl_ms=1000)["lease"]["id"]
        impatient = place.asked(members=whole, wait=True, deadline_ms=1000)["waiting"]["id"]
        for machine in machines.split():
            place.clocks.set(machine, seconds)
        if restarted and "head" in machines:
            place.restart()
        assert told(holder) == [True, True, []], (machines, seconds)
        wait_until(lambda id=forgotten: id not in place.now("leases"), what="the end of one not renewed")
        wait_until(lambda id=impatient: id not in place.now("waiting"), what="the end of its deadline")
        assert promised in place.now("leases"), (machines, seconds)
        assert patient in place.now("waiting"), (machines, seconds)
        assert place.over(place.submit("exit 3", request=on("amd")))["exit_code"] == 3
        assert (place.job(job)["state"], place.job(job)["attempt"]) == ("running", 1)
    if not restarted:
        since = place.call("watch", after=before, timeout_seconds=0)
        assert not since["lost"]
        assert "node_lost" not in {event["kind"] for event in since["events"]}
    (tmp_path / "end").touch()
    assert place.over(job)["exit_code"] == 7
    place.call("release", lease=promised)
    wait_until(lambda: patient in place.now("leases"))
    place.call("release", lease=patient)
    holder.communicate(timeout=60)
    place.at_rest()


def test_a_scheduler_of_which_nobody_holds_anything_begins_with_the_clock_as_it_is(place: Place) -> None:
    place.add("green", "l40s-4")
    before = place.call("hello")["now_ms"]
    place.clocks.set("head", DAY)
    lease = place.asked(**on("nvidia"))["lease"]["id"]
    assert place.call("hello")["now_ms"] < before + HOUR * 1000
    kill(place.scheduler.pid)
    place.serve()
    assert place.call("hello")["now_ms"] < before + HOUR * 1000
    assert place.call("status")["started_ms"] <= place.call("hello")["now_ms"]
    place.call("release", lease=lease)
    wait_until(lambda: place.now("leases") == set())
    kill(place.scheduler.pid)
    place.serve()
    assert place.call("hello")["now_ms"] > before + HOUR * 1000
