"""One node, one lender: nobody else ends what is lent there, or forgets whom its agent has obeyed."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.scheduler.client import Client
from hal.scheduler.places import Places
from tests.conftest import HAL, wait_until
from tests.integration.support import Env, ask, kill, places, serving, start
from tests.integration.test_agents import Cluster, allocating, of, running


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running() as one:
        one.add("green", "l40s-4")
        yield one


def refused(env: Env, *words: str) -> str:
    done = subprocess.run([*HAL, *words], env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (6, ""), done
    return done.stderr


@pytest.mark.parametrize("stopped", [False, True])
def test_on_a_node_of_anothers_no_scheduler_begins(cluster: Cluster, stopped: bool) -> None:
    env, here = cluster.envs["green"], places(cluster.envs["green"])
    body = cluster.acquire("k", of("nvidia"), ttl=600)
    program = allocating({**env, **body["environment"]}, "cuda")
    if stopped:
        kill(cluster.agents["green"].pid)
    obeyed = here.term.read_bytes()
    address = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).address
    for words in (("run", "--memory", "1GiB", "--", "true"), ("serve",), ("submit", "--", "true")):
        said = refused(env, *words)
        assert f"lent by the scheduler at {address}: set HAL_SCHEDULER" in said, said
    assert f"lent by the one at {address}" in refused(env, "status")
    doctor = subprocess.run([*HAL, "doctor"], env=env, check=True, capture_output=True, text=True).stdout
    assert f"lent by the one at {address}" in doctor and "starts its own" not in doctor
    assert here.term.read_bytes() == obeyed and not here.store.exists()
    assert ask(program, "alloc 512").startswith("allocated")  # it lives, in its slice
    if stopped:
        cluster.agent("green")
    assert [lease["state"] for lease in cluster.call("list")["leases"]] == ["active"]


def test_a_scheduler_whose_store_is_gone_ends_nothing(cluster: Cluster) -> None:
    body, here = cluster.acquire("k", of("nvidia"), ttl=600), places(cluster.head)
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    kill(cluster.scheduler.pid)
    here.store.rename(away := here.store.with_name("away.db"))
    for suffix in ("-wal", "-shm"):
        here.store.with_name(here.store.name + suffix).rename(away.with_name(away.name + suffix))
    said = refused(cluster.head, "serve")
    assert f"the lease store {here.store} is gone" in said and "hal admin restore" in said
    assert ask(program, "alloc 512").startswith("allocated")
    here.lender.unlink()  # as it says
    cluster.serve()
    assert program.wait(30) < 0
    wait_until(lambda: not cluster.ledgers("green"))
    cluster.agents["green"].terminate()
    _, told = cluster.agents["green"].communicate(timeout=30)
    assert f"the scheduler does not know of it: 1 lease ({body['lease']['id']})" in told, told


def test_where_a_scheduler_lends_no_agent_begins(cluster: Cluster) -> None:
    address = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).address
    said = refused(cluster.head, "agent", "--scheduler", address, "--node", "red")
    assert "a scheduler already serves" in said and "an agent of its own" in said


def test_what_a_scheduler_left_waits_for_its_successor(machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        with Client(places(machine_env)) as client:
            lease = client.call("acquire", key="k", memory_bytes=1 << 30, ttl_seconds=600)
        program = allocating(
            {**machine_env, **lease["environment"]}, "cuda" if "nvidia" in lease["lease"]["device"] else "hip"
        )
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    for words in (("run", "--", "true"), ("agent", "--scheduler", "ipc:///nowhere", "--node", "green")):
        assert "lent by a scheduler that does not run now" in refused(machine_env, *words)
    assert program.poll() is None
    with serving(machine_env), Client(places(machine_env)) as client:
        assert [one["id"] for one in client.call("list")["leases"]] == [lease["lease"]["id"]]
        client.call("release", lease=lease["lease"]["id"])
        wait_until(lambda: client.call("list")["leases"] == [])
    done = start(machine_env, *HAL, "run", "--memory", "1GiB", "--", "true")
    assert done.wait(30) == 0  # nothing is left of it
