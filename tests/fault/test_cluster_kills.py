"""Schedulers, agents and clients are killed at random instants under load: 12 times, or `HAL_ROUNDS`.

No acknowledged lease is lost, none is lent twice, and in the end nothing is left.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hal.backend import HalError
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.scheduler.client import Client
from hal.scheduler.places import Places
from tests.conftest import HAL, wait_until
from tests.integration.support import Env, kill, start

ROUNDS = int(os.environ.get("HAL_ROUNDS", "12"))
NODES = {"green": "l40s-4", "red": "mi210-4"}
CLIENTS = 6

# Takes and gives back, for ever; one line for each thing it was promised, with the time on the common clock.
HOLDER = """
import json, random, secrets, sys, time
from pathlib import Path
from hal.backend import GoneError, HalError, TemporaryError, UnsupportedError
from hal.scheduler.client import Client
from hal.scheduler.errors import Unreachable
from hal.scheduler.places import Places

def say(what, **more):
    print(json.dumps({"what": what, "at": time.monotonic(), **more}), flush=True)

def ask(client, op, **body):
    while True:
        try:
            return client.call(op, **body)
        except Unreachable:
            time.sleep(0.02)

chance = random.Random(int(sys.argv[2]))
with Client(Places(Path(sys.argv[1])), timeout=10.0) as client:
    while True:
        key = secrets.token_hex(8)
        member = {"alternatives": [{"memory_bytes": chance.choice([None, 30 << 30, 45 << 30])}]}
        request = {"members": [member] * chance.choice([1, 1, 2]), "ttl_ms": 60000}
        try:
            body = ask(client, "acquire", key=key, request=request)
            while "lease" not in body:
                body = ask(client, "acquire", key=key, request=request)
        except (TemporaryError, UnsupportedError):
            time.sleep(0.01)
            continue
        except HalError as error:
            if "ended" in str(error) or "slice" in str(error) or "node" in str(error):
                continue  # refused in the end, and so promised nothing
            say("wrong", error=f"acquire: {error!r}")
            break
        lease = body["lease"]
        devices = [
            [device, part["whole"], part["memory_bytes"] or 0]
            for part in lease["parts"] for device in part["devices"]
        ]
        say("has", lease=lease["id"], devices=devices)
        for _ in range(chance.randrange(4)):
            time.sleep(chance.random() * 0.05)
            try:
                ask(client, "renew", lease=lease["id"])
            except GoneError as error:
                say("wrong", error=f"an acknowledged lease is lost: {error}")
                sys.exit(1)
        say("gives", lease=lease["id"])
        try:
            ask(client, "release", lease=lease["id"])
        except GoneError:
            pass  # a scheduler that was killed had heard it
"""


class Fleet:
    def __init__(self, stack: ExitStack, directory: Path, chance: random.Random) -> None:
        self.head = stack.enter_context(emulated(load("none")))
        self.envs = {name: stack.enter_context(emulated(load(machine))) for name, machine in NODES.items()}
        self._directory = directory
        self._chance = chance
        self._logs: list[Path] = []
        self._killed: dict[Path, float] = {}
        self.places = Places(Path(self.head["HAL_RUNTIME_DIR"]))
        self.running: dict[str, subprocess.Popen[Any]] = {}
        stack.callback(lambda: [process.kill() for process in self.running.values()])
        for name in self.names():
            self.begin(name)

    def names(self) -> list[str]:
        return ["scheduler", *NODES, *(f"client-{number}" for number in range(CLIENTS))]

    def begin(self, name: str) -> None:
        if name == "scheduler":
            command, env = ["serve"], self.head
        elif name in NODES:
            command = ["agent", "--scheduler", self.places.address, "--node", name]
            env = self.envs[name]
        else:
            return self._client(name)
        log = self._directory / f"{name}.log"
        with log.open("ab") as errors:
            self.running[name] = self._start(env, [*HAL, *command], errors)
        return None

    def _client(self, name: str) -> None:
        log = self._directory / f"{name}-{len(self._logs)}.jsonl"
        self._logs.append(log)
        seed = str(self._chance.randrange(1 << 30))
        command = [sys.executable, "-c", HOLDER, str(self.places.directory), seed]
        with log.open("ab") as out:
            self.running[name] = self._start(self.head, command, out)

    @staticmethod
    def _start(env: Env, command: list[str], output: Any) -> subprocess.Popen[str]:
        return start(env, *command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def kill(self, name: str) -> None:
        process = self.running[name]
        kill(process.pid)
        process.wait()
        if name.startswith("client"):
            log = next(path for path in reversed(self._logs) if path.name.startswith(f"{name}-"))
            self._killed[log] = time.monotonic()

    def histories(self) -> dict[str, list[dict[str, Any]]]:
        """What each client said; a line that was cut by its death was not said."""
        found = {}
        for log in self._logs:
            lines = []
            for text in log.read_text().splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:
                    assert log in self._killed, text
            if log in self._killed:
                lines.append({"what": "died", "at": self._killed[log]})
            found[log.name] = lines
        return found


def check(histories: dict[str, list[dict[str, Any]]], memory: dict[str, int]) -> int:
    """The number of leases there were. On each device, at each time: one whole, or slices that fit."""
    changes: list[tuple[float, int, str, bool, int]] = []  # when, -1 or 1, device, whole, bytes
    leases = 0
    for name, lines in histories.items():
        held: list[list[Any]] = []
        for entry in lines:
            assert entry["what"] != "wrong", (name, entry)
            for device, whole, size in held:  # each of the others ends what it had
                changes.append((entry["at"], -1, device, whole, size))
            held = entry.get("devices", [])
            leases += bool(held)
            for device, whole, size in held:
                changes.append((entry["at"], 1, device, whole, size))
    wholes, used = dict.fromkeys(memory, 0), dict.fromkeys(memory, 0)
    for at, sign, device, whole, size in sorted(changes):
        wholes[device] += sign * whole
        used[device] += 0 if whole else sign * size
        assert wholes[device] <= 1, f"{device} is lent whole twice at {at}"
        assert not (wholes[device] and used[device]), f"{device} is lent whole and in part at {at}"
        assert used[device] <= memory[device], f"{device} is lent past its memory at {at}"
    return leases


def test_kills_at_random_instants_lose_and_double_no_lease(tmp_path: Path) -> None:
    seed = int(os.environ.get("HAL_SEED", "0")) or random.randrange(1 << 30)
    print(f"HAL_SEED={seed}")
    chance = random.Random(seed)
    with ExitStack() as stack:
        fleet = Fleet(stack, tmp_path, chance)
        for _ in range(ROUNDS):
            time.sleep(chance.random() * 0.6)
            victim = chance.choice(fleet.names())
            fleet.kill(victim)
            time.sleep(chance.choice([0, chance.random() * 0.3]))
            fleet.begin(victim)
        wait_until(lambda: answers(fleet.places) and len(nodes_seen(fleet)) == len(NODES))
        for number in range(CLIENTS):
            fleet.kill(f"client-{number}")
        wait_until(lambda: no_leases(fleet.places), what="the end of all leases")
        left = [path for env in fleet.envs.values() for path in slices(env)]
        wait_until(lambda: not any(slices(env) for env in fleet.envs.values()), what=f"the end of {left}")
        memory = {f"{node}/{device}": size for node, env in fleet.envs.items() for device, size in sizes(env)}
        assert check(fleet.histories(), memory) > CLIENTS


def answers(places: Places) -> bool:
    try:
        with Client(places, timeout=2.0) as client:
            client.call("hello")
    except HalError:
        return False
    return True


def nodes_seen(fleet: Fleet) -> set[str]:
    """Nodes on which something was lent in these last moments."""
    found = set()
    for lines in fleet.histories().values():
        for entry in lines:
            if entry["what"] == "has" and time.monotonic() - entry["at"] < 2:
                found |= {device.split("/")[0] for device, *_ in entry["devices"]}
    return found


def no_leases(places: Places) -> bool:
    with Client(places, timeout=5.0) as client:
        answer = client.call("list")
    return answer["leases"] == [] and answer["waiting"] == []


def slices(env: Env) -> list[Path]:
    return list(Path(env["HAL_RUNTIME_DIR"], "slices").iterdir())


def sizes(env: Env) -> list[tuple[str, int]]:
    told = subprocess.run([*HAL, "list", "--json"], env=env, capture_output=True, check=True)
    devices = json.loads(told.stdout)["devices"]
    return [(device["id"], device["heaps"][0]["total_bytes"]) for device in devices]


def test_the_check_sees_what_is_lent_twice() -> None:
    has = {"what": "has", "at": 1.0, "lease": "a", "devices": [["d", True, 0]]}
    try:
        check({"one": [has], "two": [has | {"at": 2.0}]}, {"d": 100})
    except AssertionError as error:
        assert "lent whole twice" in str(error)
    else:
        raise AssertionError("a device that is lent twice was not noticed")
