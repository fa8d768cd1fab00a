"""The units that are shipped: systemd takes them, and they keep what programs need."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systemctl import UNITS, settings

NAMES = sorted(path.stem for path in UNITS.glob("*.service"))


def test_there_are_two() -> None:
    assert NAMES == ["hal-agent", "hal-scheduler"]


@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_it(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    text = (UNITS / f"{name}.service").read_text()
    (tmp_path / f"{name}.service").write_text(text.replace("/opt/hal/bin/hal", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", f"./{name}.service"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, [])


@pytest.mark.parametrize("name", NAMES)
def test_programs_outlive_a_restart(name: str) -> None:
    said = settings(name)
    assert (said["KillMode"], said["RuntimeDirectoryPreserve"], said["Restart"]) == (
        "process",
        "yes",
        "always",
    )
    assert said["RuntimeDirectoryMode"] == "0700"


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_quick_deaths_is_the_end(name: str) -> None:
    said = settings(name)
    assert (said["StartLimitIntervalSec"], said["RestartSec"]) == ("0", "2")


@pytest.mark.parametrize("name", NAMES)
def test_a_start_that_fails_is_seen_by_who_asked_for_it(name: str) -> None:
    assert settings(name)["Type"] == "notify"
