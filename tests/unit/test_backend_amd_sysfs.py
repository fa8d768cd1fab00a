"""AMD without ROCm: what the kernel's files say, over a fabricated root."""

from __future__ import annotations

import math

import pytest

import hal_amd
from hal.backend import Cost, GoneError, Group
from hal.model import ProbeState, Scope, Status

MISSING = "libhal-no-such-library.so"
CARD, SECOND = "amd:pci-0000:c1:00.0", "amd:pci-0000:c6:00.0"
UNIQUE = 0x0A1B2C3D4E5F6071


class Root:
    """A fabricated root with cards in it."""

    def __init__(self, path):
        self.path = path

    def write(self, name, text):
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def card(self, bdf, number, **files):
        folder = f"sys/bus/pci/drivers/amdgpu/{bdf}"
        facts = {
            "vendor": "0x1002",
            "device": "0x740f",
            "numa_node": 1,
            "unique_id": f"{UNIQUE + number:016x}",
            "mem_info_vram_total": 64 << 30,
            "mem_info_vram_used": 1 << 30,
            "mem_info_gtt_total": 32 << 30,
            "mem_info_gtt_used": 0,
            "gpu_busy_percent": 25,
            "mem_busy_percent": 5,
            "hwmon/hwmon3/power1_average": 42_000_000,
            "hwmon/hwmon3/power1_cap": 300_000_000,
            "hwmon/hwmon3/temp1_label": "edge",
            "hwmon/hwmon3/temp1_input": 35_000,
            "hwmon/hwmon3/temp2_label": "junction",
            "hwmon/hwmon3/temp2_input": 41_000,
        } | files
        for name, value in facts.items():
            if value is not None:
                self.write(f"{folder}/{name}", value)
        (self.path / folder / f"drm/card{number}").mkdir(parents=True)
        (self.path / folder / f"drm/renderD{128 + number}").mkdir(parents=True)

    def node(self, number, gpu_id, location, unique, simds=416):
        folder = f"sys/class/kfd/kfd/topology/nodes/{number}"
        self.write(f"{folder}/gpu_id", gpu_id)
        self.write(
            f"{folder}/properties",
            f"simd_count {simds}\nsimd_per_cu 4\nlocation_id {location}\ndomain 0\n"
            f"gfx_target_version 90010\nunique_id {unique}\n",
        )


@pytest.fixture
def root(tmp_path):
    root = Root(tmp_path)
    root.card("0000:c1:00.0", 1)
    root.card("0000:c6:00.0", 2, mem_info_vram_used=None, gpu_busy_percent="junk")
    root.write("sys/module/amdgpu/version", "6.14.14")
    root.node(0, 0, 0, 0, simds=0)
    root.node(1, 4711, 0xC1 << 8, UNIQUE + 1)
    root.write("sys/class/kfd/kfd/proc/7/vram_4711", 50)
    root.write("sys/class/kfd/kfd/proc/8/vram_4711", 0)
    root.write("sys/class/kfd/kfd/proc/9/vram_1", 60)
    root.write("proc/7/comm", "trainer")
    return root


@pytest.fixture
def backend(root):
    return hal_amd.Backend(root=str(root.path), library=MISSING)


def sample(backend, group, subject=CARD):
    readings = backend.sample([group], [subject], math.inf)
    return {(reading.name, *reading.labels.values()): reading for reading in readings}


def test_probe_says_that_it_is_reduced_and_what_would_give_the_rest(backend):
    probe = backend.probe()
    assert probe.state is ProbeState.READY
    assert "reduced" in probe.reason
    assert MISSING in probe.reason
    assert "amd-smi-lib" in probe.fix


def test_identity(backend):
    inventory = backend.enumerate()
    first, second = inventory.devices
    assert (first.id, second.id) == (CARD, SECOND)
    assert first.serial == f"{UNIQUE + 1:016x}"
    assert (first.architecture, first.compute_units, first.numa_node) == ("gfx90a", 104, 1)
    assert (first.driver, first.pci.device_id) == ("6.14.14", 0x740F)
    assert {heap.name: heap.total_bytes for heap in first.heaps} == {"vram": 64 << 30, "gtt": 32 << 30}
    assert first.indices == {"kfd": 1, "drm_card": 1, "drm_render": 129}
    assert (second.architecture, second.compute_units) == (None, None)
    assert [piece.id for piece in inventory.slices] == [f"{CARD}/whole", f"{SECOND}/whole"]


def test_the_nodes_of_one_divided_card_are_added(root, backend):
    root.node(2, 4712, 0xC1 << 8 | 1, UNIQUE + 1)
    assert backend.enumerate().devices[0].compute_units == 208


def test_figures(backend):
    memory = sample(backend, Group.MEMORY)
    assert memory["memory_used_bytes", "vram"].value == 1 << 30
    assert memory["memory_free_bytes", "vram"].status is Status.ESTIMATED
    assert memory["memory_used_bytes", "gtt"].value == 0
    assert sample(backend, Group.ACTIVITY)["compute_busy_ratio",].value == 0.25
    power = sample(backend, Group.POWER)
    assert power["power_watts", "average"].value == 42
    assert power["power_watts", "instant"].status is Status.UNSUPPORTED
    assert power["power_limit_watts",].value == 300
    assert power["power_limit_watts",].scope is Scope.PACKAGE
    temperature = sample(backend, Group.TEMPERATURE)
    assert temperature["temperature_celsius", "core"].value == 35
    assert temperature["temperature_celsius", "hotspot"].value == 41
    assert temperature["temperature_celsius", "memory"].status is Status.UNSUPPORTED


def test_what_a_file_does_not_say_is_not_invented(backend):
    memory = sample(backend, Group.MEMORY, SECOND)
    used, free = memory["memory_used_bytes", "vram"], memory["memory_free_bytes", "vram"]
    assert (used.value, used.status) == (None, Status.UNSUPPORTED)
    assert (free.value, free.status) == (None, Status.UNSUPPORTED)
    busy = sample(backend, Group.ACTIVITY, SECOND)["compute_busy_ratio",]
    assert (busy.value, busy.status) == (None, Status.ERROR)


def test_every_group_is_answered(backend):
    for group in Group:
        assert sample(backend, group), group
    assert all(r.status is Status.UNSUPPORTED for r in sample(backend, Group.LINKS).values())
    assert backend.sample([Group.MEMORY], [CARD], math.inf, frozenset({Cost.SLOW})) == []
    late = backend.sample([Group.MEMORY], [CARD], 0.0)
    assert {reading.status for reading in late} == {Status.STALE}


def test_processes(backend):
    found = [(p.device, p.pid, p.name, p.memory_bytes) for p in backend.processes([CARD, SECOND], math.inf)]
    assert found == [(CARD, 7, "trainer", 50)]


def test_unknown_ids(backend):
    for call in (
        lambda: sample(backend, Group.MEMORY, "amd:pci-0000:ff:00.0"),
        lambda: backend.processes(["amd:pci-0000:ff:00.0"], math.inf),
        lambda: backend.expose(["amd:pci-0000:ff:00.0"]),
    ):
        with pytest.raises(GoneError, match="ff:00"):
            call()


def test_expose_names_cards_by_their_serial_number(backend):
    assert backend.expose([SECOND]).env["ROCR_VISIBLE_DEVICES"] == f"GPU-{UNIQUE + 2:016x}"


def test_without_a_driver_there_is_nothing_to_read(tmp_path):
    assert hal_amd.Backend(root=str(tmp_path), library=MISSING).probe().state is ProbeState.ABSENT
