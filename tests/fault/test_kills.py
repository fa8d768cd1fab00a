"""Whatever is killed, in whatever order: the others go on, and all that was held comes back."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hal.enforce.ledger import Ledger
from hal.scheduler.client import Client
from hal.scheduler.errors import Unreachable
from tests.conftest import ALLOCATE, HAL, wait_until
from tests.integration.support import (
    GIB,
    MIB,
    Env,
    all_is_back,
    ask,
    daemon_pid,
    files,
    hal_run,
    kill,
    leases,
    line,
    living,
    memory_in_slices,
    memory_in_use,
    places,
    serving,
    start,
)

VENDORS = [("cuda", "nvidia"), ("hip", "amd")]
each_vendor = pytest.mark.parametrize(("runtime", "vendor"), VENDORS)
# Runs a command as its own child, so that `hal run`'s end is not the command's.
PARENT = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]
each_parent = pytest.mark.parametrize(
    ("runtime", "vendor", "parent"), [(*VENDORS[0], []), (*VENDORS[1], PARENT)], ids=["child", "grandchild"]
)


@pytest.fixture(params=["private", "serve"])
def served(request: pytest.FixtureRequest, machine_env: Env) -> Iterator[Env]:
    """A machine whose daemon is `hal run`'s own, or a `hal serve` that was there before and stays."""
    with ExitStack() as stack:
        if request.param == "serve":
            stack.enter_context(serving(machine_env))
        yield machine_env


@pytest.fixture
def daemon(request: pytest.FixtureRequest, served: Env) -> int | None:
    """The process that may stay: `hal serve`."""
    return daemon_pid(served) if "serve" in request.node.name.split("[")[1].rstrip("]").split("-") else None


class Job:
    """`hal run` with a program that holds 1 GiB of a slice of 2 GiB, and waits for commands."""

    def __init__(self, env: Env, runtime: str, vendor: str, *before: str) -> None:
        program = [*before, ALLOCATE, runtime]
        self.hal = hal_run(env, "--memory", "2GiB", "--vendor", vendor, "--", *program)
        self.pid = int(line(self.hal).split()[1].removeprefix("pid="))
        assert ask(self.hal, "alloc 1024") == f"allocated bytes={GIB} held={GIB}"

    def end(self) -> None:
        """It could go on to its limit and not beyond, and ends well."""
        assert ask(self.hal, "fill 256").startswith(f"refused bytes={256 * MIB} held={2 * GIB} code=2 ")
        stdout, stderr = self.hal.communicate(timeout=60)
        assert (self.hal.returncode, stdout) == (0, "")
        assert stderr.count("\n") == 1, stderr
        assert "refused 0.25 GiB" in stderr


def in_use(env: Env, vendor: str) -> int:
    return sum(used for id, used in memory_in_use(env).items() if id.startswith(f"{vendor}:"))


# ---- the job ---------------------------------------------------------------------------------


@each_vendor
def test_the_job_is_killed(runtime: str, vendor: str, served: Env, daemon: int | None) -> None:
    job = Job(served, runtime, vendor)
    assert (in_use(served, vendor), memory_in_slices(served)) == (GIB, GIB)
    kill(job.pid)
    stdout, stderr = job.hal.communicate(timeout=60)
    assert (job.hal.returncode, stdout, stderr) == (137, "", "")
    all_is_back(served, but=daemon)


@each_vendor
def test_one_process_of_several_in_a_slice_is_killed(runtime: str, vendor: str, machine_env: Env) -> None:
    """Its neighbour in the slice can have the memory at once."""
    job = Job(machine_env, runtime, vendor)
    inside = Path(f"/proc/{job.pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
    neighbour = start(dict(entry.split("=", 1) for entry in inside), ALLOCATE, runtime)
    assert line(neighbour).startswith("device ")
    assert ask(neighbour, "alloc 2048").startswith(f"refused bytes={2 * GIB} held=0 ")
    job.hal.send_signal(signal.SIGSTOP)  # it would give the lease back
    kill(job.pid)
    assert ask(neighbour, "alloc 2048") == f"allocated bytes={2 * GIB} held={2 * GIB}"
    job.hal.send_signal(signal.SIGCONT)
    job.hal.communicate(timeout=60)
    neighbour.wait(60)  # ends with the lease
    neighbour.communicate()
    all_is_back(machine_env)


@each_vendor
def test_a_job_cuts_its_ledger_short(runtime: str, vendor: str, served: Env, daemon: int | None) -> None:
    """The daemon, which has it mapped, goes on with everything else."""
    job = Job(served, runtime, vendor)
    (path,) = (path for path in files(served) if path.endswith(".ledger"))
    os.truncate(path, 0)
    (lease,) = leases(served)
    assert lease["used_bytes"] is None
    Job(served, runtime, vendor).end()
    kill(job.pid)
    job.hal.communicate(timeout=60)
    assert job.hal.returncode == 137
    all_is_back(served, but=daemon)


# ---- hal run ---------------------------------------------------------------------------------


@each_parent
def test_hal_run_is_killed(
    runtime: str, vendor: str, parent: list[str], served: Env, daemon: int | None
) -> None:
    job = Job(served, runtime, vendor, *parent)
    kill(job.hal.pid)
    all_is_back(served, but=daemon)
    job.hal.communicate()


# ---- the daemon ------------------------------------------------------------------------------


def identity(env: Env) -> list[object]:
    """What must not change when another daemon takes over the only lease."""
    (lease,) = leases(env)
    return [
        lease[key] for key in ("id", "epoch", "device", "memory_bytes", "holder_pid", "used_bytes", "state")
    ]


def answers(env: Env) -> bool:
    try:
        return daemon_pid(env) > 0
    except Unreachable:
        return False


def test_the_private_daemon_is_killed(machine_env: Env) -> None:
    """`hal run` starts another at its next renewal, which takes the lease over."""
    job = Job(machine_env, *VENDORS[0])
    before = identity(machine_env)
    kill(daemon_pid(machine_env))
    with Client(places(machine_env), timeout=3600) as client, pytest.raises(Unreachable):
        client.call("hello")  # is not waited for: the kernel knows
    wait_until(lambda: answers(machine_env), what="another daemon's answer")
    status = Path(f"/proc/{daemon_pid(machine_env)}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert not blocked >> (signal.SIGTERM - 1) & 1, "it was started by a thread that blocks signals"
    assert identity(machine_env) == before
    job.end()
    all_is_back(machine_env)


@each_vendor
def test_a_daemon_is_killed_and_started_again(runtime: str, vendor: str, machine_env: Env) -> None:
    with serving(machine_env) as first:
        job = Job(machine_env, runtime, vendor)
        before = identity(machine_env)
        kill(first.pid)
        with serving(machine_env) as second:
            assert identity(machine_env) == before
            job.end()
            all_is_back(machine_env, but=second.pid)
    assert files(machine_env) == []


def test_a_daemon_started_again_ends_a_job_whose_slice_it_cannot_read(machine_env: Env) -> None:
    """And says why, to whoever reads its log and to `hal run`."""
    with serving(machine_env) as first:
        job = Job(machine_env, *VENDORS[0])
        kill(first.pid)
    job.hal.send_signal(signal.SIGSTOP)  # it, too, would end the job
    (path,) = (Path(path) for path in files(machine_env) if path.endswith(".ledger"))
    with path.open("r+b") as file:
        file.seek(8)  # behind the magic (hal_ledger.h)
        file.write((1).to_bytes(4, "little"))
    reason = f"cannot use the slice file {path}: it was made by another version of hal"
    program = os.pidfd_open(job.pid)
    second = start(machine_env, *HAL, "serve", stdin=subprocess.DEVNULL)
    assert second.stderr is not None
    assert second.stderr.readline().endswith(f" has lost its slice, and its programs are ended: {reason}\n")
    while not (said := second.stderr.readline()).startswith("hal: serving leases at "):
        assert said.startswith("hal: ending: "), said
    assert select.select([program], [], [], 60)[0], "the daemon did not end it"
    os.close(program)
    assert [one["state"] for one in leases(machine_env)] == ["ending"]
    job.hal.send_signal(signal.SIGCONT)
    _, said = job.hal.communicate(timeout=60)
    assert (job.hal.returncode, reason in said) == (143, True), said
    all_is_back(machine_env, but=second.pid)
    second.terminate()
    assert second.wait(60) == 0


HOLDER = """
from hal.scheduler.client import Client

with Client() as client:
    asked = {"key": "h", "request": {"members": [{}], "ttl_ms": 600_000}}
    print(client.call("acquire", **asked)["lease"]["id"], flush=True)
    input()
"""


def test_a_successor_waits_for_a_holder_that_has_not_noticed_its_end(machine_env: Env) -> None:
    """It may be about to start its program: until it has gone the device is nobody else's."""
    with serving(machine_env) as daemon:
        holder = start(machine_env, HAL[0], "-c", HOLDER)
        id = line(holder)
        with Client(places(machine_env)) as client:
            client.call("drain", target="local")
        kill(daemon.pid)
    with serving(machine_env), Client(places(machine_env)) as client:
        client.call("watch", timeout_seconds=0.5)
        assert [(one["id"], one["state"]) for one in leases(machine_env)] == [(id, "ending")]
        holder.communicate("\n")
        wait_until(lambda: leases(machine_env) == [])


def test_a_daemon_that_is_told_to_stop_leaves_its_leases_to_the_next(machine_env: Env) -> None:
    with serving(machine_env) as first:
        job = Job(machine_env, *VENDORS[0])
        before = identity(machine_env)
        first.terminate()
        assert first.wait(60) == 0
        with serving(machine_env) as second:
            assert identity(machine_env) == before
            job.end()
            all_is_back(machine_env, but=second.pid)


def test_a_private_daemon_that_is_told_to_stop_ends_its_leases(machine_env: Env) -> None:
    job = Job(machine_env, *VENDORS[0])
    os.kill(daemon_pid(machine_env), 15)
    assert job.hal.wait(60) == 143
    job.hal.communicate()
    all_is_back(machine_env)


def test_a_job_ends_while_its_daemon_is_down(machine_env: Env) -> None:
    with serving(machine_env) as first:
        job = Job(machine_env, *VENDORS[1])
        kill(first.pid)
        kill(job.hal.pid)
        job.hal.communicate()
    wait_until(lambda: living(machine_env) == {} and memory_in_slices(machine_env) == 0)
    assert set(memory_in_use(machine_env).values()) == {0}
    with serving(machine_env) as second:
        all_is_back(machine_env, but=second.pid)
    assert files(machine_env) == []


# ---- both ------------------------------------------------------------------------------------


@each_parent
def test_hal_run_and_its_daemon_are_killed(
    runtime: str, vendor: str, parent: list[str], machine_env: Env
) -> None:
    """A child goes with `hal run`; a grandchild stays, held to its limit, until the next daemon finds it."""
    job = Job(machine_env, runtime, vendor, *parent)
    os.kill(daemon_pid(machine_env), 9)
    os.kill(job.hal.pid, 9)
    job.hal.wait()
    if parent:
        wait_until(lambda: living(machine_env).keys() == {job.pid})
        assert ask(job.hal, "fill 256").startswith(f"refused bytes={256 * MIB} held={2 * GIB} code=2 ")
    else:
        wait_until(lambda: living(machine_env) == {} and memory_in_slices(machine_env) == 0)
        assert set(memory_in_use(machine_env).values()) == {0}
    following = hal_run(machine_env, "--memory", "1GiB", "--", "true")
    assert following.communicate(timeout=60) == ("", "")
    assert following.returncode == 0
    all_is_back(machine_env)
    job.hal.communicate()


# ---- release ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stubborn", [False, True], ids=["obedient", "stubborn"])
def test_a_released_lease_ends_its_job(stubborn: bool, served: Env, daemon: int | None) -> None:
    """By SIGTERM, or where that is ignored by SIGKILL a moment later."""
    job = Job(served, *VENDORS[0], *(["sh", "-c", 'trap "" TERM; exec "$@"', "sh"] if stubborn else []))
    (lease,) = leases(served)
    job.hal.send_signal(signal.SIGSTOP)  # it, too, would end the job, but later
    program = os.pidfd_open(job.pid)
    release = start(served, *HAL, "lease", "release", lease["id"])
    said, stderr = release.communicate(timeout=60)
    assert (release.returncode, stderr) == (0, "")
    assert said.startswith(f"Lease {lease['id']} is ending:")
    again = start(served, *HAL, "lease", "release", lease["id"])
    again.communicate(timeout=60)
    assert again.returncode == 3
    ended, _, _ = select.select([program], [], [], 60)
    os.close(program)
    assert ended, "the daemon did not end it"
    job.hal.send_signal(signal.SIGCONT)
    job.hal.communicate()
    assert job.hal.returncode == 128 + (9 if stubborn else 15)
    all_is_back(served, but=daemon)


def test_hal_run_stops_a_program_whose_lease_is_lost(machine_env: Env) -> None:
    """One that has not allocated yet is unknown to the daemon."""
    job = hal_run(machine_env, "--memory", "2GiB", "--", "sleep", "1000")
    wait_until(lambda: any(command == "sleep 1000 " for command in living(machine_env).values()))
    (lease,) = leases(machine_env)
    start(machine_env, *HAL, "lease", "release", lease["id"]).communicate(timeout=60)
    assert job.stderr is not None
    assert job.stderr.readline().endswith("has ended: it was released; the program is stopped\n")
    job.communicate(timeout=60)
    assert job.returncode == 143
    all_is_back(machine_env)


def test_a_slice_that_no_lease_knows_is_removed(machine_env: Env) -> None:
    """A daemon that was killed between the slice's making and its promise."""
    with serving(machine_env) as first:
        job = Job(machine_env, *VENDORS[0])
        kept = identity(machine_env)
        kill(first.pid)
    stray = places(machine_env).slice_file("stray")
    Ledger.create(stray, "stray", [("nvidia:nothing", GIB)]).close()
    with serving(machine_env) as second:
        assert not stray.exists()
        assert identity(machine_env) == kept
        job.end()
        all_is_back(machine_env, but=second.pid)


# ---- hal emulate -----------------------------------------------------------------------------


def test_hal_emulate_is_killed(tmp_path: Path, own_environment: Path) -> None:
    """All that ran on the machine ends; the next one sweeps its directory, and none that is in use."""
    own_environment.mkdir()  # short enough for sockets, and removed after the test
    env = {**os.environ, "TMPDIR": str(own_environment)}
    inside = [*HAL, "run", "--memory", "2GiB", "--", ALLOCATE, "auto"]
    killed, kept = (start(env, *HAL, "emulate", "mixed", "--", *inside) for _ in range(2))
    for machine in (killed, kept):
        assert line(machine).startswith("device ")
        assert ask(machine, "alloc 1024") == f"allocated bytes={GIB} held={GIB}"
    machines = sorted(own_environment.iterdir())
    assert len(machines) == 2
    (gone,) = [m for m in machines if str(killed.pid) in _lock_holders(m / "lock")]
    (stays,) = set(machines) - {gone}
    kill(killed.pid)
    killed.communicate()
    wait_until(lambda: living({"HAL_RUNTIME_DIR": str(gone / "run")}) == {}, what="the end of its programs")
    assert gone.is_dir()
    subprocess.run([*HAL, "emulate", "none", "--", "true"], env=env, check=True, timeout=30)
    assert sorted(own_environment.iterdir()) == [stays]
    assert ask(kept, "fill 256").startswith(f"refused bytes={256 * MIB} held={2 * GIB} code=2 ")
    kept.communicate(timeout=60)
    assert kept.returncode == 0
    assert sorted(own_environment.iterdir()) == []


def _lock_holders(lock: Path) -> set[str]:
    """The processes that have a file open."""
    holders = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == lock:
                holders.add(link.parts[2])
        except OSError:
            continue
    return holders
