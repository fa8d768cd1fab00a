"""What all tests share: the real command line, real child processes, an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal_native import program

# A shell starts background jobs with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when numpy is first imported: beside threads of its BLAS, which nothing here uses, no worker is forked.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

HAL = [sys.executable, "-m", "hal"]
ALLOCATE = str(program("hal-allocate"))


@pytest.fixture(autouse=True)
def own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """No test sees the user's scheduler, slices or devices; paths are short enough for sockets."""
    for name in list(os.environ):
        if name.startswith(("HAL_", "CUDA_", "HIP_", "ROCR_", "ROCM_")) or name == "LD_PRELOAD":
            monkeypatch.delenv(name)
    directory = Path("/tmp") / f"hal-test-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    monkeypatch.setenv("HAL_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def hal() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``hal ARG…`` as a user does; ``on=MACHINE`` runs it on an emulated machine."""

    def run(*arguments: str, on: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*HAL, *arguments]
        if on is not None:
            command = [*HAL, "emulate", on, "--", *command]
        options.setdefault("timeout", 60)
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return run


@pytest.fixture
def hal_json(hal: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Any]:
    """Run a command that prints JSON, and read it."""

    def run(*arguments: str, on: str | None = None) -> Any:
        result = hal(*arguments, "--json", on=on)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(params=["mixed"])
def machine_env(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The environment of an emulated machine that lasts as long as the test: children find its devices."""
    with emulated(load(request.param)) as env:
        yield env


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0, what: str = "it") -> None:
    """Poll until true; fail the test after the time. The only place where a test waits for a clock."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)
