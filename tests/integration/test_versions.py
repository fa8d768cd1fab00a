"""Agents, guards and slices of neighbouring versions: each has to do with what another has made.

A guard lives as long as its program, which no upgrade ends; and a program in a container may have a later one
than its node.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ALLOCATE, wait_until
from tests.integration.support import GIB, MIB, Env, ask, kill, line, start
from tests.integration.test_agents import Cluster, allocating, of, running
from tests.versions import NOW, Version, built

Versions = Callable[[str], Version]
NUMBERS = {"before": NOW - 1, "this": NOW, "next": NOW + 1}
both_ways = pytest.mark.parametrize(("maker", "user"), [("this", "next"), ("next", "this")])


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """``next`` may share its files with this version, ``before`` may not."""

    @cache
    def version(name: str) -> Version:
        if name == "this":
            return Version()
        oldest = min(NUMBERS[name], NOW)
        return built(tmp_path_factory.mktemp(name), NUMBERS[name], oldest)

    return version


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running() as one:
        yield one


def made_by(ledger: Path) -> int:
    return int.from_bytes(ledger.read_bytes()[8:12], "little")


def has_guard(program: subprocess.Popen[str], said: str, version: Version) -> bool:
    """The program itself, which may be a child of the command that was started."""
    pid = dict(word.split("=", 1) for word in said.split()[1:] if "=" in word)["pid"]
    return str(version.guard) in Path(f"/proc/{pid}/maps").read_text()


class ByHand:
    """A slice of 2 GiB, made and changed by the command of one version."""

    def __init__(self, version: Version, env: Env) -> None:
        self.version, self.env = version, env
        self("create", "--device", "GPU-6a77", "--memory", "2GiB", "--name", "dev")
        (self.ledger,) = Path(env["HAL_NODE_DIR"]).glob("slices-*/*.ledger")

    def __call__(self, verb: str, *options: str) -> str:
        command = [*self.version.hal, "slice", verb, *options]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def used(self) -> int:
        shown: dict[str, Any] = json.loads(self("show", "dev", "--json"))["slices"][0]
        return int(shown["use"]["devices"][0]["used_bytes"])

    def entered(self, version: Version) -> subprocess.Popen[str]:
        """A program with the guard of a version."""
        program = start(self.env, *version.hal, "slice", "run", "dev", "--", ALLOCATE, "cuda")
        assert has_guard(program, line(program), version)
        return program


@both_ways
def test_a_guard_holds_its_program_in_a_slice_of_another_version(
    maker: str, user: str, versions: Versions, machine_env: Env
) -> None:
    dev = ByHand(versions(maker), machine_env)
    assert made_by(dev.ledger) == NUMBERS[maker]
    program = dev.entered(versions(user))
    assert ask(program, "alloc 1536").startswith("allocated")
    assert ask(program, "alloc 1024").startswith(f"refused bytes={GIB} held={1536 * MIB} code=2 ")
    dev("resize", "dev", "--memory", "3GiB")
    assert ask(program, "alloc 1024").startswith("allocated")
    assert dev.used() == 2560 * MIB

    dev("pause", "dev")
    assert program.stdin is not None
    program.stdin.write("alloc 64\n")
    program.stdin.flush()
    assert not select.select([program.stdout], [], [], 0.5)[0]
    dev("resume", "dev")
    assert line(program).startswith("allocated")

    beside = dev.entered(versions(maker))
    assert ask(beside, "alloc 512").startswith("refused")  # of what they share
    program.kill()
    program.communicate()
    wait_until(lambda: ask(beside, "alloc 3072").startswith("allocated"))  # each reaps the other's dead
    assert dev.used() == 3 * GIB


def test_a_guard_that_cannot_share_a_slice_grants_nothing(versions: Versions, machine_env: Env) -> None:
    dev = ByHand(versions("this"), machine_env)
    program = dev.entered(versions("before"))
    assert ask(program, "alloc 64").startswith(f"refused bytes={64 * MIB} held=0 code=2 ")
    _, said = program.communicate(timeout=60)
    assert f"the slice {dev.ledger} cannot be used: it was made by another version of hal" in said


def test_a_slice_that_cannot_be_read_is_not_destroyed_under_its_programs(
    versions: Versions, machine_env: Env
) -> None:
    dev = ByHand(versions("before"), machine_env)
    program = dev.entered(versions("before"))
    assert ask(program, "alloc 64").startswith("allocated")
    dev.version = versions("this")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        dev("destroy", "dev")
    assert refused.value.returncode == 4
    assert "1 processes are in the slice 'dev'" in refused.value.stderr
    assert dev.ledger.exists()
    dev("destroy", "dev", "--force")
    program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGKILL
    assert not dev.ledger.exists()


@both_ways
def test_an_agent_takes_over_what_one_of_another_version_has_lent(
    maker: str, user: str, versions: Versions, cluster: Cluster
) -> None:
    """With its program, whose guard is of that version, too; what is started from now on has another one."""
    cluster.hal = versions(maker).hal
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    assert made_by(Path(body["environment"]["HAL_SLICE"])) == NUMBERS[maker]
    assert str(versions(maker).guard) in body["environment"]["LD_PRELOAD"]
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    assert ask(program, "alloc 512").startswith("allocated")
    kill(cluster.agents["green"].pid)

    cluster.hal = versions(user).hal
    cluster.agent("green")
    wait_until(lambda: lent(cluster) == [(body["lease"]["id"], "active", 512 * MIB)])
    after = cluster.acquire("k", of("nvidia"))
    assert str(versions(user).guard) in after["environment"]["LD_PRELOAD"]
    beside = allocating({**cluster.envs["green"], **after["environment"]}, "cuda")
    assert ask(program, "alloc 512").startswith("allocated")
    assert ask(beside, "alloc 1024").startswith("allocated")
    assert [ask(one, "alloc 64").split()[0] for one in (program, beside)] == ["refused"] * 2
    wait_until(lambda: lent(cluster) == [(body["lease"]["id"], "active", 2 * GIB)])
    cluster.call("release", lease=body["lease"]["id"])
    assert program.wait(20) == beside.wait(20) == -signal.SIGTERM
    wait_until(lambda: not cluster.ledgers("green"))


def lent(cluster: Cluster) -> list[tuple[str, str, int]]:
    return [(one["id"], one["state"], one["used_bytes"]) for one in cluster.call("list")["leases"]]


def test_what_an_agent_of_a_version_that_shares_nothing_has_lent_is_ended_with_the_reason(
    versions: Versions, cluster: Cluster
) -> None:
    cluster.hal = versions("before").hal
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    assert ask(program, "alloc 512").startswith("allocated")
    kill(cluster.agents["green"].pid)
    cluster.hal = versions("this").hal
    assert "it was made by another version of hal" in cluster.begun("green")
    assert program.wait(20) == -signal.SIGTERM
