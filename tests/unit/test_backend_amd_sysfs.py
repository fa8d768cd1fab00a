"""AMD without ROCm: what the kernel's files say, over a fabricated root."""

from __future__ import annotations

import math

import pytest

import hal_amd
from hal.backend import Cost, GoneError, Group
from hal.model import ProbeState, Scope, Status
from tests.amd_root import UNIQUE, Root

MISSING = "libhal-no-such-library.so"
CARD, SECOND = "amd:pci-0000:c1:00.0", "amd:pci-0000:c6:00.0"


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


def test_processes_that_have_the_card_open(root, backend):
    """One that KFD counts is counted once; a client that is open twice as well; other drivers' not at all."""
    facts = {"drm-driver": "amdgpu", "drm-pdev": "0000:c6:00.0"}
    root.client(7, 3, "renderD129", **facts | {"drm-client-id": 1, "drm-memory-vram": "999 KiB"})
    root.client(20, 3, "renderD130", **facts | {"drm-client-id": 2, "drm-memory-vram": "100 KiB"})
    root.client(20, 4, "renderD130", **facts | {"drm-client-id": 2, "drm-memory-vram": "100 KiB"})
    root.client(20, 5, "card2", **facts | {"drm-client-id": 3, "drm-resident-vram": "2 MiB"})
    root.client(21, 3, "renderD130", **facts | {"drm-client-id": 4})
    root.client(22, 3, "renderD131", **facts | {"drm-driver": "i915", "drm-client-id": 4})
    root.client(23, 3, "renderD130", **facts | {"drm-client-id": 5, "drm-memory-vram": "0"})
    (root.path / "proc/24").mkdir(parents=True)
    found = {(p.pid, p.name): (p.memory_bytes, p.status) for p in backend.processes([SECOND], math.inf)}
    assert found == {
        (7, "trainer"): (999 << 10, Status.OK),
        (20, "client"): ((100 << 10) + (2 << 20), Status.OK),
        (21, "client"): (None, Status.UNSUPPORTED),
    }
    assert [p.memory_bytes for p in backend.processes([CARD], math.inf)] == [50]  # as KFD has it


# ---- kinds of machines ------------------------------------------------------------------------------


def machine(tmp_path, build):
    root = Root(tmp_path)
    build(root)
    backend = hal_amd.Backend(root=str(tmp_path), library=MISSING)
    probe = backend.probe()
    assert probe.state is ProbeState.READY
    assert "reduced" in probe.reason
    device = backend.enumerate().devices[0]
    readings = backend.sample(list(Group), [device.id], math.inf)
    return device, {(reading.name, *reading.labels.values()): reading.value for reading in readings}


def test_mi300x_in_eight_partitions(tmp_path):
    def build(root):
        root.card("0000:05:00.0", 1, product_name="AMD Instinct MI300X OAM", device="0x74a1",
                  mem_info_vram_total=206_141_652_992, mem_info_vis_vram_total=206_141_652_992,
                  current_compute_partition="CPX", current_memory_partition="NPS4",
                  **{"hwmon/hwmon3/power1_average": None, "hwmon/hwmon3/power1_input": 140_000_000,
                     "hwmon/hwmon3/temp1_label": "junction", "hwmon/hwmon3/temp2_label": "mem"})  # fmt: skip
        for part in range(8):
            root.node(part + 1, 1000 + part, 5 << 8 | part, UNIQUE + 1, simds=152, gfx=90402)

    device, value = machine(tmp_path, build)
    assert (device.model, device.architecture) == ("AMD Instinct MI300X OAM", "gfx942")
    assert (device.compute_units, device.memory_bytes) == (304, 206_141_652_992)
    assert device.attributes == {"amd.compute_partition": "CPX", "amd.memory_partition": "NPS4"}
    assert (value["power_watts", "instant"], value["power_watts", "average"]) == (140, None)
    assert (value["temperature_celsius", "hotspot"], value["temperature_celsius", "core"]) == (35, None)
    assert value["memory_total_bytes", "bar1"] == 206_141_652_992


def test_a_second_die_of_mi250x(tmp_path):
    def build(root):
        root.card("0000:c6:00.0", 2, **{f"hwmon/hwmon3/power1_{word}": None for word in ("average", "cap")})
        root.node(1, 4711, 0xC6 << 8, UNIQUE + 2, simds=440)

    device, value = machine(tmp_path, build)
    assert (device.id, device.compute_units, device.architecture) == (SECOND, 110, "gfx90a")
    assert (value["power_watts", "average"], value["power_limit_watts",]) == (None, None)
    assert value["temperature_celsius", "hotspot"] == 41


def test_mi210(tmp_path):
    device, value = machine(
        tmp_path, lambda root: (root.card("0000:c1:00.0", 1), root.node(1, 4711, 0xC1 << 8, UNIQUE + 1))
    )
    assert (device.compute_units, value["power_limit_watts",], value["compute_busy_ratio",]) == (
        104,
        300,
        0.25,
    )


def test_an_apu_lives_in_the_hosts_memory(tmp_path):
    def build(root):
        root.card("0000:e3:00.0", 0, device="0x150e", unique_id=None, numa_node=-1, mem_busy_percent=None,
                  mem_info_vram_total=512 << 20, mem_info_vram_used=100 << 20,
                  mem_info_gtt_total=48 << 30, mem_info_gtt_used=6 << 30,
                  mem_info_vis_vram_total=512 << 20, mem_info_vis_vram_used=100 << 20,
                  **{"hwmon/hwmon3/power1_cap": None, "hwmon/hwmon3/temp2_label": None})  # fmt: skip
        root.node(1, 4711, 0xE3 << 8, 0, simds=32, simds_per_cu=2, gfx=110500)

    device, value = machine(tmp_path, build)
    assert {heap.name: heap.total_bytes for heap in device.heaps} == {"vram": 512 << 20, "gtt": 48 << 30}
    assert (device.serial, device.numa_node, device.compute_units) == (None, None, 16)
    assert device.architecture == "gfx1150"
    assert (value["memory_used_bytes", "gtt"], value["memory_free_bytes", "gtt"]) == (6 << 30, 42 << 30)
    assert value["memory_bandwidth_busy_ratio",] is None


def test_a_card_for_the_desktop(tmp_path):
    def build(root):
        root.card("0000:03:00.0", 0, device="0x744c", mem_info_vram_total=24 << 30,
                  mem_info_vis_vram_total=256 << 20, mem_info_vis_vram_used=10 << 20,
                  **{"hwmon/hwmon3/pwm1": 51, "hwmon/hwmon3/pwm1_max": 255, "hwmon/hwmon3/fan1_input": 1200,
                     "hwmon/hwmon3/temp3_label": "mem", "hwmon/hwmon3/temp3_input": 62_000})  # fmt: skip

    device, value = machine(tmp_path, build)
    assert (device.model, device.compute_units, device.architecture) == ("AMD GPU", None, None)  # no KFD
    assert (value["fan_ratio", "0"], value["fan_rpm", "0"]) == (0.2, 1200)
    assert (value["memory_total_bytes", "bar1"], value["memory_free_bytes", "bar1"]) == (256 << 20, 246 << 20)
    assert value["temperature_celsius", "memory"] == 62


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
