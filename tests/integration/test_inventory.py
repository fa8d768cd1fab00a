"""`hal list`, `hal sample` and `hal doctor` on emulated machines, by the vendors' own Python libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ALLOCATE, HAL, wait_until

MIB = 1 << 20
Hal = Callable[..., subprocess.CompletedProcess[str]]
HalJson = Callable[..., Any]


def sampled(env: dict[str, str]) -> dict[str, Any]:
    result = subprocess.run([*HAL, "sample", "--json"], env=env, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def holders(sample: dict[str, Any]) -> set[tuple[int, str, int]]:
    return {
        (process["pid"], process["device"], process["memory_bytes"])
        for process in sample["processes"]
        if not process["device"].startswith("cpu:")
    }


def used(sample: dict[str, Any], vendor: str) -> list[int]:
    return [
        reading["value"]
        for reading in sample["readings"]
        if reading["labels"].get("heap") == "vram"
        and reading["name"] == "memory_used_bytes"
        and reading["subject"].startswith(f"{vendor}:")
    ]


@pytest.mark.parametrize(
    ("machine", "accelerators"),
    [
        ("mixed", {"nvidia": 2, "amd": 2}),
        ("dgx-h100", {"nvidia": 8}),
        ("mi300x-8", {"amd": 8}),
        ("none", {}),
    ],
)
def test_list_shows_every_device_of_every_vendor_once(
    machine: str, accelerators: dict[str, int], hal_json: HalJson
) -> None:
    first, again = (hal_json("list", on=machine) for _ in range(2))
    devices = first["devices"]
    assert first["schema"] == "hal.inventory/1"
    assert Counter((d["vendor"], d["kind"]) for d in devices) == {
        ("cpu", "cpu"): 1,
        **{(vendor, "gpu"): count for vendor, count in accelerators.items()},
    }
    ids = [device["id"] for device in devices]
    assert len(set(ids)) == len(ids)
    assert all(device["id"].startswith(f"{device['vendor']}:") for device in devices)
    assert [device["id"] for device in again["devices"]] == ids
    assert [one["id"] for one in first["slices"]] == [f"{id}/whole" for id in ids]


def test_list_without_an_accelerator_says_so_and_succeeds(hal: Hal) -> None:
    result = hal("list", on="none")
    assert (result.returncode, result.stderr) == (0, "")
    assert "This machine has no accelerator that hal can see; 'hal doctor' says" in result.stdout


def test_doctor_without_an_accelerator_names_each_backend_with_reason_and_fix(
    hal: Hal, hal_json: HalJson
) -> None:
    backends = hal_json("doctor", on="none")["backends"]
    assert {name: probe["state"] for name, probe in backends.items()} == {
        "amd": "absent",
        "cpu": "ready",
        "null": "absent",
        "nvidia": "absent",
    }
    for name in ("amd", "nvidia"):
        assert "driver is not loaded, and no GPU is on the PCI bus" in backends[name]["reason"]
    assert backends["null"]["fix"] == "set HAL_NULL=1"
    table = hal("doctor", on="none")
    assert table.returncode == 0
    for name, probe in backends.items():
        (row,) = [line for line in table.stdout.splitlines() if line.startswith(f"{name} ")]
        assert probe["reason"] in row
        assert probe["fix"] in row


def test_doctor_says_what_the_devices_can_do(hal_json: HalJson) -> None:
    answer = hal_json("doctor", on="mixed")
    gpus = {id: groups for id, groups in answer["capabilities"].items() if not id.startswith("cpu:")}
    assert len(gpus) == 4
    basic = ("memory", "activity", "power", "temperature", "clocks", "state")
    assert {groups[name] for groups in gpus.values() for name in basic} == {"yes"}
    assert all(answer["soft_slice_enforcement"][id]["memory"] == "guard" for id in gpus)


@pytest.mark.parametrize(("runtime", "vendor"), [("cuda", "nvidia"), ("hip", "amd")])
def test_the_management_library_sees_what_the_runtime_allocates(
    runtime: str, vendor: str, machine_env: dict[str, str]
) -> None:
    """Per process, until it frees or is killed; and no other vendor's devices are concerned."""
    programs = []
    try:
        for size in (300, 700):
            programs.append(
                subprocess.Popen(
                    [ALLOCATE, runtime, "alloc", str(size), "wait"],
                    env=machine_env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            assert programs[-1].stdout is not None
            assert programs[-1].stdout.readline().startswith("device ")
            assert programs[-1].stdout.readline() == f"allocated bytes={size * MIB} held={size * MIB}\n"
        small, large = programs
        sample = sampled(machine_env)
        other = "amd" if vendor == "nvidia" else "nvidia"
        assert (used(sample, vendor), used(sample, other)) == ([1000 * MIB, 0], [0, 0])
        (first, *_) = [r["subject"] for r in sample["readings"] if r["subject"].startswith(f"{vendor}:")]
        assert holders(sample) == {(small.pid, first, 300 * MIB), (large.pid, first, 700 * MIB)}
        large.kill()
        large.wait()
        sample = sampled(machine_env)
        assert used(sample, vendor) == [300 * MIB, 0]
        assert holders(sample) == {(small.pid, first, 300 * MIB)}
        small.communicate(timeout=60)
        wait_until(lambda: used(sampled(machine_env), vendor) == [0, 0])
    finally:
        for program in programs:
            program.kill()
            program.communicate()


@pytest.mark.parametrize("machine", ["mixed", "none"])
def test_a_reading_has_a_value_exactly_when_it_is_known(machine: str, hal_json: HalJson) -> None:
    readings = hal_json("sample", on=machine)["readings"]
    assert {reading["subject"].split(":")[0] for reading in readings} >= {"cpu"}
    for reading in readings:
        if reading["status"] in ("ok", "estimated", "saturated"):
            assert type(reading["value"]) in (int, float), reading
        else:
            assert reading["value"] is None, reading
            assert reading["status"] in ("unsupported", "denied", "stale", "error")
    assert {reading["status"] for reading in readings} >= {"ok", "unsupported"}


@pytest.mark.parametrize("command", ["list", "sample", "doctor", "show"])
@pytest.mark.parametrize("machine", ["mixed", "none"])
def test_nothing_but_the_answer_is_printed(command: str, machine: str, hal: Hal) -> None:
    """amdsmi prints to stdout when it is imported or cannot be used: that must not reach the user."""
    operand = ["cpu"] if command == "show" else []
    result = hal(command, *operand, "--json", on=machine)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith('{\n  "schema": "hal.')
    json.loads(result.stdout)


def test_a_reader_that_leaves_is_no_error(machine_env: dict[str, str]) -> None:
    pipeline = f"set -o pipefail; {sys.executable} -m hal sample --json | head -c 1"
    result = subprocess.run(
        ["bash", "-c", pipeline], env=machine_env, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in result.stderr
    assert result.stdout == "{"
