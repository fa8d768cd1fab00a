"""A slice's programs stay within their share of a device's time, by whatever function they launch."""

from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger, RunState
from tests.conftest import wait_until
from tests.integration.support import GIB, ask, line, start

PROGRAM = Path(__file__).parent / "launches.py"
GUARD = Path(__file__).parents[2] / "native/guard"
MS = 1_000_000
VENDORS = ("cuda", "hip")
USUAL = {"cuda": "cuLaunchKernel", "hip": "hipModuleLaunchKernel"}
# The stand-in knows these functions' kernels by an address in the program only, and takes 10 us for any.
NAMELESS = re.compile(r"hip(Ext)?Launch(Cooperative)?Kernel(_spt)?")

Launching = Callable[..., subprocess.Popen[str]]


def launch_functions(vendor: str) -> list[str]:
    """All that the guard's table of the vendor has."""
    table = (GUARD / f"{vendor}.h").read_text()
    rows = re.search(rf"#define {vendor.upper()}_LAUNCH_ROWS\(X\)((?:.*\\\n)+.*)", table)
    assert rows is not None
    return re.findall(r"X\((\w+),", rows[1])


FUNCTIONS = [(vendor, function) for vendor in VENDORS for function in launch_functions(vendor)]


@pytest.fixture
def slice_(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.create(tmp_path / "slice", "test", [("device-0", GIB)])
    yield ledger
    ledger.close()


@pytest.fixture
def launching(machine_env: dict[str, str]) -> Launching:
    def run(vendor: str, ledger: Ledger | None = None) -> subprocess.Popen[str]:
        env = machine_env | {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}
        env |= {"HAL_EMULATOR_QUEUE": "20ms"}
        if ledger is not None:
            env |= guard_environment(ledger.path, inherited={})
        return start(env, sys.executable, "-S", PROGRAM, vendor)

    return run


def charged_ns(ledger: Ledger) -> int:
    return int(ledger._ledger.device[0].share_charged_ns)


def owed_ns(ledger: Ledger) -> int:
    return int(ledger._ledger.device[0].share_until_ns) - time.monotonic_ns()


def launches(program: subprocess.Popen[str]) -> int:
    """How many it gets done in a while."""
    word, number = ask(program, "busy 1.5").split()
    assert word == "launches"
    return int(number)


def finish(program: subprocess.Popen[str]) -> None:
    _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")


def test_the_tables_are_found() -> None:
    assert {vendor: USUAL[vendor] in launch_functions(vendor) for vendor in VENDORS} == dict.fromkeys(
        VENDORS, True
    )
    assert len(FUNCTIONS) > 20


@pytest.mark.parametrize(("vendor", "function"), FUNCTIONS, ids=[function for _, function in FUNCTIONS])
def test_every_launch_function_is_charged(
    vendor: str, function: str, launching: Launching, slice_: Ledger
) -> None:
    slice_.set_compute(0, 0.5)
    program = launching(vendor, slice_)
    times = 520 if NAMELESS.fullmatch(function) else 5
    assert ask(program, f"launch {function} spin_1ms {times}") == "launched 0"
    finish(program)
    assert charged_ns(slice_) >= 4 * MS


@pytest.mark.parametrize("vendor", VENDORS)
def test_who_has_a_tenth_gets_less_than_half(vendor: str, launching: Launching, slice_: Ledger) -> None:
    free = launching(vendor)
    uncapped = launches(free)
    finish(free)
    slice_.set_compute(0, 0.1)
    program = launching(vendor, slice_)
    assert 0 < launches(program) < uncapped / 2
    finish(program)


@pytest.mark.parametrize(
    ("vendor", "first"),
    [("cuda", None), ("hip", None), ("hip", "launch hipModuleLaunchKernel spin_1ms 5")],
    ids=["cuda", "hip", "hip-after-launches"],
)
def test_the_child_of_a_fork_is_limited(
    vendor: str, first: str | None, launching: Launching, slice_: Ledger
) -> None:
    """CUDA and HIP allow no fork once they are in use; the stand-in HIP lets it be."""
    free = launching(vendor)
    uncapped = launches(free)
    finish(free)
    slice_.set_compute(0, 0.1)
    program = launching(vendor, slice_)
    if first is not None:
        assert ask(program, first) == "launched 0"
    assert ask(program, "fork") == "forked"
    before = charged_ns(slice_)
    assert 0 < launches(program) < uncapped / 2
    assert charged_ns(slice_) > before
    finish(program)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_capture_survives_and_its_graph_is_charged(
    vendor: str, launching: Launching, slice_: Ledger
) -> None:
    slice_.set_compute(0, 0.5)
    program = launching(vendor, slice_)
    assert ask(program, f"launch {USUAL[vendor]} spin_1ms 10") == "launched 0"
    assert ask(program, f"launch {USUAL[vendor]} other_1us 1") == "launched 0"
    before = charged_ns(slice_)
    assert ask(program, "capture spin_1ms 20") == "captured 0"
    assert charged_ns(slice_) - before < 4 * MS  # the other stream's at most
    before = charged_ns(slice_)
    graph = "cuGraphLaunch" if vendor == "cuda" else "hipGraphLaunch"
    assert ask(program, f"launch {graph} - 3") == "launched 0"
    assert charged_ns(slice_) - before >= 40 * MS
    finish(program)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("ratio", [None, 0.5], ids=["free", "capped"])
def test_pause_holds_a_launch(vendor: str, ratio: float | None, launching: Launching, slice_: Ledger) -> None:
    slice_.set_compute(0, ratio)
    program = launching(vendor, slice_)
    command = f"launch {USUAL[vendor]} spin_1ms 1"
    assert ask(program, command) == "launched 0"
    slice_.set_state(RunState.PAUSE)
    assert program.stdin is not None
    program.stdin.write(f"{command}\n")
    program.stdin.flush()
    assert select.select([program.stdout], [], [], 0.5)[0] == []
    slice_.set_state(RunState.RUN)
    assert line(program) == "launched 0"
    finish(program)


@pytest.mark.parametrize("vendor", VENDORS)
def test_all_of_the_device_wakes_a_sleeper(vendor: str, launching: Launching, slice_: Ledger) -> None:
    slice_.set_compute(0, 0.001)
    program = launching(vendor, slice_)
    assert program.stdin is not None
    program.stdin.write(f"launch {USUAL[vendor]} spin_200ms 5\n")
    program.stdin.flush()
    wait_until(lambda: owed_ns(slice_) > 300_000 * MS, what="a long sleep")
    assert select.select([program.stdout], [], [], 0)[0] == []
    slice_.set_compute(0, 1)
    assert select.select([program.stdout], [], [], 60)[0], "it sleeps on"
    assert line(program) == "launched 0"
    finish(program)


@pytest.mark.parametrize("beside", [True, False], ids=["beside-another", "alone"])
def test_a_corrected_charge_stays_when_its_estimate_falls(
    beside: bool, launching: Launching, slice_: Ledger
) -> None:
    """What was measured beside another and corrected for that is not charged half when measured alone."""
    slice_.set_compute(0, 0.9)
    slice_.set_trim(0, 500)
    program, other = launching("cuda", slice_), launching("cuda")
    assert ask(other, "launch cuLaunchKernel other_1us 1") == "launched 0"
    command = f"launch {USUAL['cuda']} spin_100ms 3"
    if beside:
        assert other.stdin is not None
        other.stdin.write("busy 600\n")
        other.stdin.flush()
    assert ask(program, command) == "launched 0"
    other.kill()
    other.communicate()
    assert slice_.trim(0) == 500 or not beside
    assert ask(program, command) == "launched 0"
    assert (slice_.trim(0) > 700) == beside
    finish(program)
