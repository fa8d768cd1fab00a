"""Every family of HIP's memory functions stops exactly at the slice's limit and gives everything back, by
whatever way and at whatever time a program reaches it, by either soname, and where the runtime re-enters."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger
from hal_native import drivers_directory
from tests.integration.test_guard_families import Filling, used

HERE = Path(__file__).parent
GIB, MIB = 1 << 30, 1 << 20
CHUNK = 32 * MIB
FAMILIES = [
    "alloc", "flags", "managed", "pitch", "pitch2", "solid",
    "async", "async_own", "async_free", "pool", "pool_trim", "pool_gone",
    "vmm", "mapped", "shared",
    "array", "array3", "flat", "deep", "mipmap", "mipmap2",
    "graph", "graph1", "graph2", "captured",
    "reset", "reset_array", "reset_pool", "reset_primary",
]  # fmt: skip
# Memory that no node frees stays with its graph until the process ends.
KEEPS = {"graph", "graph1", "graph2", "captured"}
FRAMES = [
    ("linked", "main", 7, {}),
    ("dlsym", "main", 6, {}),
    ("proc", "main", 7, {}),
    ("linked", "constructor", 6, {}),
    ("proc", "child", 7, {}),
    ("linked", "main", 6, {"HAL_EMULATOR_HIP_REENTERS": "1"}),
    ("dlsym", "main", 7, {"HAL_EMULATOR_HIP_REENTERS": "1"}),
]
NAMES = [f"{how}-{when}-{soname}{'-reenters' if env else ''}" for how, when, soname, env in FRAMES]


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families-hip")
    linked = ["-DLINKED", f"-L{drivers_directory()}", "-Wl,--no-as-needed"]
    for name, options in {
        "open": [],
        "linked6": [*linked, "-l:libamdhip64.so.6"],
        "linked7": [*linked, "-l:libamdhip64.so.7"],
    }.items():
        command = ["cc", "-Wall", "-Werror", "-o", name, HERE / "families_hip.c", *options, "-ldl"]
        subprocess.run(command, cwd=folder, check=True)
    return folder


Fill = Callable[..., Filling]


@pytest.fixture
def fill(builds: Path, machine_env: dict[str, str]) -> Iterator[Fill]:
    running: list[subprocess.Popen[str]] = []

    def run(
        family: str,
        how: str = "dlsym",
        when: str = "main",
        soname: int = 7,
        *,
        ledger: Path | None = None,
        chunk: int = CHUNK,
        env: dict[str, str] | None = None,
        visible: str = "0",
    ) -> Filling:
        whole = machine_env | {"HIP_VISIBLE_DEVICES": visible} | (env or {})
        if ledger is not None:
            whole |= guard_environment(ledger, inherited={})
        build = f"linked{soname}" if how == "linked" else "open"
        words = [how, when, family, str(chunk // MIB), f"libamdhip64.so.{soname}"]
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(
                [builds / build, *words], env=whole, stdin=pipe, stdout=pipe, stderr=pipe, text=True
            )
        )
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


FULL = {"held": GIB, "code": 2, "last": 2, "untouched": 1, "free": 0, "total": GIB, "all": GIB, "same": 1}


@pytest.mark.parametrize(("how", "when", "soname", "env"), FRAMES, ids=NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_stops_at_the_limit_and_gives_back(
    family: str, how: str, when: str, soname: int, env: dict[str, str], fill: Fill, slice_: Ledger
) -> None:
    program = fill(family, how, when, soname, ledger=slice_.path, env=env)
    assert program.full() == FULL
    assert used(slice_) == GIB
    assert program.free() == "freed bad=0"
    assert used(slice_) == (GIB if family in KEEPS else 0)
    assert re.match(
        r"hal: slice test: refused 0.03 GiB: 1.00 of 1.00 GiB in use on device-0\n", program.finish()
    )
    assert used(slice_) == 0


@pytest.mark.parametrize("env", [{}, {"HAL_EMULATOR_HIP_REENTERS": "1"}], ids=["plain", "reenters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_is_the_same_without_a_slice(family: str, env: dict[str, str], fill: Fill) -> None:
    """The stand-in itself ends at the device's memory, and what a family frees is free."""
    program = fill(family, chunk=1024 * MIB, env=env)
    full = program.full()
    assert (full["code"], full["last"], full["untouched"], full["same"]) == (2, 2, 1, 1)
    assert full["held"] <= full["total"] == full["all"] < full["held"] + 2 * GIB
    assert program.free() == "freed bad=0"
    assert program.finish() == ""


@pytest.mark.parametrize("processes", [4, 16])
@pytest.mark.parametrize("family", FAMILIES[: FAMILIES.index("reset")])
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


def test_a_primary_reset_that_keeps_memory_keeps_its_charge(fill: Fill, slice_: Ledger) -> None:
    """As ROCm 6 does it: were the charge given back, the slice could have the memory twice."""
    program = fill("reset_primary", ledger=slice_.path, env={"HAL_EMULATOR_HIP_KEEPS": "1"})
    assert program.full() == FULL
    assert program.free() == "freed bad=0"
    assert used(slice_) == GIB
    program.finish()
