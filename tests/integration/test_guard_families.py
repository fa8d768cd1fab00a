"""Every family of CUDA's memory functions stops exactly at the slice's limit and gives everything back,
however and whenever a program reaches it, and however many processes share the slice."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger
from hal_native import drivers_directory

HERE = Path(__file__).parent
GIB, MIB = 1 << 30, 1 << 20
CHUNK = 32 * MIB  # what pools grow by
DEVICE = 85_520_809_984  # of the machine `mixed`
FAMILIES = [
    "alloc", "alloc1", "pitch", "pitch1", "managed",
    "async", "async_own", "async_free", "pool", "pool_own", "pool_gone",
    "vmm", "mapped", "shared",
    "array", "array1", "deep", "deep1", "mipmap",
    "graph", "graph1", "graph2", "graph3", "graph4", "captured",
    "destroyed", "destroyed1", "reset", "reset1", "released", "released1",
]  # fmt: skip
# Memory that no node frees stays with its graph until the process ends.
KEEPS = {"graph", "graph1", "graph2", "graph3", "graph4", "captured"}
FRAMES = [
    ("linked", "main"),
    ("dlsym", "main"),
    ("proc", "main"),
    ("linked", "constructor"),
    ("proc", "child"),
]


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name, options in {
        "open": [],
        "linked": ["-DLINKED", f"-L{drivers_directory()}", "-Wl,--no-as-needed", "-l:libcuda.so.1"],
    }.items():
        command = ["cc", "-Wall", "-Werror", "-o", name, HERE / "families.c", *options, "-ldl"]
        subprocess.run(command, cwd=folder, check=True)
    return folder


Fill = Callable[..., "Filling"]


class Filling:
    """A program that has taken all it could."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def full(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("full "), (line, self._process.communicate("\n\n", timeout=30))
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}

    def free(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def finish(self) -> str:
        _, errors = self._process.communicate("\n", timeout=30)
        assert self._process.returncode == 0
        return errors


@pytest.fixture
def fill(builds: Path, machine_env: dict[str, str]) -> Iterator[Fill]:
    running: list[subprocess.Popen[str]] = []

    def run(
        family: str, how: str = "dlsym", when: str = "main", *, ledger: Path | None = None, chunk: int = CHUNK
    ) -> Filling:
        env = machine_env | {"CUDA_VISIBLE_DEVICES": "0"}
        if ledger is not None:
            env |= guard_environment(ledger, inherited={})
        command = [builds / ("linked" if how == "linked" else "open"), how, when, family, str(chunk // MIB)]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return Filling(running[-1])

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def slice_(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.create(tmp_path / "slice", "test", [("device-0", GIB)])
    yield ledger
    ledger.close()


def used(ledger: Ledger) -> int:
    return ledger.devices()[0].used_bytes


@pytest.mark.parametrize(("how", "when"), FRAMES, ids=[f"{how}-{when}" for how, when in FRAMES])
@pytest.mark.parametrize("family", FAMILIES)
def test_stops_at_the_limit_and_gives_back(
    family: str, how: str, when: str, fill: Fill, slice_: Ledger
) -> None:
    program = fill(family, how, when, ledger=slice_.path)
    assert program.full() == {"held": GIB, "code": 2, "untouched": 1, "free": 0, "total": GIB, "all": GIB}
    assert used(slice_) == GIB
    assert program.free() == "freed bad=0"
    assert used(slice_) == (GIB if family in KEEPS else 0)
    assert re.match(
        r"hal: slice test: refused 0.03 GiB: 1.00 of 1.00 GiB in use on device-0\n", program.finish()
    )
    assert used(slice_) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_is_the_same_without_a_slice(family: str, fill: Fill) -> None:
    """The stand-in itself ends at the device's memory, and what a family frees is free."""
    program = fill(family, chunk=1024 * MIB)
    full = program.full()
    assert full["code"] == 2
    assert full["held"] <= DEVICE < full["held"] + GIB
    assert full["all"] == full["total"] == DEVICE
    assert program.free() == "freed bad=0"
    assert program.finish() == ""


@pytest.mark.parametrize("processes", [4, 16])
@pytest.mark.parametrize(
    "family", ["alloc", "pitch", "managed", "async", "pool", "vmm", "mapped", "array", "mipmap", "graph"]
)
def test_processes_together_stop_at_the_limit(
    family: str, processes: int, fill: Fill, slice_: Ledger
) -> None:
    programs = [fill(family, ledger=slice_.path) for _ in range(processes)]
    held = [program.full() for program in programs]
    assert sum(one["held"] for one in held) == GIB
    assert {one["code"] for one in held} == {2}
    assert used(slice_) == GIB
    for program in programs:
        assert program.free() == "freed bad=0"
        program.finish()
    assert used(slice_) == 0
