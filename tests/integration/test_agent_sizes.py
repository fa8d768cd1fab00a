"""What an agent and its scheduler tell one another is large at times: nothing of it cuts the connection."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from hal.backend import HalError
from hal.scheduler import wire
from tests.conftest import wait_until
from tests.integration.support import GIB, kill
from tests.integration.test_agents import Cluster, running

ANY = {"members": [{"alternatives": [{"memory_bytes": GIB}]}], "ttl_ms": 3_600_000}
_LONG = 3_900  # bytes of a path
_SLICES = 700  # whose use is more than a frame has


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running() as one:
        one.add("green", "mi300x-8")
        yield one


def joined(cluster: Cluster) -> int:
    """How often the node has: more than once, and it was cut off meanwhile."""
    return len(cluster.call("watch", after=0, kinds=["node_joined"])["events"])


def allow_jobs(cluster: Cluster) -> None:
    """Root's agents start programs for whom they are told."""
    cluster.agents["green"].kill()
    config = Path(cluster.envs["green"]["HAL_RUNTIME_DIR"], "hal.toml")
    config.write_text('[jobs.run_as]\nroot = "root"\n')
    config.chmod(0o600)
    cluster.agent("green")


def states(cluster: Cluster) -> Counter[str]:
    return Counter(job["state"] for job in cluster.call("jobs")["jobs"])


def test_the_largest_job_that_can_be_asked_for_runs(cluster: Cluster) -> None:
    """The order to run it is larger than the request was."""
    allow_jobs(cluster)
    before = joined(cluster)
    job = {"command": ["true", ""], "environment": {f"V{n}": "x" * 1000 for n in range(44)}, "directory": "/"}
    size = wire.MAX_FRAME_BYTES - len(msgpack.packb(job))
    while True:
        job["command"] = ["true", "z" * size]
        try:
            (id,) = cluster.call("submit", key="large", job=job)["jobs"]
            break
        except HalError as wrong:
            assert "65536 are allowed" in str(wrong), wrong
            size -= 1
    wait_until(lambda: cluster.call("job", job=id)["job"]["state"] == "completed")
    assert joined(cluster) == before


def test_many_long_reasons_at_once_are_told(cluster: Cluster) -> None:
    allow_jobs(cluster)
    before = joined(cluster)
    job = {"command": ["true"], "directory": "/" + "x" * _LONG}
    cluster.call("submit", key="long", request=ANY, array=list(range(60)), job=job)
    wait_until(lambda: states(cluster) == {"failed": 60})
    assert joined(cluster) == before
    reason = cluster.call("jobs")["jobs"][0]["reason"]
    assert reason.startswith("the directory '/xxx") and "…" in reason and len(reason) < 500, reason


def test_the_use_of_many_slices_is_told_over_several_beats(cluster: Cluster) -> None:
    each = [{"key": f"k{number}", "request": ANY} for number in range(_SLICES)]
    for part in (each[:250], each[250:500], each[500:]):
        cluster.call("acquire_many", requests=part)
    wait_until(lambda: len(cluster.ledgers("green")) == _SLICES)
    kill(cluster.agents["green"].pid)
    cluster.agent("green")
    before = joined(cluster)
    deadline = time.monotonic() + 60

    def told() -> int:
        leases = cluster.call("list", limit=1000)["leases"]
        return sum(lease["used_bytes"] is not None for lease in leases)

    while told() < _SLICES:
        assert time.monotonic() < deadline, (told(), joined(cluster) - before)
        time.sleep(0.2)
    assert joined(cluster) == before
