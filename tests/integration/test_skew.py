"""Scheduler, agents and clients of neighbouring versions: what an older one wrote is read and answered."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from hal.scheduler import told, wire
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.binding import ORDERS, Joined
from hal.scheduler.agent.service import Service
from hal.scheduler.agent.slices import Slices as RealSlices
from hal.scheduler.agent.until import clock
from hal.scheduler.jobs import supervisor
from hal.scheduler.jobs.launch import Launcher
from hal.scheduler.operations import OPERATIONS
from hal.scheduler.places import Places
from hal.scheduler.sections import JobsSection
from hal.slices.claims import Book
from tests.conftest import wait_until
from tests.kept import KEPT, unpack
from tests.skew import RECORDED, body, play
from tests.unit.test_jobs_agent import Slices, running

recordings = pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def missing(before: Any, now: Any, at: str = "") -> list[str]:
    """What an older reader looks for and does not find, or finds of another type."""
    if before is None:  # whatever it is now, it may have been then
        return []
    if now is None:
        return [f"{at}: is nothing, and was {type(before).__name__}"]
    if isinstance(before, dict):
        if not isinstance(now, dict):
            return [f"{at}: is no map"]
        return [
            fault
            for key, value in before.items()
            for fault in (
                [f"{at}.{key}: is not there"] if key not in now else missing(value, now[key], f"{at}.{key}")
            )
        ]
    if isinstance(before, list) and isinstance(now, list):
        return [fault for one in before for fault in _missing_of(one, now, f"{at}[]")]
    numbers = (int, float)
    same = type(before) is type(now) or (type(before) in numbers and type(now) in numbers)
    return [] if same else [f"{at}: is {type(now).__name__}, and was {type(before).__name__}"]


def _missing_of(one: Any, there: list[Any], at: str) -> list[str]:
    """Of what is in a list: compared with what is most like it there, and of its kind if it says which."""
    if isinstance(one, dict) and "kind" in one:
        at = f"{at}({one['kind']})"
        there = [other for other in there if other["kind"] == one["kind"]]
    return min((missing(one, other, at) for other in there), key=len, default=[f"{at}: is not there"])


def test_all_that_is_spoken_is_recorded() -> None:
    """After a new operation or order: `python -m tests.skew tests/recorded/messages-VERSION.json`."""
    latest = read(RECORDED[-1])
    assert {one["op"] for one in latest["asked"]} == set(OPERATIONS)
    assert {one["op"] for one in latest["orders"]} == {op for op, _ in ORDERS.values()}


@recordings
def test_a_scheduler_answers_older_clients_and_agents(path: Path) -> None:
    recorded = read(path)
    played = play(recorded)
    for step, reply in zip(recorded["asked"], played.replies, strict=True):
        before = wire.unpack_reply(bytes.fromhex(step["reply"]))
        assert (reply["ok"], (reply["error"] or {}).get("code")) == (
            before.ok,
            None if before.error is None else before.error.code,
        ), (step["op"], reply)
        kept = (
            {"nodes", "events", "requests", "counts"} if step["op"] == "status" else set()
        )  # by what there is
        assert missing(_without(before.body, kept), reply["body"], step["op"]) == []
    orders = [one["op"] for one in played.orders]
    assert [one["op"] for one in recorded["orders"]] == orders
    for before, now in zip(recorded["orders"], played.orders, strict=True):
        assert missing(body(before["request"]), body(now["request"]), before["op"]) == []


def _without(body: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


@recordings
def test_an_agent_carries_out_the_orders_of_an_older_scheduler(path: Path, tmp_path: Path) -> None:
    recorded = read(path)
    tmp_path.chmod(0o700)
    owner = next(body(one["request"])["owner"] for one in recorded["orders"] if one["op"] == "run")
    me = pwd.getpwuid(os.geteuid()).pw_name
    launcher = Launcher(JobsSection(run_as={owner: me}), own=False)
    agent = Agent(Slices("green"), Places(tmp_path), "green", launcher)  # type: ignore[arg-type]
    agent.start()
    service = Service(agent, Places(tmp_path), lambda _: None, scheduler="ipc://x", version="next")
    try:
        for one in recorded["orders"]:
            reply = service._carry_out(wire.unpack_request(bytes.fromhex(one["request"])))
            assert reply.ok, (one["op"], reply.error)
            written, before = wire.pack(reply).hex(), body(one["reply"])
            variables = before.pop("environments", [])  # by what there is
            assert missing(before, body(written), one["op"]) == []
            assert (
                missing([[0, {}] for _ in variables], body(written).get("environments", []), one["op"]) == []
            )
    finally:
        agent.stop_all()
        wait_until(lambda: not running(tmp_path))
        agent.close()


@recordings
def test_what_an_older_scheduler_says_is_read(path: Path) -> None:
    replies = {one["op"]: body(one["reply"]) for one in read(path)["asked"]}
    kinds: list[tuple[Any, type]] = [
        (replies["hello"], told.SchedulerTold),
        (replies["list"]["leases"][0], told.LeaseTold),
        (replies["acquire"]["waiting"], told.WaitingTold),
        (replies["queues"]["queues"][0], told.QueueTold),
        (replies["explain"]["explanation"], told.Explanation),
        *((event, told.Event) for event in replies["watch"]["events"]),
        (replies["join"], Joined),
    ]
    for said, kind in kinds:
        assert isinstance(msgspec.convert(said | {"of_later": {"x": [None]}}, kind), kind)


# ---- what is on a node's disk ---------------------------------------------------------------------

# In place of a supervisor of then, which outlives its agent: says which signals come.
SUPERVISOR = """
import json, os, signal, sys
all = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, all)
print("ready", flush=True)
while True:
    print(int(signal.sigwait(all)), flush=True)
"""


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_an_agent_takes_over_what_an_older_one_has_on_disk(path: Path, tmp_path: Path) -> None:
    recorded = read(path)
    told, signals = recorded["told"], recorded["signals"]
    unpack(recorded, tmp_path)
    tmp_path.chmod(0o700)
    until = clock() + 50
    os.utime(tmp_path / "agent.until", (until, until))
    run = tmp_path / "jobs" / "SLICE-01.3.0"
    with (run / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", SUPERVISOR]
        living = subprocess.Popen(command, pass_fds=[lock.fileno()], stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    assert living.stdout.readline() == "ready\n"
    alive = json.loads((run / "alive").read_text())
    alive |= {"pid": living.pid, "start": supervisor._start_time(living.pid)}
    (run / "alive").write_text(json.dumps(alive))

    said: list[str] = []
    slices = RealSlices(Mock(), Places(tmp_path), Book(tmp_path / "node"))
    agent = Agent(slices, Places(tmp_path), "green", say=said.append)
    agent.start()
    try:
        assert (said, agent.bound(), agent.term) == ([], told["bound"], told["term"])
        assert agent.allowed() == pytest.approx(until)
        assert missing(told["runs"], msgspec.to_builtins(agent.ended_runs())) == []
        before = [one | {"used_bytes": 0} for one in told["use"]]  # whose process has died since
        assert [msgspec.to_builtins(one) for one in agent.use("SLICE-01")] == before
        assert len(slices._book.claims()) == 2
        key = ("SLICE-01", 3, 0)
        assert agent._jobs.living() == {key}
        assert agent._jobs.output(key, "stdout", 0, 999).data.startswith(b"device pid=")
        for number in (signal.SIGTERM, signal.SIGUSR1):
            agent._jobs.signal(key, number)
            assert living.stdout.readline() == f"{signals[number.name]}\n"
        for number, name in ((signal.SIGTERM, "end"), (signal.SIGKILL, "kill")):
            agent._jobs.end("SLICE-01", number)
            assert living.stdout.readline() == f"{signals[name]}\n"
        ended = json.loads((tmp_path / "jobs" / "WHOLE-01.4.0" / "exit.json").read_text())
        (run / "exit.json").write_text(json.dumps(ended | {"code": None, "signal": 9}))
    finally:
        living.kill()
        living.communicate()
    agent._jobs.turn()
    assert {(one.lease, one.signal) for one in agent.ended_runs()} == {("SLICE-01", 9), ("WHOLE-01", None)}
    agent.close()
