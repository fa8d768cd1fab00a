"""The AMD backend over the real amdsmi and the stand-in library: partitions, links, library versions."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated

if importlib.util.find_spec("amdsmi") is None:
    pytest.skip("AMD's package amdsmi is not installed", allow_module_level=True)

LOOK = """
import json, math, sys
from msgspec import to_builtins
import hal_amd
from hal.backend import Group
backend = hal_amd.Backend()
probe = backend.probe()
inventory = backend.enumerate()
ids = [device.id for device in inventory.devices]
ids += [piece.id for piece in inventory.slices if piece.parent]
readings = backend.sample(list(Group), ids, math.inf)
exposed = {subject: backend.expose([subject]).env for subject in ids}
print(json.dumps(to_builtins([probe, inventory, readings, exposed])))
"""

PAIRS = {
    ("SPX", "NPS1"): 1, ("DPX", "NPS1"): 2, ("DPX", "NPS2"): 2, ("QPX", "NPS1"): 4,
    ("QPX", "NPS4"): 4, ("CPX", "NPS1"): 8, ("CPX", "NPS4"): 8,
}  # fmt: skip


@pytest.fixture
def look(tmp_path):
    """What the backend shows on a machine with two MI300X."""

    def run(model="mi300x", major=26, **figures):
        lines = ['schema = "hal.machine/1"', "[drivers]", 'amd_driver = "6.14.14"']
        lines += [f"amdsmi_major = {major}", "hip_version = 70051831"]
        for bus in ("05", "26"):
            lines += ["[[devices]]", f'model = "{model}"', f'pci = "0000:{bus}:00.0"', "numa_node = 0"]
            lines += [f"{name} = {json.dumps(value)}" for name, value in figures.items()]
        path = tmp_path / "machine.toml"
        path.write_text("\n".join(lines))
        with emulated(load(str(path))) as env:
            done = subprocess.run(
                [sys.executable, "-c", LOOK], env=env, capture_output=True, text=True, check=False, timeout=60
            )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        probe, inventory, readings, exposed = json.loads(done.stdout)
        found = {(r["subject"], r["name"], *r.get("labels", {}).values()): r for r in readings}
        assert len(found) == len(readings), "two readings of one figure"
        for reading in readings:
            known = reading.get("status", "ok") in ("ok", "estimated", "saturated")
            assert (reading["value"] is not None) == known, reading
        return probe, inventory, found, exposed

    return run


CARD = "amd:pci-0000:05:00.0"
TOTAL = 206_141_652_992


@pytest.mark.parametrize(("pair", "count"), PAIRS.items())
def test_every_legal_pair_of_modes(look, pair, count):
    compute, memory = pair
    _, inventory, readings, exposed = look(
        amd_compute_partition=compute, amd_memory_partition=memory, compute_busy_percent=40
    )
    assert [device["id"] for device in inventory["devices"]] == [CARD, "amd:pci-0000:26:00.0"]
    device = inventory["devices"][0]
    assert device["compute_units"] == 304
    assert device["heaps"][0]["total_bytes"] == TOTAL
    assert device["attributes"]["amd.memory_partition"] == memory
    parts = [s for s in inventory["slices"] if s["device"] == CARD and s.get("parent")]
    assert len(parts) == (count if count > 1 else 0)
    for number, part in enumerate(parts):
        assert part["id"] == f"{CARD}/xcp-{number}"
        assert (part["kind"], part["parent"]) == ("partition", f"{CARD}/whole")
        assert part["profile"] == f"{compute}/{memory}"
        assert part["compute_units"] == 304 // count
        assert part["compute_ratio"] == 1 / count
        assert part["memory"]["bytes"] == TOTAL // count
        assert part["memory"]["mode"] == ("pool" if memory == "NPS1" else "exclusive")
        assert part.get("uuid") is None  # library 26 gives all of them the same
        ranges = int(memory[3:])
        assert part["attributes"]["amd.memory_range"] == str(number * ranges // count)
        busy = readings[part["id"], "compute_busy_ratio"]
        assert (busy["value"], busy["scope"]) == (0.4, "slice")
        power = readings[part["id"], "power_watts", "instant"]
        assert (power["value"], power["scope"]) == (140, "parent")
        total = readings[part["id"], "memory_total_bytes", "vram"]
        own = (TOTAL // count, "slice") if number else (TOTAL, "parent")  # the first shows the whole card
        assert (total["value"], total["scope"]) == own
        clocks = [k for k in readings if k[:2] == (part["id"], "clock_hertz") and k[2].startswith("compute")]
        assert len(clocks) == 8 // count
        assert exposed[part["id"]] == {"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": str(number)}
    if parts:
        assert exposed[CARD]["ROCR_VISIBLE_DEVICES"] == ",".join(map(str, range(count)))
        assert sum(part["memory"]["bytes"] for part in parts) <= TOTAL


@pytest.mark.parametrize("model", ["mi210", "mi250x"])
def test_parts_that_cannot_be_divided(look, model):
    _, inventory, readings, _ = look(model)
    wholes = [f"{device['id']}/whole" for device in inventory["devices"]]
    assert [piece["id"] for piece in inventory["slices"]] == wholes
    assert "amd.compute_partition" not in inventory["devices"][0].get("attributes", {})
    assert readings[CARD, "power_watts", "average"]["value"] > 0
    assert readings[CARD, "power_watts", "instant"]["status"] == "unsupported"
    assert readings[CARD, "temperature_celsius", "hbm3"]["value"] == 41
    assert readings[CARD, "clock_hertz", "compute"]["value"] == 800_000_000
    assert readings[CARD, "throttle_active", "power"]["status"] == "unsupported"


@pytest.mark.parametrize("major", [24, 25, 26, 27])
def test_library_versions(look, major):
    """Whatever the numbers of the link types are, and whatever must not be asked."""
    probe, inventory, readings, _ = look(
        major=major, amd_hive=1, amd_compute_partition="CPX", amd_memory_partition="NPS4"
    )
    assert probe["state"] == "ready"
    assert [(link["kind"], link["bandwidth_bytes_per_second"]) for link in inventory["links"]] == [
        ("xgmi", 64_000_000_000)
    ]
    busy = readings[f"{CARD}/xcp-1", "compute_busy_ratio"]
    if major == 26:
        assert probe.get("reason", "") == ""
        assert busy["value"] == 0
    else:
        assert f"this one is {major}" in probe["reason"]
        assert "ROCm" in probe["fix"]
        assert (busy["value"], busy["status"]) == (None, "unsupported")
        assert "not asked" in busy["detail"]
        assert readings[CARD, "throttle_seconds_total", "power"]["status"] == "unsupported"
    parts = [piece for piece in inventory["slices"] if piece.get("parent")]
    assert len(parts) == 16
    assert len({piece["id"] for piece in parts}) == 16
    uuids = {piece.get("uuid") for piece in parts}
    assert len(uuids) == (16 if major == 27 else 1)
    assert readings[CARD, "temperature_celsius", "hotspot"]["value"] == 40


def test_cards_without_a_hive_are_joined_by_pcie(look):
    _, inventory, readings, _ = look()
    (link,) = inventory["links"]
    assert (link["kind"], link["bandwidth_bytes_per_second"], link["status"]) == ("pcie", None, "unsupported")
    assert readings[CARD, "link_up", "0"]["status"] == "unsupported"


def test_dies_that_are_not_joined_themselves():
    with emulated(load("mi250x-4")) as env:
        done = subprocess.run(
            [sys.executable, "-c", LOOK], env=env, capture_output=True, text=True, check=True, timeout=60
        )
    links = json.loads(done.stdout)[1]["links"]
    speeds = {link["bandwidth_bytes_per_second"] for link in links if link["kind"] == "xgmi"}
    assert speeds == {200_000_000_000, None}  # within a package; between packages nobody says
    assert sum(link["kind"] == "xgmi" for link in links) == 12
    assert {link["bandwidth_bytes_per_second"] for link in links if link["kind"] == "xgmi_hops"} == {None}
    assert len(links) == 28


def test_figures(look):
    _, _, readings, _ = look(
        amd_hive=1,
        amd_ecc_corrected=5,
        amd_ecc_uncorrected=1,
        amd_bad_pages=3,
        amd_bad_pages_pending=1,
        amd_pcie_replays=7,
        amd_pcie_naks_sent=2,
        amd_pcie_naks_received=3,
        amd_media_busy_percent=30,
        amd_gtt_bytes=64 << 30,
        amd_visible_bytes=256 << 20,
        amd_fan_level=51,
        amd_fan_rpm=900,
        amd_pcie_generation=4,
        amd_throttled_percent=20,
        compute_busy_percent=50,
    )
    value = {key[1:]: reading["value"] for key, reading in readings.items() if key[0] == CARD}
    assert value["compute_busy_ratio",] == 0.5
    assert value["ecc_errors_total", "corrected", "volatile", "all"] == 5
    assert value["ecc_errors_total", "uncorrected", "volatile", "umc"] == 1
    assert value["ecc_errors_total", "corrected", "volatile", "gfx"] == 0
    assert (value["pages_retired", "all"], value["pages_retirement_pending",]) == (3, 1)
    assert value["pcie_replays_total",] == 7
    assert value["pcie_naks_total",] == 5
    assert value["fan_rpm", "0"] == 900
    assert (value["partition_mode", "compute", "SPX"], value["partition_mode", "compute", "CPX"]) == (1, 0)
    assert (value["partition_mode", "memory", "NPS1"], value["partition_mode", "memory", "NPS4"]) == (1, 0)
    assert (value["throttle_active", "hbm"], value["throttle_seconds_total", "vr"]) == (0, 0)
    assert (value["media_busy_ratio",], value["fan_ratio", "0"]) == (0.3, 0.2)
    assert value["memory_total_bytes", "gtt"] == 64 << 30
    assert value["memory_total_bytes", "bar1"] == 256 << 20
    assert (value["pcie_generation",], value["pcie_generation_max",], value["pcie_width",]) == (4, 5, 16)
    assert (value["throttle_active", "power"], value["throttle_active", "thermal"]) == (None, 0)
    assert readings[CARD, "throttle_active", "power"]["status"] == "stale"  # a first look
    assert readings[CARD, "throttle_seconds_total", "power"]["status"] == "stale"
    assert value["link_up", "0"] == 1
    assert value["link_speed_bytes_per_second", "0"] == 64_000_000_000
    assert value["power_limit_min_watts",] == 0
    assert value["power_limit_default_watts",] == 750
    assert value["energy_joules_total",] > 0
    assert value["temperature_limit_celsius", "memory_max"] == 105


def test_two_looks_give_the_length_of_a_cycle(tmp_path):
    """A fifth of the time between them, and of the time before."""
    script = """
import json, math, time, hal_amd
from hal.backend import Group
b = hal_amd.Backend()
(card, *_) = [d.id for d in b.enumerate().devices]
said = []
for _ in range(2):
    held = {r.name: r for r in b.sample([Group.THROTTLE], [card], math.inf) if r.labels["reason"] == "power"}
    said.append([held["throttle_seconds_total"].value, held["throttle_seconds_total"].status,
                 held["throttle_active"].value])
    energy = [r.value for r in b.sample([Group.POWER], [card], math.inf) if r.name == "energy_joules_total"]
    said.append(energy[0])
    time.sleep(0.3)
print(json.dumps(said))
"""
    path = tmp_path / "machine.toml"
    path.write_text(
        'schema = "hal.machine/1"\n[drivers]\namdsmi_major = 26\n[[devices]]\nmodel = "mi300x"\n'
        'pci = "0000:05:00.0"\namd_throttled_percent = 20\n'
    )
    with emulated(load(str(path))) as env:
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
        )
    first, before, second, after = json.loads(done.stdout)
    assert first == [None, "stale", None]
    assert second[1:] == ["estimated", 1]
    assert 0.05 < second[0] < 5
    assert 0.3 * 140 * 0.8 < after - before < 5 * 140
