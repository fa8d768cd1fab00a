"""A mistake of hal's own in an operation: it ends the scheduler, loses nothing, and meets nobody twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hal.backend import StateError
from hal.scheduler.client import Client
from tests.conftest import HAL, wait_until
from tests.integration.support import GIB, Env, leases, places, serving, start

# Half of it is done when it happens: the lease is there, and so are its slices.
BROKEN = """
import sys
from hal.cli import main
from hal.scheduler.operations import OPERATIONS
whole = OPERATIONS["acquire"]
def acquire(engine, body, peer):
    answer = whole(engine, body, peer)
    if body["key"] == "unlucky":
        raise KeyError("a mistake")
    return answer
OPERATIONS["acquire"] = acquire
sys.exit(main(["serve"]))
"""

# What was asked waits, and its answer is what goes wrong.
BROKEN_LATER = """
import sys
from hal.cli import main
from hal.scheduler.watch import Watcher
def answer(self, *, at_once):
    if not at_once:
        return None
    raise KeyError("a mistake")
Watcher.answer = answer
sys.exit(main(["serve"]))
"""


def test_a_mistake_ends_the_scheduler_and_leaves_nothing_half_done(machine_env: Env) -> None:
    broken = start(machine_env, sys.executable, "-c", BROKEN, stdin=subprocess.DEVNULL)
    assert broken.stderr is not None
    assert broken.stderr.readline().startswith("hal: serving")
    with Client(places(machine_env)) as client:
        held = client.call("acquire", key="a", memory_bytes=GIB, ttl_seconds=600.0)["lease"]["id"]
        with pytest.raises(StateError, match="has met a mistake in hal: nothing was done"):
            client.call("acquire", key="unlucky", memory_bytes=GIB)
    assert broken.wait(60) == 1
    said = broken.stderr.read()
    assert "(acquire) has met a mistake in hal and ends this scheduler" in said
    assert "KeyError: 'a mistake'" in said
    with serving(machine_env):
        assert [one["id"] for one in leases(machine_env)] == [held]
        with Client(places(machine_env)) as client:
            other = client.call("acquire", key="unlucky", memory_bytes=GIB, ttl_seconds=600.0)
            client.call("release_many", leases=[held, other["lease"]["id"]])
        wait_until(lambda: not leases(machine_env), what="the end of the leases")
        check = [*HAL, "admin", "check"]
        done = subprocess.run(check, env=machine_env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_a_mistake_in_an_answer_that_comes_later_is_answered_too(machine_env: Env) -> None:
    broken = start(machine_env, sys.executable, "-c", BROKEN_LATER, stdin=subprocess.DEVNULL)
    assert broken.stderr is not None
    assert broken.stderr.readline().startswith("hal: serving")
    with Client(places(machine_env)) as client:
        held = client.call("acquire", key="a", memory_bytes=GIB, ttl_seconds=600.0)["lease"]["id"]
        with pytest.raises(StateError, match="has met a mistake in hal: nothing was done"):
            client.call("watch", after=1_000_000, timeout_seconds=0.5)
    assert broken.wait(60) == 1
    assert "(which was waiting) has met a mistake in hal" in broken.stderr.read()
    with serving(machine_env), Client(places(machine_env)) as client:
        assert [one["id"] for one in leases(machine_env)] == [held]
        client.call("release", lease=held)
