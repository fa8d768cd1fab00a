"""What every command promises: help with an example, JSON with a schema, one sentence, a quick start."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import hal as package
from hal.cli import _COMMANDS
from tests.conftest import HAL

Hal = Callable[..., subprocess.CompletedProcess[str]]
SLOW_TO_IMPORT = ("amdsmi", "numpy", "pynvml", "rich", "zmq", "hal_native", "cffi")


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_help_has_an_example(command: str, hal: Hal) -> None:
    result = hal(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: hal {command}")
    assert re.search(rf"^examples?:\n  hal (.*-- hal )?{command}\b", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["serve", "simulate"])
def test_what_schedules_starts_no_threads_of_a_blas(command: str) -> None:
    """They spin, and make each fork of a worker slow."""
    code = (
        "import os, sys\nfrom hal.cli import main\n"
        "try:\n main([sys.argv[1], '--help'])\nexcept SystemExit:\n pass\n"
        "import numpy\nassert len(os.listdir('/proc/self/task')) == 1\n"
    )
    unset = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run([sys.executable, "-c", code, command], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def verbs() -> list[tuple[str, str]]:
    """Every command of a command."""
    found = []
    for command, (module, _) in _COMMANDS.items():
        parser = argparse.ArgumentParser()
        getattr(import_module(module), f"configure_{command}")(parser)
        for action in parser._actions:
            found += [(command, verb) for verb in action.choices or () if isinstance(action.choices, dict)]
    return found


@pytest.mark.parametrize(("command", "verb"), verbs())
def test_help_of_a_verb_has_an_example(command: str, verb: str, hal: Hal) -> None:
    result = hal(command, verb, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: hal {command} {verb}")
    assert re.search(rf"^examples?:\n  hal (.*-- hal )?{command} {verb}\b", result.stdout, re.MULTILINE)


def test_there_are_verbs() -> None:
    assert {("backend", "check"), ("lease", "release")} <= set(verbs())


def test_the_overview_names_every_command(hal: Hal) -> None:
    alone, asked = hal(), hal("--help")
    assert (alone.returncode, alone.stderr) == (asked.returncode, asked.stderr) == (0, "")
    assert alone.stdout == asked.stdout
    for command, (_, summary) in _COMMANDS.items():
        assert re.search(rf"^    {command} +{re.escape(summary)}$", alone.stdout, re.MULTILINE)
    assert "examples:\n  hal list\n" in alone.stdout


def test_version(hal: Hal) -> None:
    result = hal("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"hal {version('gpu-hal')}\n", "")
    assert package.__version__ == version("gpu-hal")


def test_the_script_is_the_module() -> None:
    script = [sys.executable.replace("python", "hal")]
    for arguments in (["--version"], ["list", "--help"]):
        runs = [
            subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=60)
            for start in (script, HAL)
        ]
        assert (runs[0].returncode, runs[0].stdout) == (runs[1].returncode, runs[1].stdout)
        assert runs[0].returncode == 0


def test_every_public_name_is_there() -> None:
    assert sorted(package.__all__) == package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="'hal' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("arguments", [["--version"], [], ["--help"], ["run", "--nonsense"]], ids=" ".join)
def test_start_up_imports_nothing_slow(arguments: list[str]) -> None:
    heavy = SLOW_TO_IMPORT if "run" not in arguments else ("amdsmi", "pynvml", "rich")
    code = (
        "import sys; from hal.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"sys.exit(','.join(name for name in {heavy} if name in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert not [line for line in result.stderr.splitlines() if line and not line.startswith("hal: ")]


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        (["list"], "hal.inventory/1"),
        (["show", "cpu:host"], "hal.device/1"),
        (["sample", "--groups", "memory"], "hal.samples/1"),
        (["doctor"], "hal.doctor/1"),
        (["emulate", "--list"], "hal.machines/1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_json_begins_with_its_schema(arguments: list[str], schema: str, hal: Hal) -> None:
    result = hal(*arguments, "--json", **({} if arguments[0] == "emulate" else {"on": "mixed"}))
    assert (result.returncode, result.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(result.stdout)
    assert next(iter(answer.items())) == ("schema", schema)
    assert f"(schema {schema})" in hal(arguments[0], "--help").stdout


def test_json_of_leases_begins_with_its_schema(machine_env: dict[str, str]) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        result = subprocess.run(
            [*HAL, "lease", *arguments, "--json"], env=machine_env, capture_output=True, text=True, timeout=60
        )
        assert (result.returncode, result.stderr) == (0, "")
        answer: dict[str, Any] = json.loads(result.stdout)
        assert next(iter(answer.items())) == ("schema", "hal.leases/1")
        return answer

    holder = subprocess.Popen(
        [*HAL, "run", "--memory", "1GiB", "--", "sh", "-c", "echo ready; read line"],
        env=machine_env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        (lease,) = run("list")["leases"]
        (ended,) = run("release", lease["id"])["leases"]
        assert (ended["id"], ended["state"]) == (lease["id"], "ending")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["list", "--nonsense"], 2),
        (["show"], 2),
        (["show", "no-such-device"], 3),
        (["sample", "--groups", "nonsense"], 2),
        (["emulate"], 2),
        (["emulate", "no-such-machine", "--", "true"], 3),
        (["emulate", "none", "--", "/no/such/command"], 127),
        (["emulate", "none", "--", "/dev/null"], 126),
        (["run"], 2),
        (["run", "--memory", "20", "--", "true"], 2),
        (["lease"], 2),
        (["lease", "list"], 6),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence_and_a_code(arguments: list[str], code: int, hal: Hal) -> None:
    started = time.monotonic()
    result = hal(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert re.fullmatch(r"hal: [^\n]+\n", result.stderr), result.stderr
    assert time.monotonic() - started < 30


def test_an_agent_that_knows_no_scheduler_says_where_to_name_it(hal: Hal, own_environment: Path) -> None:
    file = own_environment / "hal.toml"
    for found in ("(not found)", ""):
        said = hal("agent").stderr
        assert said.endswith(f"or name it under [agent] in {file} {found}".rstrip() + "\n"), said
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_text("")


def test_what_always_waits_offers_no_wait(hal: Hal) -> None:
    assert "--wait " in hal("run", "--help").stdout
    assert "--wait " not in hal("submit", "--help").stdout
    assert hal("submit", "--wait", "--", "true").returncode == 2


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    pipe = f"{sys.executable} -m hal emulate --list | true"
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""


def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([*HAL, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr
