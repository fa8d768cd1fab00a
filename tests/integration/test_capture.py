"""A captured machine, emulated, is the one that was captured: devices, slices, links, figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hal.emulation.capture import captured
from hal.emulation.description import load, names, parse
from hal.model import Device, DeviceKind, Pci, Portrait

Hal = Callable[..., subprocess.CompletedProcess[str]]

# All that is compared, in one process on the machine: the readings that do not change by themselves.
LOOK = """
import json, sys, hal
from hal.backend import Cost
from hal.model import jsonable
from hal.telemetry.catalogue import CATALOGUE
with hal.Machine() as machine:
    seen = machine.inventory()
    readings = machine.sample()
passing = {"energy_joules_total", "throttle_seconds_total"}  # they grow with the machine's age
readings = [
    (str([r.subject, r.name, sorted(r.labels.items())]), r.name, CATALOGUE[r.name].cost is Cost.STATIC,
     None if r.name in passing else r.value, r.status)
    for r in readings if not r.subject.startswith("cpu:")
]
inventory = jsonable(seen)
inventory["devices"] = [d for d in inventory["devices"] if d["vendor"] != "cpu"]
inventory["slices"] = [s for s in inventory["slices"] if not s["device"].startswith("cpu:")]
print(json.dumps({"inventory": inventory, "readings": readings}))
"""
# Of the readings that may change, those that a capture has; what backends come to read later may be lost.
KEPT = {
    "clock_hertz", "compute_busy_ratio", "decoder_busy_ratio", "ecc_errors_total", "encoder_busy_ratio",
    "jpeg_busy_ratio", "link_up", "memory_bandwidth_busy_ratio", "memory_free_bytes", "memory_reserved_bytes",
    "memory_total_bytes", "memory_used_bytes", "pcie_generation", "pcie_replays_total", "pcie_width",
    "performance_state", "power_limit_watts", "power_watts", "rows_remap_failed", "rows_remapped",
    "pages_retired", "rows_remap_pending", "temperature_celsius", "throttle_active",
}  # fmt: skip


def look(machine: str, hal: Hal) -> dict[str, Any]:
    result = hal("emulate", machine, "--", sys.executable, "-c", LOOK)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def same(machine: str, hal: Hal, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    result = hal("capture", "--output", str(path), on=machine)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    before, after = look(machine, hal), look(str(path), hal)
    assert after["inventory"] == before["inventory"]
    assert [key for key, *_ in after["readings"]] == [key for key, *_ in before["readings"]]
    now = {key: facts for key, *facts in after["readings"]}
    for key, metric, static, value, status in before["readings"]:
        if static or metric in KEPT:
            assert now[key] == [metric, static, value, status], key
        elif now[key][2] is not None:
            assert now[key][2] == value, key


# A machine with a past: each figure is another.
WORN = """schema = "hal.machine/1"
[[devices]]
model = "h100-sxm-80gb"
pci = "0000:19:00.0"
numa_node = 1
power_milliwatts = 512_000
temperature_celsius = 71
compute_busy_percent = 97
nvidia_links_down = 0x5
nvidia_dram_corrected = 3
nvidia_dram_uncorrected = 1
nvidia_dram_corrected_ever = 12
nvidia_sram_uncorrected_ever = 2
nvidia_rows_corrected = 4
nvidia_rows_pending = 1
nvidia_pcie_replays = 77
nvidia_pcie_generation = 4
nvidia_clock_reasons = 0x20
nvidia_performance_state = 2
[[devices]]
model = "mi300x"
pci = "0000:9b:00.0"
numa_node = 0
power_milliwatts = 600_000
power_limit_milliwatts = 700_000
temperature_celsius = 83
compute_busy_percent = 88
amd_video_busy_percent = 40
amd_pcie_width = 8
amd_ecc_corrected = 5
amd_ecc_uncorrected = 2
amd_bad_pages = 3
amd_bad_pages_pending = 1
amd_compute_megahertz = 1800
"""


def test_a_machine_with_a_past_keeps_it(hal: Hal, tmp_path: Path) -> None:
    worn = tmp_path / "worn.toml"
    worn.write_text(WORN)
    same(str(worn), hal, tmp_path)


@pytest.mark.parametrize("name", names())
def test_what_is_captured_can_be_emulated_and_is_the_same(name: str, hal: Hal, tmp_path: Path) -> None:
    same(name, hal, tmp_path)


@pytest.mark.parametrize("name", ["mixed-partitioned", "mixed-small"])
def test_capturing_again_gives_the_same_text(name: str, hal: Hal, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(hal("capture", on=name).stdout)
    assert hal("capture", on=str(path)).stdout == path.read_text()


def test_an_anonymous_capture_has_none_of_the_identities_and_is_the_same_otherwise(
    hal: Hal, tmp_path: Path
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(hal("capture", "--anonymous", on="mixed").stdout)
    seen = json.loads(hal("list", "--json", on="mixed").stdout)["devices"]
    secrets = [device[key] for device in seen for key in ("uuid", "serial") if device[key]]
    assert len(secrets) == 8
    text = path.read_text()
    for secret in secrets:
        assert secret not in text
        assert re.sub(r"^GPU-|-.*", "", secret) not in text
    again = json.loads(hal("list", "--json", on=str(path)).stdout)["devices"]

    def without(device: dict[str, Any]) -> dict[str, Any]:
        own = {"uuid", "serial"} | ({"id"} if device["vendor"] == "nvidia" else set())
        return {key: value for key, value in device.items() if key not in own}

    assert [without(d) for d in again if d["vendor"] != "cpu"] == [
        without(d) for d in seen if d["vendor"] != "cpu"
    ]
    assert re.search(r'uuid = "GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"', text)


def test_one_identity_is_replaced_by_one(tmp_path: Path) -> None:
    """The two dies of a package may have one serial number."""
    devices, figures = [], {}
    for n, serial in enumerate(["S1", "S1", "S2"]):
        devices.append(Device(f"x:{n}", "x", DeviceKind.GPU, "M", pci=Pci(f"0000:0{n}:00.0")))
        figures[f"x:{n}"] = {"vendor": "amd", "model": "M", "memory_bytes": 1 << 30, "serial": serial}
    text = captured(devices, Portrait({}, figures), anonymous=True)
    serials = [device["serial"] for device in parse(text, "a.toml").devices]
    assert serials == ["01", "01", "02"]
    assert text == captured(devices, Portrait({}, figures), anonymous=True)


def test_what_cannot_be_described_is_said_and_what_does_not_fit_is_left_out() -> None:
    devices = [
        Device("x:1", "x", DeviceKind.GPU, "M", pci=Pci("0000:01:00.0")),
        Device("y:secret", "y", DeviceKind.NPU, "N", pci=Pci("0000:02:00.0")),
        Device("cpu:host", "cpu", DeviceKind.CPU, "C"),
    ]
    figures = {
        "vendor": "amd", "model": 'a "quoted" \\ part\n\x7f', "memory_bytes": 1 << 30, "of_another_hal": 3,
        "nvidia_fan_percent": 130, "serial": "x" * 200, "numa_node": 1,
    }  # fmt: skip
    text = captured(devices, Portrait({"strange": 1}, {"x:1": figures}))
    assert "# Not captured, as no backend describes it: y:secret\n" in text
    assert "secret" not in captured(devices, Portrait({}, {"x:1": figures}), anonymous=True)
    (device,) = parse(text, "a.toml").devices
    assert device["model"] == figures["model"]
    assert device["numa_node"] == 1
    assert not {"of_another_hal", "nvidia_fan_percent"} & device.keys()
    assert device["serial"] != figures["serial"]


def test_parts_of_one_name_and_another_size_are_two_models() -> None:
    devices = [Device(f"x:{n}", "x", DeviceKind.GPU, "M", pci=Pci(f"0000:0{n}:00.0")) for n in (1, 2)]
    figures = {f"x:{n}": {"vendor": "amd", "model": "M", "memory_bytes": n << 30} for n in (1, 2)}
    found = parse(captured(devices, Portrait({}, figures)), "a.toml").devices
    assert [device["memory_bytes"] for device in found] == [1 << 30, 2 << 30]


def test_a_machine_without_accelerators_is_captured_too(hal: Hal, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    path.write_text(hal("capture", on="none").stdout)
    assert load(str(path)).devices == ()


def test_a_capture_that_cannot_be_written_is_one_sentence(hal: Hal) -> None:
    result = hal("capture", "--output", "/nonexistent/node.toml", on="none")
    assert (result.returncode, result.stdout) == (6, "")
    assert re.fullmatch(r"hal: .*node\.toml.*\n", result.stderr)
