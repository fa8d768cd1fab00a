"""Whatever the kernel's files say, or do not: an answer, no value that nobody can have measured, no crash."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hal_amd
from hal.backend import Group
from hal.conformance.checks import _PLAUSIBLE
from hal.model import Status
from tests.amd_root import UNIQUE, Root

CARD, ID = "0000:c1:00.0", "amd:pci-0000:c1:00.0"
FOLDER = f"sys/bus/pci/drivers/amdgpu/{CARD}"
NODE = "sys/class/kfd/kfd/topology/nodes/1"


def build(path: Path) -> list[str]:
    """A card with all that it can have; the names of its files."""
    root = Root(path)
    root.card(
        CARD, 1, mem_info_vis_vram_total=64 << 30, mem_info_vis_vram_used=1 << 30, product_name="a card",
        current_compute_partition="SPX", current_memory_partition="NPS1", vcn_busy_percent=3,
        **{"hwmon/hwmon3/power1_input": 42_000_000, "hwmon/hwmon3/pwm1": 51, "hwmon/hwmon3/pwm1_max": 255,
           "hwmon/hwmon3/fan1_input": 1200},
    )  # fmt: skip
    root.node(1, 4711, 0xC1 << 8, UNIQUE + 1)
    root.write("sys/class/kfd/kfd/proc/7/vram_4711", 50)
    facts = {"drm-driver": "amdgpu", "drm-pdev": CARD, "drm-client-id": 1, "drm-memory-vram": "100 KiB"}
    root.client(8, 3, "renderD129", **facts)
    root.write("sys/module/amdgpu/version", "6.14.14")
    return sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file())


with tempfile.TemporaryDirectory() as folder:
    FILES = build(Path(folder))

ABSURD = [b"", b"\n", b"N/A", b"-1", b"0", b"1_0", b" 7 ", b"0x", b"\xff\xfe", b"9" * 30, b"9" * 5000,
          b"18446744073709551615", b"-9223372036854775808", b"1e9", "²".encode(), "٣".encode(),
          b"simd_count 4\nsimd_per_cu 0\n", b"drm-driver: amdgpu\ndrm-pdev:", b"\x00" * 64]  # fmt: skip
numbers = st.integers().map(lambda number: b"%d" % number)
content = st.one_of(st.none(), st.sampled_from(ABSURD), st.binary(max_size=40), numbers)


@settings(max_examples=80, deadline=None)
@example({f"{FOLDER}/device": b"9" * 30}, 0)
@given(st.dictionaries(st.sampled_from(FILES), content, max_size=8), st.integers(0, len(FILES)))
def test_any_files(changes: dict[str, bytes | None], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root)
        for name, text in changes.items():
            if text is None:
                (root / name).unlink()
            else:
                (root / name).write_bytes(text)
        for name in FILES[cut : cut + 1]:  # cut off in the middle
            if (root / name).exists():
                (root / name).write_bytes((root / name).read_bytes()[:3])
        check(root)


def check(root: Path) -> None:
    backend = hal_amd.Backend(root=str(root), library="libhal-no-such-library.so")
    backend.probe()
    inventory = backend.enumerate()
    assert [device.id for device in inventory.devices] == [ID]
    (device,) = inventory.devices
    assert all(heap.total_bytes is None or 0 <= heap.total_bytes <= 1 << 50 for heap in device.heaps)
    assert device.numa_node is None or 0 <= device.numa_node < 4096
    assert device.serial is None or len(device.serial) == 16
    readings = backend.sample(list(Group), [ID], math.inf)
    for reading in readings:
        assert (reading.value is not None) == (reading.status in (Status.OK, Status.ESTIMATED)), reading
        if reading.value is not None:
            low, high = _PLAUSIBLE[reading.unit]
            assert low <= reading.value <= high, reading
    processes = backend.processes([ID], math.inf)
    assert all(process.pid in (7, 8) for process in processes)
    assert all(p.memory_bytes is None or 0 < p.memory_bytes <= 1 << 50 for p in processes)
    msgspec.msgpack.encode([inventory, readings, processes])  # it goes through a pipe
    backend.expose([])
