"""File systems that are really full, or read-only: a node's directory, and that of the scheduler's store."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from hal.backend import HalError
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.scheduler.client import Client
from hal.scheduler.jobs.table import _alive
from tests.conftest import HAL, wait_until
from tests.disks import Disk
from tests.integration.support import GIB, Env, kill, leases, places, start
from tests.integration.test_agents import of
from tests.integration.test_jobs import Site, allow, on, settled

FULL, DENIED = "No space left on device", "Read-only file system"


class Place(Site):
    """Whose node "small" has its runtime directory on a disk of its own."""

    disk: Disk

    def add_small(self, stack: ExitStack) -> None:
        self.envs["small"] = stack.enter_context(emulated(load("l40s-4")))
        self.disk = Disk(stack, Path(self.envs["small"]["HAL_RUNTIME_DIR"]), "24m")
        allow(self.envs["small"] | {"HAL_RUNTIME_DIR": str(self.disk.seen)})
        self.agent("small")

    def agent(self, name: str) -> None:
        command = self.disk.command(*HAL, "agent", "--scheduler", places(self.head).address, "--node", name)
        self.agents[name] = start(self.envs[name], *command, stdin=subprocess.DEVNULL)
        stderr = self.agents[name].stderr
        assert stderr is not None
        assert "has joined" in stderr.readline()

    def lives(self) -> None:
        assert self.agents["small"].poll() is None, self.agents["small"].communicate()

    def supervisor(self, job: str) -> int:
        (run,) = self.disk.seen.glob(f"jobs/{job}.*")
        wait_until(lambda: _alive(run) is not None)
        pid = _alive(run)
        assert pid is not None
        return pid


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        one = Place(stack)
        one.add_small(stack)
        yield one
        settled(one)


# ---- a node -----------------------------------------------------------------------------------


@pytest.mark.parametrize("why", [FULL, DENIED], ids=["full", "read-only"])
def test_a_node_whose_directory_cannot_be_written(place: Place, why: str, tmp_path: Path) -> None:
    """It lends nothing new and says why, keeps what it has, stays up, and loses no job's end."""
    disk = place.disk
    until = f"echo begun; while ! [ -e {tmp_path}/end ]; do sleep 0.05; done; exit 5"
    held, given_back = (place.acquire(key, of("nvidia"))["lease"]["id"] for key in ("held", "given back"))
    (disk.seen / "slices" / "left").touch()  # by an agent that was killed, to be swept up
    ended, killed, stays = (place.submit(until, request=on("nvidia")) for _ in range(3))
    for job in (ended, killed, stays):
        place.has_said(job, "begun")
    inner = place.supervisor(killed)
    outer = int(Path(f"/proc/{inner}/stat").read_text().rpartition(")")[2].split()[1])
    (disk.fill if why == FULL else disk.deny)()
    with pytest.raises(HalError, match=f"node 'small'.*{why}"):
        place.acquire("more", of("nvidia"), ttl=1.0)
    refused = place.submit("exit 6", request=on("nvidia"))
    wait_until(lambda: why in place.job(refused)["reason"])
    place.call("renew", lease=held)
    place.call("release", lease=given_back)
    wait_until(lambda: given_back not in {lease["id"] for lease in place.call("list")["leases"]})
    for pid in (outer, inner):
        with suppress(ProcessLookupError):
            kill(pid)
    wait_until(lambda: not runs_of(place, killed))
    kill(place.scheduler.pid)  # its successor is one whose orders the node has to note
    place.serve()
    wait_until(lambda: place.call("renew", lease=held)["lease"]["suspended"] is False)
    (tmp_path / "end").touch()
    wait_until(lambda: not program_of(place, ended))
    place.lives()
    (disk.free if why == FULL else disk.allow)()
    assert place.over(ended)["exit_code"] == place.over(stays)["exit_code"] == 5
    assert place.over(refused)["exit_code"] == 6  # it was tried again
    assert place.over(killed)["reason"] == "its supervisor was killed"
    again = place.acquire("again", of("nvidia"))["lease"]["id"]
    assert place.over(place.submit("exit 3", request=on("nvidia")))["exit_code"] == 3
    for lease in (held, again):
        place.call("release", lease=lease)
    place.at_rest()
    place.lives()


def runs_of(place: Place, job: str) -> list[int]:
    """The processes of one job and its supervisor."""
    mark = f"/jobs/{job}.".encode()
    return [pid for pid in place.running("small") if mark in environ(pid)]


def program_of(place: Place, job: str) -> list[int]:
    """The same, without the supervisor."""
    mark = f"HAL_JOB={job}".encode()
    return [pid for pid in runs_of(place, job) if mark in environ(pid)]


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_a_program_whose_output_has_no_room_runs_on(place: Place, tmp_path: Path) -> None:
    """And what it says later is kept again, in pieces that could not be begun before."""
    script = (
        f"echo first; while ! [ -e {tmp_path}/full ]; do sleep 0.05; done; head -c 400000 /dev/zero;"
        f" echo >{tmp_path}/said; while ! [ -e {tmp_path}/end ]; do sleep 0.05; done; echo last; exit 4"
    )
    job = place.submit(script, request=on("nvidia"), spec={"output_bytes": 65536})
    place.has_said(job, "first")
    place.disk.fill()
    (tmp_path / "full").touch()
    wait_until((tmp_path / "said").exists)  # it was not held up
    place.disk.free()
    (tmp_path / "end").touch()
    assert place.over(job)["exit_code"] == 4
    place.lives()
    place.at_rest()


# ---- the store --------------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[tuple[Disk, Env]]:
    """A scheduler whose store is on a disk of its own."""
    with ExitStack() as stack:
        env = dict(stack.enter_context(emulated(load("mixed"))))
        env["HAL_STATE_DIR"] = str(Path(env["HAL_RUNTIME_DIR"]).with_name("state"))
        yield Disk(stack, Path(env["HAL_STATE_DIR"])), env


def serve(disk: Disk, env: Env) -> subprocess.Popen[str]:
    daemon = start(env, *disk.command(*HAL, "serve"), stdin=subprocess.DEVNULL)
    assert daemon.stderr is not None
    said = daemon.stderr.readline()
    assert said.startswith("hal: serving"), said + daemon.stderr.read()
    return daemon


def acquire(client: Client, key: str = "") -> str:
    request = {"members": [{"alternatives": [{"memory_bytes": GIB}]}], "ttl_ms": 60_000}
    return str(client.call("acquire", key=key or secrets.token_hex(8), request=request)["lease"]["id"])


def fails(work: Callable[[], Any]) -> bool:
    try:
        work()
    except HalError as wrong:
        assert "cannot be written" in str(wrong), wrong
        return True
    return False


def test_a_disk_that_is_full_costs_no_promise(small: tuple[Disk, Env]) -> None:
    disk, env = small
    daemon = serve(disk, env)
    with Client(places(env)) as client:
        said = [acquire(client) for _ in range(3)]
        disk.fill()
        wait_until(lambda: fails(lambda: said.append(acquire(client))), what="the end of what is left")
        for id in said:
            client.call("renew", lease=id)
        disk.free()
        wait_until(lambda: not fails(lambda: said.append(acquire(client, "once"))))
        assert acquire(client, "once") == said[-1]
        disk.fill()
        wait_until(lambda: fails(lambda: said.append(acquire(client))), what="the end of what is left")
        kill(daemon.pid)
    disk.free()
    daemon = serve(disk, env)
    assert {lease["id"] for lease in leases(env)} >= set(said)
    daemon.terminate()
    daemon.communicate(timeout=60)


@pytest.mark.parametrize("why", ["full", "read-only"])
def test_a_scheduler_that_cannot_write_when_it_starts_says_so(small: tuple[Disk, Env], why: str) -> None:
    disk, env = small
    daemon = serve(disk, env)
    with Client(places(env)) as client:
        said = {acquire(client) for _ in range(3)}
    kill(daemon.pid)
    (disk.fill if why == "full" else disk.deny)()
    tried = subprocess.run(
        disk.command(*HAL, "serve"), env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (tried.returncode, len(tried.stderr.splitlines())) == (6, 1), tried.stderr
    assert "leases." in tried.stderr
    (disk.free if why == "full" else disk.allow)()
    daemon = serve(disk, env)
    assert {lease["id"] for lease in leases(env)} == said
    daemon.terminate()
    daemon.communicate(timeout=60)
    assert not os.path.ismount(env["HAL_STATE_DIR"])
