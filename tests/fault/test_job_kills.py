"""Schedulers, agents, supervisors and clients are killed under jobs, at random instants: HAL_ROUNDS times.

Every job that was acknowledged ends, with its own exit code unless its supervisor was killed; none is begun
twice, and nothing of any runs on.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from hal.backend import HalError
from hal.scheduler.jobs.table import _alive
from tests.conftest import wait_until
from tests.integration.support import kill, start
from tests.integration.test_jobs import Site, settled

ROUNDS = int(os.environ.get("HAL_ROUNDS", "8"))
SEED = int(os.environ.get("HAL_SEED", secrets.randbelow(1 << 30)))


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        one = Site(stack)
        yield one
        settled(one)


# Submits, for ever; one line for each job that it was promised: its id, and how it is to end.
SUBMITTER = """
import random, secrets, sys, time
from pathlib import Path
from hal.backend import HalError
from hal.scheduler.client import Client
from hal.scheduler.places import Places

chance = random.Random(int(sys.argv[2]))
with Client(Places(Path(sys.argv[1])), timeout=2.0) as client:
    while True:
        code, pause = chance.choice([0, 0, 3, 77]), chance.choice([0, 0.05, 0.3, 1.0])
        script = f"echo x >> {sys.argv[3]}/$HAL_JOB; (setsid sleep 1000 &); sleep {pause}; exit {code}"
        alternative = {"selector": f'vendor == "{chance.choice(["nvidia", "amd"])}"', "memory_bytes": 1 << 30}
        job = {"command": ["/bin/sh", "-c", script], "directory": "/"}
        request, key = {"members": [{"alternatives": [alternative]}]}, secrets.token_hex(8)
        while True:
            try:
                (id,) = client.call("submit", key=key, job=job, request=request)["jobs"]
                break
            except HalError:
                time.sleep(0.02)
        print(id, code, flush=True)
        time.sleep(chance.random() * 0.5)
"""


class Submitters:
    """Their jobs have begun files in ``folder``."""

    def __init__(self, site: Site, chance: random.Random, folder: Path) -> None:
        self._site = site
        self._chance = chance
        self._logs: list[Path] = []
        self._read: dict[Path, int] = {}
        self.folder = folder
        self._running = [self._begin() for _ in range(2)]

    def _begin(self) -> subprocess.Popen[str]:
        log = self.folder / f"said-{len(self._logs)}"
        self._logs.append(log)
        seed = str(self._chance.randrange(1 << 30))
        directory = self._site.head["HAL_RUNTIME_DIR"]
        command = [sys.executable, "-c", SUBMITTER, directory, seed, str(self.folder)]
        with log.open("wb") as out:
            return start(self._site.head, *command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def kill(self, number: int) -> None:
        kill(self._running[number].pid)
        self._running[number].wait()

    def kill_one(self) -> None:
        number = self._chance.randrange(len(self._running))
        self.kill(number)
        self._running[number] = self._begin()

    def end(self) -> None:
        for number in range(len(self._running)):
            self.kill(number)

    def promised(self) -> Iterator[tuple[str, int]]:
        """What was said since the last look; a line that was cut by its death was not said."""
        for log in self._logs:
            text = log.read_text()
            whole = text[: text.rfind("\n") + 1]
            for line in whole[self._read.get(log, 0) :].splitlines():
                assert len(line.split()) == 2, whole
                id, code = line.split()
                yield id, int(code)
            self._read[log] = len(whole)


def supervisors(site: Site) -> list[list[int]]:
    """Of each run that lives: the process that does the work, and the outer one if it lives, too."""
    runs = [run for env in site.envs.values() for run in Path(env["HAL_RUNTIME_DIR"], "jobs").glob("*.*.*")]
    found = []
    for inner in (pid for run in runs if (pid := _alive(run)) is not None):
        with suppress(OSError):
            outer = int(Path(f"/proc/{inner}/stat").read_text().rpartition(")")[2].split()[1])
            is_one = b"supervisor.py" in Path(f"/proc/{outer}/cmdline").read_bytes()
            found.append([inner, outer] if is_one else [inner])
    return found


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_jobs_end_as_they_should_whoever_is_killed(site: Site, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"HAL_SEED={SEED}")
    site.add("green", "l40s-4")
    site.add("red", "mi210-4")
    submitters = Submitters(site, chance, tmp_path)
    victims = lost = ended = 0
    for number in range(ROUNDS):
        time.sleep(chance.random() * 0.5)
        match number % 4:
            case 0:
                kill(site.scheduler.pid)
                site.serve()
            case 1:
                name = chance.choice(sorted(site.envs))
                kill(site.agents[name].pid)
                site.agent(name)
            case 2:
                submitters.kill_one()
            case _:
                wait_until(lambda: bool(supervisors(site)))
                for pids in chance.sample(found, 1) if (found := supervisors(site)) else []:
                    chosen = chance.choice([pids[:1], pids[-1:], pids])
                    victims += pids[0] in chosen
                    for pid in chosen:
                        with suppress(ProcessLookupError):
                            kill(pid)
        if number % 20 == 0 or number == ROUNDS - 1:
            for id, code in submitters.promised():
                ended += 1
                lost += not as_promised(over(site, id), code)
    submitters.end()
    for id, code in submitters.promised():
        lost += not as_promised(over(site, id), code)
    assert ended and lost <= victims
    wait_until(lambda: site.call("jobs", over=False)["jobs"] == [])  # nor one that nobody was told of
    for begun in tmp_path.iterdir():
        assert begun.name.startswith("said") or begun.read_text() == "x\n", begun
    site.at_rest()


def as_promised(job: dict[str, Any], code: int) -> bool:
    """False: its supervisor was killed, and so its code is not known."""
    if job["reason"] == "its supervisor was killed":
        return False
    assert job["exit_code"] == code, job
    return True


def over(site: Site, id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def is_over() -> bool:
        with suppress(HalError):
            found[:] = [site.job(id)]
        return bool(found) and found[0]["state"] in ("completed", "failed", "cancelled")

    wait_until(is_over)
    return found[0]
