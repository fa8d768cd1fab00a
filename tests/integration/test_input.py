"""Whatever is typed or closed: one sentence about what is wrong, the right exit code, and no traceback."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated
from tests.conftest import HAL, wait_until
from tests.integration.support import Env, places, serving, start

AGENT = ("agent", "--scheduler", "ipc:///tmp/none.sock", "--node", "n")
WRONG: list[tuple[int, tuple[str | bytes, ...]]] = [
    (2, (*AGENT[:-1], "../x")),
    (2, (*AGENT[:-1], "")),
    (2, (*AGENT[:-1], b"\xff")),
    (2, (*AGENT[:-1], "n" * 129)),
    (2, (*AGENT, "--label", b"a=\xff")),
    (2, (*AGENT, "--label", "é=x")),
    (2, (*AGENT, "--label", "name=x")),
    (2, (*AGENT, "--label", "a=x\ny")),
    (2, ("agent", "--node", "n", "--scheduler", b"ipc:///\xff")),
    (2, ("agent", "--node", "n", "--scheduler", "tcp://head:99999", "--key", "none")),
    (2, ("agent", "--node", "n", "--scheduler", "")),
    (6, ("agent", "--node", "n", "--config", "")),
    (6, ("serve", "--config", "/dev/zero")),
    (2, ("serve", "--grace", "inf")),
    (2, ("serve", "--lost-after", "604801")),
    (2, ("job", "signal", "x", "²")),
    (2, ("job", "signal", "x", "9" * 5000)),
    (2, ("job", "show", b"\xff")),
    (2, ("lease", "show", b"\xff")),
    (2, ("node", "label", "local", b"a=\xff")),
    (2, ("node", "cordon", b"\xff")),
    (2, ("queue", "set", b"\xff")),
    (2, ("events", "--after", "9" * 30)),
    (2, ("submit", "--memory", "1GiB", "--", b"\xff")),
    (6, ("simulate", "openb", "--nodes", "/dev/zero", "--tasks", "/dev/zero")),
    (6, ("simulate", "replay", "/none")),
    (6, ("admin", "backup", "/")),
    (6, ("admin", "backup", "")),
    (2, ("submit", "--memory", "1GiB", "--array", "9" * 5000, "--", "true")),
    (6, ("run", "--request", "/dev/zero", "--", "true")),
]
VARIABLES: list[tuple[int, dict[str, bytes], tuple[str, ...]]] = [
    (6, {"HAL_RUNTIME_DIR": b"/tmp/\xff"}, ("serve",)),
    (6, {"HAL_RUNTIME_DIR": b"/tmp/\xff"}, ("status",)),
    (6, {"HAL_RUNTIME_DIR": b"/tmp/\xff"}, ("run", "--memory", "1GiB", "--", "true")),
    (6, {"HAL_STATE_DIR": b"/tmp/\xff"}, ("serve",)),
    (6, {"HAL_SCHEDULER": b"ipc:///\xff"}, ("status",)),
    (6, {"HAL_SCHEDULER": b"ipc://"}, ("lease", "list")),
    (6, {"HAL_SCHEDULER": b"tcp://head:0", "HAL_KEY": b"/none"}, ("job", "list")),
    (6, {"HAL_SCHEDULER": b"tcp://head:1", "HAL_KEY": b"/dev/zero"}, ("job", "list")),
]


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    """One daemon for all: it has to be well at the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    with emulated(load("mixed-small"), clean) as machine, serving(machine):
        yield machine


def run(env: Env, *arguments: str | bytes, **more: bytes) -> subprocess.CompletedProcess[bytes]:
    variables = {name.encode(): os.fsencode(value) for name, value in env.items()}
    variables |= {name.encode(): value for name, value in more.items()}
    return subprocess.run(
        [*HAL, *arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def is_one_sentence(done: subprocess.CompletedProcess[bytes], code: int) -> None:
    assert (done.returncode, done.stdout) == (code, b""), done.stderr.decode()
    assert re.fullmatch(rb"hal: [^\n]+\n", done.stderr), done.stderr.decode()
    assert len(done.stderr) < 1000 or b"9999" in done.stderr


@pytest.mark.parametrize(("code", "arguments"), WRONG, ids=ascii)
def test_an_argument_that_is_wrong(code: int, arguments: tuple[str | bytes, ...], env: Env) -> None:
    is_one_sentence(run(env, *arguments), code)


@pytest.mark.parametrize(("code", "variables", "command"), VARIABLES, ids=ascii)
def test_a_variable_that_is_wrong(
    code: int, variables: dict[str, bytes], command: tuple[str, ...], env: Env
) -> None:
    is_one_sentence(run(env, *command, **variables), code)


def shell(env: Env, line: str) -> tuple[int, str]:
    script = f'set -o pipefail; hal() {{ {" ".join(HAL)} "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["status", "lease list", "node list --json", "--help", "serve --help"])
def test_output_that_cannot_be_written(command: str, env: Env) -> None:
    assert shell(env, f"hal {command} >/dev/full") == (1, "hal: No space left on device\n")
    assert shell(env, f"PYTHONUNBUFFERED=1 hal {command} >/dev/full") == (1, "hal: No space left on device\n")
    assert shell(env, f"hal {command} >&-") == (0, "")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_what_is_wrong_and_cannot_be_told_has_its_exit_code(closed: str, env: Env) -> None:
    assert shell(env, f"hal lease show none {closed}") == (3, "")


def test_what_is_closed_is_no_file_of_the_schedulers() -> None:
    """Else its log would be written into the first file that it opens."""
    with emulated(load("none")) as machine:
        closing = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *HAL, "serve"]
        daemon = start(machine, *closing)
        wait_until(lambda: places(machine).socket.exists(), what="the scheduler's start")
        for number in range(3):
            assert Path(f"/proc/{daemon.pid}/fd/{number}").readlink() == Path("/dev/null")
        daemon.terminate()
        assert daemon.wait(60) == 0
