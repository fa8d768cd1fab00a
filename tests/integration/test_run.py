"""`hal run` on emulated machines: slices are held, all else passes through, nothing is left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ALLOCATE, HAL, wait_until
from tests.integration.support import (
    GIB,
    MIB,
    Env,
    all_is_back,
    ask,
    daemon_pid,
    hal_run,
    leases,
    line,
    living,
    start,
)

Hal = Callable[..., subprocess.CompletedProcess[str]]
VENDORS = [("cuda", "nvidia"), ("hip", "amd")]
# Says which signals it gets, and ends with 5 at SIGTERM.
LISTENER = """
import signal, sys
heard = set(signal.Signals) - {signal.SIGCHLD, signal.SIGTTOU, signal.SIGTTIN}
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
print("ready", flush=True)
while (number := signal.sigwait(heard)) is not signal.SIGTERM:
    print(number.name, flush=True)
sys.exit(5)
"""


# ---- slices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("runtime", "vendor"), VENDORS)
def test_a_program_gets_its_slice_and_no_more(runtime: str, vendor: str, hal: Hal) -> None:
    program = [ALLOCATE, runtime, "fill", "1024", "info", "free", "info"]
    result = hal("run", "--memory", "20GiB", "--vendor", vendor, "--", *program, on="mixed")
    assert result.returncode == 0
    _, refused, full, freed, empty = result.stdout.splitlines()
    assert refused.startswith(f"refused bytes={GIB} held={20 * GIB} code=2 ")
    assert full == f"memory free=0 total={20 * GIB}"
    assert (freed, empty) == ("freed", f"memory free={20 * GIB} total={20 * GIB}")
    assert re.fullmatch(
        rf"hal: slice \w+: refused 1.00 GiB: 20.00 of 20.00 GiB in use on {vendor}:\S+\n", result.stderr
    )


@pytest.mark.parametrize(("runtime", "vendor"), VENDORS)
def test_a_program_sees_no_other_vendors_device(runtime: str, vendor: str, machine_env: Env) -> None:
    (other,) = {"nvidia", "amd"} - {vendor}
    result = hal_run(machine_env, "--memory", "1GiB", "--vendor", other, "--", ALLOCATE, runtime, "info")
    stdout, _ = result.communicate(timeout=30)
    assert (result.returncode, stdout) == (1, f"failed what={runtime} code=100\n")


@pytest.mark.parametrize(("runtime", "vendor"), VENDORS)
def test_two_at_once_share_one_daemon_and_are_each_held(runtime: str, vendor: str, machine_env: Env) -> None:
    """Started in the same instant, so that both want to start the daemon."""
    arguments = ("--vendor", vendor, "--", ALLOCATE, runtime, "fill", "512", "wait")
    both = [hal_run(machine_env, "--memory", f"{size}GiB", *arguments) for size in (30, 40)]
    for size, program in zip((30, 40), both, strict=True):
        assert line(program).startswith("device ")
        assert line(program).startswith(f"refused bytes={512 * MIB} held={size * GIB} code=2 ")
    # The one that came second leaves at once.
    wait_until(lambda: sum("serve --private" in command for command in living(machine_env).values()) == 1)
    held = leases(machine_env)
    assert sorted(lease["used_bytes"] for lease in held) == [30 * GIB, 40 * GIB]
    assert len({lease["device"] for lease in held}) == 1  # the one with less room left
    for program in both:
        program.communicate(timeout=60)
        assert program.returncode == 0
    all_is_back(machine_env)


def test_a_whole_device_is_lent_once(machine_env: Env) -> None:
    """And not to a slice beside it; a whole device has no limit but its own."""
    probe = subprocess.run(
        [*HAL, "list", "--json"], env=machine_env, capture_output=True, text=True, check=True
    )
    devices = json.loads(probe.stdout)["devices"]
    first, second = (device for device in devices if device["vendor"] == "nvidia")
    whole = hal_run(machine_env, "--device", first["id"], "--", ALLOCATE, "cuda")
    assert line(whole).startswith("device ")
    size = first["heaps"][0]["total_bytes"]
    assert ask(whole, "info") == f"memory free={size} total={size}"
    for arguments in (["--device", first["id"]], ["--device", first["id"], "--memory", "1GiB"]):
        refused = hal_run(machine_env, *arguments, "--", "true")
        _, stderr = refused.communicate(timeout=30)
        assert refused.returncode == 4, stderr
        assert stderr.startswith("hal: no room for ")
    elsewhere = hal_run(machine_env, "--vendor", "nvidia", "--", ALLOCATE, "cuda")
    assert line(elsewhere).startswith("device ")
    assert sorted(lease["device"] for lease in leases(machine_env)) == sorted([first["id"], second["id"]])
    full = hal_run(machine_env, "--vendor", "nvidia", "--", "true")
    full.communicate(timeout=30)
    assert full.returncode == 4
    whole.communicate(timeout=60)
    elsewhere.communicate(timeout=60)
    all_is_back(machine_env)


def test_a_released_device_is_not_lent_while_its_program_lives(machine_env: Env) -> None:
    """It has no ledger that would tell, and `hal run` learns of the release only when it renews."""
    whole = hal_run(machine_env, "--vendor", "amd", "--", ALLOCATE, "hip")
    assert line(whole).startswith("device ")
    (held,) = leases(machine_env)
    release = [*HAL, "lease", "release", held["id"]]
    said = subprocess.run(release, env=machine_env, capture_output=True, text=True, check=True)
    assert "is ending" in said.stdout

    def lent() -> bool:
        again = hal_run(machine_env, "--device", held["device"], "--", "true")
        again.communicate(timeout=60)
        assert again.returncode in (0, 4)
        return again.returncode == 0

    assert not lent()
    wait_until(lent)
    assert whole.wait(60) == 128 + signal.SIGTERM
    all_is_back(machine_env)


# ---- what passes through ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -SEGV $$", 139), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_the_programs(script: str, code: int, hal: Hal) -> None:
    result = hal("run", "--memory", "1GiB", "--", "sh", "-c", script, on="mixed")
    assert (result.returncode, result.stdout, result.stderr) == (code, "", "")


def test_the_directory_is_the_one_that_is_named(hal: Hal) -> None:
    done = hal("run", "--memory", "1GiB", "--directory", "/usr/..", "--", "pwd", on="mixed")
    assert (done.stdout, done.returncode) == ("/\n", 0), done.stderr
    done = hal("run", "--memory", "1GiB", "--directory", "/no/where", "--", "pwd", on="mixed")
    said = "hal: the directory '/no/where' cannot be entered: No such file or directory\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", said, 126)


def test_streams_are_the_programs(machine_env: Env) -> None:
    text = "\n".join(map(str, range(100_000)))
    program = hal_run(machine_env, "--memory", "1GiB", "--", "sh", "-c", "cat; echo error >&2")
    stdout, stderr = program.communicate(text, timeout=30)
    assert (program.returncode, stdout == text, stderr) == (0, True, "error\n")
    all_is_back(machine_env)


def test_signals_reach_the_program_which_decides(machine_env: Env) -> None:
    program = hal_run(machine_env, "--memory", "1GiB", "--", sys.executable, "-c", LISTENER)
    assert line(program) == "ready"
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        program.send_signal(signal.Signals[name])
        assert line(program) == name
    program.send_signal(signal.SIGTERM)
    stdout, stderr = program.communicate(timeout=60)
    assert (program.returncode, stdout, stderr) == (5, "", "")
    all_is_back(machine_env)


def test_a_storm_of_signals_does_not_end_hal_run(machine_env: Env) -> None:
    """Also those that come while it is busy with the one before."""
    program = hal_run(machine_env, "--memory", "1GiB", "--", sys.executable, "-c", LISTENER)
    assert line(program) == "ready"
    names = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    for name in names * 200:
        program.send_signal(signal.Signals[name])
    program.send_signal(signal.SIGTERM)
    stdout, stderr = program.communicate(timeout=60)
    assert (program.returncode, set(stdout.split()), stderr) == (5, set(names), "")
    all_is_back(machine_env)


def test_ctrl_c_reaches_the_program_exactly_once(machine_env: Env) -> None:
    """The terminal signals the whole foreground group, `hal run` and the program: it is not sent twice."""
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no terminal can be made here: /dev/pts is not mounted")
    mode = termios.tcgetattr(theirs)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    program = hal_run(
        machine_env,
        *("--memory", "1GiB", "--", sys.executable, "-c", LISTENER),
        stdin=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    assert line(program) == "ready"
    for _ in range(3):
        os.write(ours, b"\x03")
        assert line(program) == "SIGINT"
        program.send_signal(signal.SIGUSR1)  # by now `hal run` has had its own SIGINT
        assert line(program) == "SIGUSR1"
    os.write(ours, b"\x1c")
    assert line(program) == "SIGQUIT"
    program.send_signal(signal.SIGTERM)
    assert (program.wait(60), line(program)) == (5, "")
    os.close(ours)
    all_is_back(machine_env)


def test_ctrl_c_ends_a_program_that_does_not_mind_it(machine_env: Env) -> None:
    program = hal_run(machine_env, "--memory", "1GiB", "--", ALLOCATE, "auto", start_new_session=True)
    assert line(program).startswith("device ")
    os.killpg(program.pid, signal.SIGINT)
    program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGINT
    all_is_back(machine_env)


# ---- what goes wrong -------------------------------------------------------------------------

SIZES = [
    "",
    " ",
    "-5GiB",
    "0GiB",
    "0.0000000001KiB",
    "20",
    "1XiB",
    "nan",
    "inf",
    "1e9GiB",
    "0x10GiB",
    "5GiBs",
]
SIZES += ["99999999PiB", "9" * 5000 + "GiB", "1.2.3GiB", "GiB", "--", "20 GiB GiB"]
RUN = ["run", "--memory", "1GiB"]


def fails(result: subprocess.CompletedProcess[str], code: int, words: str = "") -> None:
    """One sentence on stderr, the documented code, and nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(r"hal: [^\n]+\n", result.stderr), result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_none_is_a_usage_error(size: str, hal: Hal) -> None:
    fails(hal("run", "--memory", size, "--", "true"), 2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frobnicate"], 2, "frobnicate"),
        (["list", "--frobnicate"], 2, "see 'hal list --help'"),
        (["lst"], 2, "did you mean 'list'?"),
        (["run", "--gang", "0", "--memory", "1GiB", "--", "true"], 2, "at least one member"),
        (["run", "--request", "/nonexistent", "--", "true"], 6, "cannot read /nonexistent: No such file"),
        (["capture", "--output", "/nonexistent/x"], 6, "cannot use /nonexistent/x: No such file"),
        (["sample", "--watch", "abc"], 2, "'abc' is not a number"),
        (["slice", "create", "--device", "x", "--memory", "1GiB", "--name", ""], 2, "at least one character"),
        (["run"], 2, "there is nothing to run"),
        (["run", "--memory", "1GiB", "--"], 2, "there is nothing to run"),
        (["run", "--name", "x" * 65, "--", "true"], 2, "at most 64"),
        (["run", "--vendor", "amd", "--device", "x", "--", "true"], 2, "not allowed with"),
        (["sample", "--groups", "frobnicate"], 2, "no group 'frobnicate'"),
        (["emulate"], 2, "name a machine"),
        (["emulate", "mixed"], 2, "there is nothing to run"),
        (["emulate", "frobnicate", "--", "true"], 3, "no machine 'frobnicate'"),
        (["lease", "list"], 6, "no scheduler answers"),
        (["lease", "release", "abc"], 6, "no scheduler answers"),
        (["lease", "frobnicate"], 2, "frobnicate"),
    ],
)
def test_a_mistake_is_one_sentence_and_its_code(
    arguments: list[str], code: int, words: str, hal: Hal
) -> None:
    fails(hal(*arguments), code, words)


@pytest.mark.parametrize(
    ("machine", "arguments", "code", "words"),
    [
        ("mixed", ["--memory", "500GiB", "--", "true"], 5, "more than any device has"),
        ("mixed", ["--memory", "100GiB", "--vendor", "nvidia", "--", "true"], 5, "more than any device has"),
        (
            "mixed",
            ["--memory", "1GiB", "--vendor", "frobnicate", "--", "true"],
            5,
            "of these some can: amd, nvidia",
        ),
        ("dgx-h100", ["--memory", "1GiB", "--vendor", "amd", "--", "true"], 5, "of these some can: nvidia"),
        ("none", ["--memory", "1GiB", "--", "true"], 5, "no accelerator that can be shared"),
        ("none", ["--", "true"], 5, "no accelerator that can be shared"),
        ("mixed", ["--memory", "1GiB", "--device", "cpu", "--", "true"], 5, "ask for the whole device"),
        ("mixed", ["--device", "frobnicate", "--", "true"], 3, "no device 'frobnicate' here"),
        ("mixed", ["--device", "nvidia", "--", "true"], 3, "fits 2 devices"),
        ("mixed", ["--memory", "1GiB", "--", "/nowhere/to/be/found"], 127, "there is no command"),
        ("mixed", ["--memory", "1GiB", "--", "/etc/passwd"], 126, "permission denied"),
        ("mixed", ["--memory", "1GiB", "--", "/"], 126, "cannot be run"),
    ],
)
def test_a_run_that_cannot_be_says_why(
    machine: str, arguments: list[str], code: int, words: str, hal: Hal
) -> None:
    fails(hal("run", *arguments, on=machine), code, words)


def test_a_file_that_is_no_program_is_126(tmp_path: Path, hal: Hal) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x00\x01")
    garbage.chmod(0o755)
    fails(hal(*RUN, "--", str(garbage), on="mixed"), 126, "cannot be run")


def test_a_runtime_directory_that_others_can_open_is_refused(tmp_path: Path, machine_env: Env) -> None:
    for directory in (tmp_path / "open", tmp_path / ("long" * 40)):
        directory.mkdir()
        directory.chmod(0o755)
        env = machine_env | {"HAL_RUNTIME_DIR": str(directory)}
        result = subprocess.run(
            [*HAL, *RUN, "--", "true"], env=env, capture_output=True, text=True, timeout=30
        )
        fails(result, 6, "HAL_RUNTIME_DIR")


def test_an_unknown_lease_is_not_released(machine_env: Env) -> None:
    program = hal_run(machine_env, "--memory", "1GiB", "--", ALLOCATE, "auto")
    assert line(program).startswith("device ")
    release = start(machine_env, *HAL, "lease", "release", "frobnicate")
    assert release.communicate(timeout=60) == ("", "hal: there is no lease 'frobnicate'\n")
    assert release.returncode == 3
    assert [lease["state"] for lease in leases(machine_env)] == ["active"]
    program.communicate(timeout=60)
    assert program.returncode == 0


def test_a_failed_start_leaves_nothing(machine_env: Env) -> None:
    hal_run(machine_env, "--memory", "1GiB", "--", "/nowhere/to/be/found").communicate(timeout=30)
    private = daemon_pid(machine_env)
    wait_until(lambda: private not in living(machine_env), what="the private daemon's end")
    all_is_back(machine_env)
