"""Alternatives, gangs and queues through the real daemon and command line, on an emulated machine."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hal.scheduler.client import Client
from tests.conftest import ALLOCATE, HAL, wait_until
from tests.integration.support import (
    GIB,
    Env,
    all_is_back,
    ask,
    hal_run,
    kill,
    leases,
    line,
    places,
    serving,
    start,
)

ALL_AMD = ("--vendor", "amd", "--count", "2")
NVIDIA, AMD = 'vendor == "nvidia"', 'vendor == "amd"'


def hal(env: Env, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HAL, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def waiting(env: Env) -> list[dict[str, Any]]:
    with Client(places(env)) as client:
        found: list[dict[str, Any]] = client.call("list")["waiting"]
        return found


def waits(env: Env, count: int = 1) -> None:
    wait_until(lambda: len(waiting(env)) == count, what="a request in the queue")


def told(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_the_second_alternative_is_taken_when_the_first_has_no_room(machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        both = hal_run(machine_env, "--select", NVIDIA, "--count", "2", "--", ALLOCATE, "cuda")
        assert line(both).startswith("device ")
        arguments = ("--any", f"{NVIDIA}:20GiB", "--any", f"{AMD}:24GiB")
        other = hal_run(machine_env, *arguments, "--", ALLOCATE, "hip")
        assert line(other).startswith("device ")
        assert ask(other, "info") == f"memory free={24 * GIB} total={24 * GIB}"
        assert sorted(len(one["devices"]) for one in leases(machine_env)) == [1, 2]
        for program in (both, other):
            program.communicate(timeout=60)
            assert program.returncode == 0
        all_is_back(machine_env, but=daemon.pid)


def test_a_gang_runs_each_member_in_a_slice_of_its_own(machine_env: Env) -> None:
    program = ["sh", "-c", f"echo $HAL_MEMBER; exec {ALLOCATE} cuda fill 1024 info"]
    gang = hal_run(machine_env, "--vendor", "nvidia", "--memory", "30GiB", "--gang", "3", "--", *program)
    stdout, stderr = gang.communicate(timeout=60)
    assert gang.returncode == 0
    assert sorted(text for text in stdout.splitlines() if text.isdigit()) == ["0", "1", "2"]
    assert stdout.count(f"memory free=0 total={30 * GIB}") == 3
    assert stderr.count("refused") == 3
    all_is_back(machine_env)


def test_when_one_of_a_gang_fails_the_others_are_told_to_end(machine_env: Env) -> None:
    program = 'if [ "$HAL_MEMBER" = 1 ]; then exit 7; fi; exec sleep 600'
    gang = hal_run(machine_env, "--memory", "1GiB", "--gang", "3", "--", "sh", "-c", program)
    gang.communicate(timeout=60)
    assert gang.returncode == 7


def test_a_gang_of_which_one_has_no_room_is_not_started(machine_env: Env, tmp_path: Path) -> None:
    touch = ["sh", "-c", f"touch {tmp_path}/$HAL_MEMBER"]
    result = hal(machine_env, "run", "--vendor", "nvidia", "--memory", "50GiB", "--gang", "3", "--", *touch)
    assert result.returncode == 4
    assert "no room for all of the gang" in result.stderr
    assert not list(tmp_path.iterdir())


def test_who_waits_is_told_why_and_runs_when_there_is_room(machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        first = hal_run(machine_env, *ALL_AMD, "--", ALLOCATE, "hip")
        assert line(first).startswith("device ")
        (held,) = leases(machine_env)
        second = hal_run(machine_env, *ALL_AMD, "--wait", "--", ALLOCATE, "hip")
        (said,) = [told(second)]
        (one,) = waiting(machine_env)
        assert said.startswith(f"hal: waiting in queue 'default' as {one['id']}: devices: of ")
        explained = hal(machine_env, "lease", "explain", one["id"])
        assert explained.stdout.startswith(f"{one['id']} is waiting\n")
        assert 'fail vendor == "amd"' in explained.stdout
        assert f"nearest: the end of '{held['id']}'" in explained.stdout
        assert one["id"] in hal(machine_env, "lease", "list").stdout
        first.communicate(timeout=60)
        assert line(second).startswith("device ")
        second.communicate(timeout=60)
        assert second.returncode == 0
        all_is_back(machine_env, but=daemon.pid)


@pytest.mark.parametrize("how", ["interrupt", "kill", "release"])
def test_who_leaves_the_queue_waits_no_longer(how: str, machine_env: Env) -> None:
    first = hal_run(machine_env, *ALL_AMD, "--", ALLOCATE, "hip")
    assert line(first).startswith("device ")
    second = hal_run(machine_env, *ALL_AMD, "--wait", "--", "true")
    assert told(second).startswith("hal: waiting")
    (one,) = waiting(machine_env)
    match how:
        case "interrupt":
            second.send_signal(signal.SIGINT)
        case "kill":
            kill(second.pid)
        case _:
            assert "waits no longer" in hal(machine_env, "lease", "release", one["id"]).stdout
    second.communicate(timeout=60)
    assert second.returncode == {"interrupt": 130, "kill": -9, "release": 3}[how]
    waits(machine_env, 0)
    first.communicate(timeout=60)
    all_is_back(machine_env)


def test_a_quota_is_had_back_from_a_program_that_runs(machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        for name, quota in (("mine", "2"), ("theirs", "0")):
            assert hal(machine_env, "queue", "set", name, "--quota", quota).returncode == 0
        theirs = hal_run(machine_env, *ALL_AMD, "--queue", "theirs", "--", ALLOCATE, "hip")
        assert line(theirs).startswith("device ")
        mine = hal_run(machine_env, *ALL_AMD, "--queue", "mine", "--wait", "--", ALLOCATE, "hip")
        assert line(mine).startswith("device ")
        _, stderr = theirs.communicate(timeout=60)
        assert theirs.returncode == 128 + signal.SIGTERM
        assert "queue 'mine' has less than its quota" in stderr
        mine.communicate(timeout=60)
        all_is_back(machine_env, but=daemon.pid)


def test_leases_queues_and_who_waits_survive_the_daemon(machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        assert hal(machine_env, "queue", "set", "q", "--limit", "2", "--weight", "3").returncode == 0
        first = hal_run(machine_env, *ALL_AMD, "--queue", "q", "--", ALLOCATE, "hip")
        assert line(first).startswith("device ")
        second = hal_run(machine_env, *ALL_AMD, "--queue", "q", "--wait", "--", ALLOCATE, "hip")
        assert told(second).startswith("hal: waiting")
        before = [one["id"] for one in (*leases(machine_env), *waiting(machine_env))]
        kill(daemon.pid)
    with serving(machine_env) as successor:
        assert [one["id"] for one in (*leases(machine_env), *waiting(machine_env))] == before
        queues = json.loads(hal(machine_env, "queue", "list", "--json").stdout)["queues"]
        assert [(q["name"], q["weight"], q["limit"]["devices_milli"]) for q in queues] == [
            ("default", 1, None),
            ("q", 3, 2000),
        ]
        first.communicate(timeout=60)
        assert line(second).startswith("device ")
        second.communicate(timeout=60)
        assert second.returncode == 0
        all_is_back(machine_env, but=successor.pid)


def test_a_queue_can_be_removed_once_nothing_is_in_it(machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        for name in ("team", "other"):
            assert hal(machine_env, "queue", "set", name, "--quota", "1").returncode == 0
        taken = start(machine_env, *HAL, "lease", "take", "--memory", "1GiB", "--queue", "team")
        assert line(taken).startswith("Lease ")
        in_use = hal(machine_env, "queue", "remove", "team")
        assert in_use.stderr == "hal: queue 'team' is not empty: leases and requests that wait: 1\n"
        job = hal(machine_env, "submit", "--queue", "other", "--memory", "1GiB", "--", "sleep", "600")
        assert "jobs that are not over: 1" in hal(machine_env, "queue", "remove", "other").stderr
        assert hal(machine_env, "job", "cancel", job.stdout.split()[0]).returncode == 0
        taken.terminate()
        taken.communicate(timeout=60)

        def removed(name: str) -> bool:
            return hal(machine_env, "queue", "remove", name).returncode == 0

        wait_until(lambda: removed("team"), what="an empty queue")
        wait_until(lambda: removed("other"), what="an empty queue")
        again = hal(machine_env, "queue", "remove", "team")
        assert (again.returncode, again.stderr) == (3, "hal: there is no queue 'team'\n")
        last = json.loads(hal(machine_env, "events", "--json").stdout.splitlines()[-1])
        assert (last["kind"], last["queue"]) == ("queue_removed", "other")
        assert hal(machine_env, "events").stdout.endswith("queue removed  other\n")
        kill(daemon.pid)
    with serving(machine_env):
        queues = json.loads(hal(machine_env, "queue", "list", "--json").stdout)["queues"]
        assert [one["name"] for one in queues] == ["default"]


def test_a_lease_can_be_taken_without_a_program(machine_env: Env) -> None:
    taken = start(machine_env, *HAL, "lease", "take", "--any", f"{NVIDIA}:20GiB", "--any", AMD)
    assert line(taken).startswith("Lease ")
    (lease,) = leases(machine_env)
    assert (lease["memory_bytes"], lease["whole"]) == (20 * GIB, False)
    taken.terminate()
    taken.communicate(timeout=60)
    assert taken.returncode == 0
    all_is_back(machine_env)


def test_an_operators_class_fills_in_what_a_request_leaves_open(machine_env: Env, tmp_path: Path) -> None:
    presets = tmp_path / "presets.toml"
    presets.write_text("[urgent]\npriority = 7\n")
    env = machine_env | {"HAL_PRESETS": str(presets)}
    with serving(env):
        for arguments, priority in ((["--class", "urgent"], 7), (["--class", "batch"], -100), ([], 0)):
            taken = start(env, *HAL, "lease", "take", "--memory", "1GiB", *arguments)
            assert line(taken).startswith("Lease ")
            assert [one["priority"] for one in leases(env)] == [priority]
            taken.terminate()
            taken.communicate(timeout=60)
    presets.write_text('[urgent]\npriority = "high"\n')
    result = hal(env, "serve")
    assert result.returncode == 6
    assert f"the presets {presets}, [urgent]: Expected `int | null`" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--any", 'vendor = "x":1GiB'], 2, "selector: '=' at character 8 is not understood"),
        (["--any", f"{NVIDIA}:much"], 2, "'much' is not a size"),
        (["--any", NVIDIA, "--vendor", "amd"], 2, "not allowed with"),
        (["--compute", "50%"], 2, "a share of a device needs memory_bytes"),
        (["--compute", "500%", "--memory", "1GiB"], 2, "is no share"),
        (["--count", "0"], 2, "count: it is between 1 and 64"),
        (["--duration", "soon"], 2, "is no time"),
        (["--request", "/nowhere"], 6, "cannot read /nowhere"),
        (["--queue", "nobody's"], 3, "there is no queue"),
        (["--class", "nobody's"], 3, "there is no class"),
        (["--select", "memory >= 999Gi"], 5, "no device that can be shared is meant"),
        (["--count", "9", "--vendor", "nvidia"], 5, "9 such devices are wanted"),
    ],
)
def test_a_request_that_cannot_be_is_one_sentence(
    arguments: list[str], code: int, words: str, machine_env: Env
) -> None:
    result = hal(machine_env, "run", *arguments, "--", "true")
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queue = 3", "line 1, field 'queue': Expected `str`, got `int`"),
        ("[[member]]\nreplicas = 'x'", "line 2, field 'replicas': Expected `int`, got `str`"),
        ("[[any]]\nmemory = 'much'", "line 2, field 'memory': 'much' is not a size"),
        ("[[any]]\nvendor = 'x'", "line 2, field 'vendor': there is no such field"),
        ("[[any]]\ncount = 1\n\n[[any]]\ncount = 0", "line 5, field 'count': it is between 1 and 64, not 0"),
        (
            "[[member]]\n[[member.any]]\n[[member]]\n[[member.any]]\n[[member.any]]\nslack = 'x'",
            "line 6, field 'slack': 'x' is no time",
        ),
        ("[[any]]\nselector = 'vendor =='", "line 2, field 'selector': an expression is expected"),
        ("[[any]]\ncompute = '50%'", "line 2, field 'compute': a share of a device needs memory_bytes"),
        ("priority = 1\nany = [{count = 1}, {count = 0}]", "line 2, field 'count': it is between 1"),
        ("any = 3", "line 1, field 'any': write members as [[member]]"),
        ("class = 3", "line 1, field 'class': it is the name of a class"),
        ("= x", "is not TOML"),
    ],
)
def test_a_request_file_that_is_wrong_says_where(
    text: str, words: str, machine_env: Env, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(text)
    result = hal(machine_env, "run", "--request", str(tmp_path / "r.toml"), "--", "true")
    assert result.returncode == 6
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
