"""The scheduler's own node has trouble: no files are left, or its book cannot be read."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from hal.backend import HalError
from hal.scheduler.client import Client
from tests.conftest import HAL
from tests.integration.support import Env, kill, leases, places, serving, start


def test_slices_do_not_use_up_the_files(machine_env: Env) -> None:
    """Whoever asks for many small ones is refused; the scheduler, and its successor, have files left."""
    daemon = start(machine_env, "prlimit", "--nofile=600:600", *HAL, "serve")
    assert daemon.stderr is not None
    assert daemon.stderr.readline().startswith("hal: serving leases at ")
    with Client(places(machine_env), timeout=60.0) as client:
        held: list[str] = []
        with pytest.raises(HalError, match="of 600 files too few are left"):
            while len(held) < 600:
                asked = {"key": str(len(held)), "memory_bytes": 1, "ttl_seconds": 600.0}
                held.append(client.call("acquire", **asked)["lease"]["id"])
        assert len(held) > 20
        assert len(leases(machine_env)) == len(held)
    kill(daemon.pid)
    daemon.communicate()
    with serving(machine_env):
        assert len(leases(machine_env)) == len(held)


def test_a_node_that_cannot_be_looked_at_ends_no_scheduler(machine_env: Env) -> None:
    node = Path(machine_env["HAL_NODE_DIR"])
    with serving(machine_env) as daemon, Client(places(machine_env)) as client:
        more = {"members": [{"alternatives": [{}]}] * 3, "wait": True}
        held = [client.call("acquire", key=str(n), request={"members": [{}]}) for n in range(2)]
        assert "waiting" in client.call("acquire", key="w", request=more)
        node.rename(node.with_name("away"))
        node.touch()
        with pytest.raises(HalError, match=r"cannot (use|read) the node's book"):
            while True:
                client.call("acquire", key="z", request=more)
        time.sleep(2.5)  # a scheduler with somebody who waits looks each second
        assert daemon.poll() is None
        node.unlink()
        node.with_name("away").rename(node)
        del held


@pytest.mark.parametrize("size", [1 << 62, 10**31, -1])
def test_what_others_write_into_the_book_ends_no_scheduler(machine_env: Env, size: int) -> None:
    """Any user of the machine can. What they claim is not lent, and all else is."""
    node = Path(machine_env["HAL_NODE_DIR"])
    with serving(machine_env), Client(places(machine_env)) as client:
        device = client.call("acquire", key="a", memory_bytes=1 << 30)["lease"]["device"]
    for id in ("one", "two"):
        claim = {"id": id, "device": device, "memory_bytes": size, "kept": True}
        (node / f"{id}.claim").write_text(json.dumps(claim))
    with serving(machine_env) as daemon, Client(places(machine_env)) as client:
        assert (client.call("acquire", key="b", memory_bytes=1 << 30)["lease"]["device"] == device) is (
            size < 0
        )
        with nullcontext() if size < 0 else pytest.raises(HalError, match="free"):
            client.call("acquire", key="c", memory_bytes=1 << 30, device=device)
        assert daemon.poll() is None
