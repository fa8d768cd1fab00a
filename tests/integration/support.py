"""What the tests of running programs share: jobs, a daemon of their own, and what is left after them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from hal.backend import StateError
from hal.enforce.ledger import Ledger
from hal.scheduler.client import Client
from hal.scheduler.places import Places
from tests.conftest import HAL, wait_until

MIB, GIB = 1 << 20, 1 << 30
Env = dict[str, str]


_started: list[subprocess.Popen[str]] = []


def start(env: Env, *command: str | Path, **options: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    options = {"stdin": pipe, "stdout": pipe, "stderr": pipe} | options
    _started.append(subprocess.Popen(command, env=env, text=True, **options))
    return _started[-1]


@pytest.fixture(autouse=True)
def no_survivors() -> Iterator[None]:
    """Ends what a failed test leaves: with `hal run` its program ends, and then its daemon."""
    before = len(_started)  # by fixtures of a wider scope
    yield
    while len(_started) > before:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def hal_run(env: Env, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return start(env, *HAL, "run", *arguments, **options)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def ask(process: subprocess.Popen[str], command: str) -> str:
    """One command to a waiting hal-allocate, and its answer."""
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    return line(process)


def places(env: Env) -> Places:
    return Places(Path(env["HAL_RUNTIME_DIR"]))


@contextmanager
def serving(env: Env) -> Iterator[subprocess.Popen[str]]:
    """A `hal serve` that answers; if it still runs at the end, it has to end well."""
    daemon = start(env, *HAL, "serve", stdin=subprocess.DEVNULL)
    try:
        assert daemon.stderr is not None
        said = daemon.stderr.readline()
        while said.startswith("hal: ending: "):  # what it has found at its start
            said = daemon.stderr.readline()
        assert said.startswith("hal: serving leases at "), said
        yield daemon
        if daemon.poll() is None:
            daemon.terminate()
            code, said = daemon.wait(60), daemon.stderr.read()
            quiet = [row for row in said.splitlines() if not re.match(r"hal: (?!warning|error)", row)]
            assert (code, quiet) == (0, []), (code, said)
    finally:
        daemon.kill()
        daemon.communicate()


def leases(env: Env) -> list[dict[str, Any]]:
    with Client(places(env)) as client:
        found: list[dict[str, Any]] = client.call("list")["leases"]
        return found


def daemon_pid(env: Env) -> int:
    with Client(places(env)) as client:
        return int(client.call("hello")["pid"])


def living(env: Env) -> dict[int, str]:
    """The processes of this machine that live: pid and command line. Workers go with their parents."""
    mark = f"HAL_RUNTIME_DIR={env['HAL_RUNTIME_DIR']}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_text() == "hal-vendor\n":
                continue
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}  # a zombie has none


def files(env: Env) -> list[str]:
    """What is in the runtime directory."""
    return sorted(
        str(Path(folder, name)) for folder, _, names in os.walk(env["HAL_RUNTIME_DIR"]) for name in names
    )


def memory_in_slices(env: Env) -> int:
    """Bytes that any slice's ledger still counts."""
    total = 0
    for path in (path for path in files(env) if path.endswith(".ledger")):
        with suppress(StateError):  # one that is removed just now
            ledger = Ledger.open(Path(path))
            total += sum(device.used_bytes for device in ledger.devices())
            ledger.close()
    return total


def memory_in_use(env: Env) -> dict[str, int]:
    """Bytes in use by device, as the vendors' management libraries say."""
    result = subprocess.run(
        [*HAL, "sample", "--groups", "memory", "--json"],
        env=env,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return {
        reading["subject"]: reading["value"]
        for reading in json.loads(result.stdout)["readings"]
        if reading["name"] == "memory_used_bytes"
        and reading["labels"]["heap"] == "vram"
        and not reading["subject"].startswith("cpu:")
    }


def all_is_back(env: Env, *, but: int | None = None) -> None:
    """Waits until no process is left (``but`` this daemon), no lease, no slice, and no memory is used."""
    remaining: list[object] = []

    def done() -> bool:
        left = [path for path in files(env) if but is None or ("/slices/" in path and ".spare" not in path)]
        remaining[:] = [living(env).keys() - {but}, memory_in_slices(env), left]
        return not any(remaining)

    try:
        wait_until(done)
    except AssertionError as error:
        raise AssertionError(f"left after the end: {remaining}") from error
    if but is not None:
        assert leases(env) == []
    assert set(memory_in_use(env).values()) == {0}


def kill(pid: int) -> None:
    """SIGKILL, and wait until all its threads are gone."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    ended, _, _ = select.select([pidfd], [], [], 60)
    os.close(pidfd)
    assert ended, f"process {pid} has not ended"
