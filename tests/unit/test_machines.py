"""The machines that come with hal are possible ones: partition pairs, MIG placements, heaps."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

from hal.emulation.description import load, names, parse
from hal.emulation.run import emulated

MODELS = sorted(
    file.name.removesuffix(".toml") for file in files("hal.emulation").joinpath("models").iterdir()
)
MACHINES = {name: load(name) for name in names()}

# NVIDIA, "MIG User Guide": id of the profile: compute slices, memory slices, where it may begin.
PLACEMENTS = {
    19: (1, 1, {0, 1, 2, 3, 4, 5, 6}), 20: (1, 1, {0, 1, 2, 3, 4, 5, 6}), 15: (1, 2, {0, 2, 4, 6}),
    14: (2, 2, {0, 2, 4}), 9: (3, 4, {0, 4}), 5: (4, 4, {0}), 0: (7, 8, {0}),
}  # fmt: skip
# The same guide: names, multiprocessors and memory in GiB as `nvidia-smi mig -lgip` prints it.
PROFILES: dict[str, dict[int, tuple[str, int, float]]] = {
    "a100-sxm-40gb": {
        19: ("1g.5gb", 14, 4.75), 20: ("1g.5gb+me", 14, 4.75), 15: ("1g.10gb", 14, 9.62),
        14: ("2g.10gb", 28, 9.62),
        9: ("3g.20gb", 42, 19.5), 5: ("4g.20gb", 56, 19.5), 0: ("7g.40gb", 98, 39.25)},
    "a100-sxm-80gb": {
        19: ("1g.10gb", 14, 9.5), 20: ("1g.10gb+me", 14, 9.5), 15: ("1g.20gb", 14, 19.5),
        14: ("2g.20gb", 28, 19.5),
        9: ("3g.40gb", 42, 39.25), 5: ("4g.40gb", 56, 39.25), 0: ("7g.80gb", 98, 78.5)},
    "h100-sxm-80gb": {
        19: ("1g.10gb", 16, 9.75), 20: ("1g.10gb+me", 16, 9.75), 15: ("1g.20gb", 26, 19.62),
        14: ("2g.20gb", 32, 19.62), 9: ("3g.40gb", 60, 39.5), 5: ("4g.40gb", 64, 39.5),
        0: ("7g.80gb", 132, 79.25)},
    "h200-sxm-141gb": {
        19: ("1g.18gb", 16, 16.0), 20: ("1g.18gb+me", 16, 16.0), 15: ("1g.35gb", 26, 32.5),
        14: ("2g.35gb", 32, 32.5), 9: ("3g.71gb", 60, 69.5), 5: ("4g.71gb", 64, 69.5),
        0: ("7g.141gb", 132, 140.0)},
}  # fmt: skip
ASK = """
import json, pynvml as n
from ctypes import byref, c_uint
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
found = {}
for number in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT):
    try:
        i = n.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number, 2)
    except n.NVMLError:
        continue
    places = (n.c_nvmlGpuInstancePlacement_t * 16)()
    count = c_uint(16)
    n.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, i.id, places, byref(count))
    name = i.name.decode() if isinstance(i.name, bytes) else i.name
    starts = sorted(place.start for place in places[:count.value])
    found[i.id] = [name, i.sliceCount, {p.size for p in places[:count.value]}.pop(), starts,
                   i.multiprocessorCount, i.memorySizeMB]
print(json.dumps(found))
"""


@pytest.mark.parametrize("model", PROFILES)
def test_profiles_and_placements_are_those_of_the_guide(model: str) -> None:
    text = f'schema = "hal.machine/1"\n[[devices]]\nmodel = "{model}"\npci = "0000:19:00.0"\nnvidia_mig = 1\n'
    with emulated(parse(text, "mig.toml")) as env:
        asked = subprocess.run(
            [sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=60
        )
    assert asked.returncode == 0, asked.stderr
    found = {int(id): facts for id, facts in json.loads(asked.stdout).items()}
    assert found.keys() == PROFILES[model].keys()
    for id, (name, slices, size, starts, units, mebibytes) in found.items():
        word, expected_units, gibibytes = PROFILES[model][id]
        assert name.removeprefix("MIG ") == word
        assert (slices, size, set(starts)) == PLACEMENTS[id], word
        assert units == expected_units, word
        assert mebibytes / 1024 == pytest.approx(gibibytes, abs=0.13), word


def partitioned() -> list[tuple[str, int]]:
    return [
        (name, n) for name, m in MACHINES.items() for n, d in enumerate(m.devices) if "nvidia_partition" in d
    ]


@pytest.mark.parametrize(("name", "number"), partitioned())
def test_mig_placements_are_legal(name: str, number: int) -> None:
    device = MACHINES[name].devices[number]
    ids = [19, 20, 15, 14, 9, 5, 0]  # by the stand-in's row
    taken: list[int] = []
    slices = 0
    for part in device["nvidia_partition"]:
        wide, size, starts = PLACEMENTS[ids[part["profile"]]]
        assert part["size"] == size
        assert part["start"] in starts
        taken += range(part["start"], part["start"] + size)
        slices += wide
        held: list[int] = []
        for compute in part["compute"]:
            assert [1, 2, 3, 4, 7][compute["profile"]] == compute["slices"]
            held += range(compute["start"], compute["start"] + compute["slices"])
        assert len(held) == len(set(held))
        assert set(held) <= set(range(wide))
        assert held
    assert len(taken) == len(set(taken)), "two instances share a memory slice"
    assert slices <= 7
    assert set(taken) <= set(range(8))
    assert device["nvidia_mig"] == 1


def test_there_is_a_machine_with_mig_and_one_with_partitions_and_one_with_both() -> None:
    mig = {name for name, _ in partitioned()}
    divided = {
        name
        for name, machine in MACHINES.items()
        if any(device.get("amd_compute_partition", "SPX") != "SPX" for device in machine.devices)
    }
    assert mig & divided
    assert divided - mig


def test_the_pairs_of_mi300x_are_those_of_linux_and_each_has_a_machine() -> None:
    model = tomllib.loads(files("hal.emulation").joinpath("models/mi300x.toml").read_text())
    legal = {tuple(pair) for pair in model["choices"]["amd_compute_partition+amd_memory_partition"]}
    # aqua_vanjaram.c: the modes of memory that go with each mode of compute.
    assert legal == {("SPX", "NPS1"), ("DPX", "NPS1"), ("DPX", "NPS2"), ("QPX", "NPS1"), ("QPX", "NPS4"),
                     ("CPX", "NPS1"), ("CPX", "NPS4")}  # fmt: skip
    shown = {
        (device["amd_compute_partition"], device["amd_memory_partition"])
        for name, machine in MACHINES.items()
        if name.startswith("mi300x-8")
        for device in machine.devices
    }
    assert shown == legal


@pytest.mark.parametrize(
    ("machine", "parts", "gibibytes"),
    [("mi300x-8", 1, 192), ("mi300x-8-dpx-nps1", 2, 96), ("mi300x-8-dpx-nps2", 2, 96),
     ("mi300x-8-qpx-nps1", 4, 48), ("mi300x-8-qpx-nps4", 4, 48),
     ("mi300x-8-cpx-nps1", 8, 24), ("mi300x-8-cpx-nps4", 8, 24)],
)  # fmt: skip
def test_a_divided_card_has_that_many_partitions(
    machine: str, parts: int, gibibytes: int, hal_json: Callable[..., Any]
) -> None:
    inventory = hal_json("list", on=machine)
    first = inventory["devices"][0]["id"]
    found = [s for s in inventory["slices"] if s["device"] == first and s["kind"] == "partition"]
    assert len(found) == (parts if parts > 1 else 0)
    for one in found:
        assert one["memory"]["mode"] == ("pool" if machine.endswith("nps1") else "exclusive")
        assert one["memory"]["bytes"] == pytest.approx(gibibytes << 30, rel=0.01)
        assert one["compute_units"] == 304 // parts


@pytest.mark.parametrize("machine", ["apu", "mixed-apu"])
def test_an_apu_has_a_small_heap_of_its_own_and_a_large_one_of_the_hosts(
    machine: str, hal_json: Callable[..., Any]
) -> None:
    (device,) = [d for d in hal_json("list", on=machine)["devices"] if "8060S" in d["model"]]
    assert [(heap["name"], heap["total_bytes"]) for heap in device["heaps"]] == [
        ("vram", 512 << 20),
        ("gtt", 67_108_864_000),
    ]
    readings = hal_json("sample", "--groups", "memory", on=machine)["readings"]
    gtt = {
        r["name"]: r["value"]
        for r in readings
        if r["labels"] == {"heap": "gtt"} and r["subject"] == device["id"]
    }
    assert gtt == {"memory_total_bytes": 67_108_864_000, "memory_used_bytes": 0}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_where_its_figures_are_from(name: str) -> None:
    text = files("hal.emulation").joinpath(f"models/{name}.toml").read_text()
    head, _, sensors = text.partition("[sensors]")
    assert head.startswith("# ")
    assert "data sheet" in head or "product page" in head
    assert "no data sheet" in head or "no public source" in head  # just above the sensors
    assert sensors
    load_one = f'schema = "hal.machine/1"\n[[devices]]\nmodel = "{name}"\npci = "0000:19:00.0"\n'
    assert parse(load_one, "one.toml").devices[0]["compute_units"] > 0


@pytest.mark.parametrize("name", names())
def test_a_machine_of_no_make_says_that_its_addresses_are_chosen(name: str) -> None:
    text = files("hal.emulation").joinpath(f"machines/{name}.toml").read_text()
    assert "pci_path" not in text or "no public source" in text
