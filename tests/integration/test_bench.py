"""`hal bench daemon` measures daemons of its own, or one that runs, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hal.scheduler.bench.rows import simulated
from tests.conftest import HAL, wait_until

Hal = Callable[..., subprocess.CompletedProcess[str]]


def figures(directory: Path, *arguments: str) -> dict[str, Any]:
    command = [
        *HAL,
        "bench",
        "daemon",
        "--seconds",
        "0.3",
        "--directory",
        str(directory),
        "--json",
        *arguments,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(directory.iterdir()) == []
    answer: dict[str, Any] = json.loads(result.stdout)
    assert next(iter(answer.items())) == ("schema", "hal.bench-daemon/1")
    return answer


@pytest.mark.parametrize(("row", "count"), [("grant", 8), ("bind", 2)])
def test_a_row_has_figures(row: str, count: int, tmp_path: Path) -> None:
    answer = figures(tmp_path, "--only", row)
    assert len(answer["figures"]) == count
    for figure in answer["figures"]:
        assert figure["value"] > 0, figure
        floor = figure["name"].startswith("nothing decided")
        assert figure["target"] == "" if floor else figure["target"].startswith(("≤ ", "≥ "))
        assert figure["reached"] in ((None,) if floor else (True, False))
        assert "refused" not in figure["remark"]
    assert {peer["name"] for peer in answer["peers"]} >= {"Slurm 22.05", "Ray 2.60"}


def test_one_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    command = [*HAL, "bench", "daemon", "--only", "grant", "--seconds", "60", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as bench:
        wait_until(lambda: any(tmp_path.rglob("scheduler.sock")), what="the start of its daemon")
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_with_what_it_is_compared(hal: Hal, tmp_path: Path) -> None:
    result = hal("bench", "daemon", "--only", "bind", "--seconds", "0.3", "--directory", str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert "with bind, 8 clients" in result.stdout
    assert "HyperQueue 0.27" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "grant,nothing"], "there is no row 'nothing'; there are grant, bind, "),
        (["--seconds", "0"], "--seconds is between"),
        (["--directory", "/no/such"], "there is no directory /no/such"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str, hal: Hal) -> None:
    result = hal("bench", "daemon", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"hal: {words}")


def test_a_daemon_that_runs_is_measured_as_it_is(hal: Hal) -> None:
    with simulated() as address:
        result = hal("bench", "daemon", "--address", address, "--seconds", "0.3", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert [one["target"] for one in json.loads(result.stdout)["figures"]] == ["", "", ""]


def test_a_daemon_that_is_not_there_is_said(hal: Hal) -> None:
    result = hal("bench", "daemon", "--address", "ipc:///tmp/no-such-scheduler.sock")
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr == "hal: no scheduler answers at ipc:///tmp/no-such-scheduler.sock\n"
