"""Schedulers, agents and supervisors are killed at random instants under jobs: 6 times, or `HAL_ROUNDS`.

Every job that was acknowledged ends, with its own exit code unless its supervisor was killed; none is begun
twice, and nothing of any runs on.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from hal.backend import HalError
from hal.scheduler.client import Unreachable
from hal.scheduler.jobs.table import _alive
from tests.conftest import wait_until
from tests.integration.support import GIB, kill
from tests.integration.test_jobs import Site, settled

ROUNDS = int(os.environ.get("HAL_ROUNDS", "6"))
SEED = int(os.environ.get("HAL_SEED", secrets.randbelow(1 << 30)))


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        one = Site(stack)
        yield one
        settled(one)


def submitted(site: Site, script: str, vendor: str) -> str:
    key = secrets.token_hex(8)
    members = [{"alternatives": [{"selector": f'vendor == "{vendor}"', "memory_bytes": GIB}]}]
    job = {"command": ["/bin/sh", "-c", script], "directory": "/"}
    while True:
        with suppress(Unreachable):
            return str(site.call("submit", key=key, job=job, request={"members": members})["jobs"][0])
        time.sleep(0.02)


def supervisors(site: Site) -> list[int]:
    runs = [run for env in site.envs.values() for run in Path(env["HAL_RUNTIME_DIR"], "jobs").glob("*.*.*")]
    return [pid for run in runs if (pid := _alive(run)) is not None]


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_jobs_end_as_they_should_whoever_is_killed(site: Site, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    site.add("green", "l40s-4")
    site.add("red", "mi210-4")
    expected: dict[str, int] = {}
    victims = 0
    for number in range(ROUNDS):
        for _ in range(4):
            code = chance.choice([0, 0, 3, 77])
            pause = chance.choice([0, 0.05, 0.3, 1.0])
            script = f"echo x >> {tmp_path}/$HAL_JOB; (setsid sleep 1000 &); sleep {pause}; exit {code}"
            expected[submitted(site, script, chance.choice(["nvidia", "amd"]))] = code
        time.sleep(chance.random() * 0.5)
        match number % 3:
            case 0:
                kill(site.scheduler.pid)
                site.serve()
            case 1:
                name = chance.choice(sorted(site.envs))
                kill(site.agents[name].pid)
                site.agent(name)
            case _:
                for pid in chance.sample(found, 1) if (found := supervisors(site)) else []:
                    with suppress(ProcessLookupError):
                        kill(pid)
                        victims += 1
    lost = 0
    for id, code in expected.items():
        job = over(site, id)
        begun = tmp_path / id
        assert not begun.exists() or begun.read_text() == "x\n", (id, job)
        if job["reason"] == "its supervisor was killed":
            lost += 1
        else:
            assert job["exit_code"] == code, job
    assert lost <= victims
    site.at_rest()


def over(site: Site, id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def is_over() -> bool:
        with suppress(HalError):
            found[:] = [site.job(id)]
        return bool(found) and found[0]["state"] in ("completed", "failed", "cancelled")

    wait_until(is_over)
    return found[0]
