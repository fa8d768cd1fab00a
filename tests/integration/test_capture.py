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
    (r.subject, r.name, sorted(r.labels.items()), None if r.name in passing else r.value, r.unit, r.status)
    for r in readings if not r.subject.startswith("cpu:")
]
inventory = jsonable(seen)
inventory["devices"] = [d for d in inventory["devices"] if d["vendor"] != "cpu"]
inventory["slices"] = [s for s in inventory["slices"] if not s["device"].startswith("cpu:")]
print(json.dumps({"inventory": inventory, "readings": readings}))
"""


def look(machine: str, hal: Hal) -> dict[str, Any]:
    result = hal("emulate", machine, "--", sys.executable, "-c", LOOK)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("name", names())
def test_what_is_captured_can_be_emulated_and_is_the_same(name: str, hal: Hal, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    result = hal("capture", "--output", str(path), on=name)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert look(str(path), hal) == look(name, hal)


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
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"hal: .*node\.toml.*\n", result.stderr)
