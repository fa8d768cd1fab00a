"""What the backends make of drivers that are old, lost or confused: over fakes of pynvml and amdsmi."""

from __future__ import annotations

import ctypes
import math
import sys
from types import ModuleType, SimpleNamespace

import pynvml
import pytest

import hal_amd
import hal_nvidia
from hal.backend import GoneError, Group, StateError, TemporaryError, UnsupportedError
from hal.model import Status


class NvmlError(Exception):
    def __init__(self, value):
        super().__init__(f"code {value}")
        self.value = value


class Nvml(ModuleType):
    """As much of pynvml as is asked for here: two GPUs, each call of which a test can make fail."""

    NVMLError = NvmlError
    NVML_SUCCESS, NVML_ERROR_UNKNOWN = 0, 999
    NVML_TEMPERATURE_GPU, NVML_FI_DEV_MEMORY_TEMP = 0, 82
    nvmlMemory_v2 = 0x02000028

    def __init__(self):
        super().__init__("pynvml")
        self.failing: dict[tuple[str, str], int] = {}  # (call, uuid) -> code
        self.processes = {"Compute": [], "Graphics": []}

    def nvmlInit(self): ...
    def nvmlShutdown(self): ...

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.nvmlDeviceGetHandleByUUID(f"GPU-{index}")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.check("nvmlDeviceGetHandleByUUID", uuid)
        if uuid not in ("GPU-0", "GPU-1"):
            raise NvmlError(6)
        return uuid

    def nvmlDeviceGetUUID(self, handle):
        return handle.encode()

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        self.check(f"v{2 if version else 1}", handle)
        figures = {"total": 100, "used": 30 if version else 40, "free": 60}
        return SimpleNamespace(**figures, **({"reserved": 10} if version else {}))

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self.check("nvmlDeviceGetTemperature", handle)
        return 40

    def nvmlDeviceGetFieldValues(self, handle, fields):
        values = (pynvml.c_nvmlFieldValue_t * len(fields))()
        for value in values:
            value.nvmlReturn = 3
        return values

    def check(self, call, uuid):
        if (call, uuid) in self.failing:
            raise NvmlError(self.failing[call, uuid])


class Lists:
    """The shared library, for the lists that are asked for past pynvml."""

    def __init__(self, fake):
        self.nvmlDeviceGetComputeRunningProcesses_v2 = self.list_of(fake.processes, "Compute")
        self.nvmlDeviceGetGraphicsRunningProcesses_v3 = self.list_of(fake.processes, "Graphics")

    @staticmethod
    def list_of(processes, kind):
        def call(handle, count, entries):
            room, found = count._obj.value, processes[kind]
            count._obj.value = len(found) if isinstance(found, list) else found
            if entries is None or not isinstance(found, list) or len(found) > room:
                return 7 if found else 0
            for entry, (pid, used) in zip(entries, found, strict=False):
                entry.pid, entry.usedGpuMemory = pid, used
            return 0

        return call


@pytest.fixture
def nvml(monkeypatch):
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def nvidia(nvml, tmp_path, monkeypatch):
    backend = hal_nvidia.Backend(root=str(tmp_path), library="libc.so.6")
    monkeypatch.setattr(nvml, "nvmlInit", lambda: setattr(nvml, "nvmlLib", Lists(nvml)))
    return backend


def sample(backend, group, *ids):
    readings = backend.sample([group], ids, math.inf)
    return {(reading.subject, reading.name, *reading.labels.values()): reading for reading in readings}


@pytest.mark.parametrize("code", [13, 25])
def test_a_driver_without_memory_info_v2(nvml, nvidia, code):
    nvml.failing["v2", "GPU-0"] = code
    readings = sample(nvidia, Group.MEMORY, "nvidia:GPU-0")
    used = readings["nvidia:GPU-0", "memory_used_bytes", "vram"]
    assert (used.value, used.status) == (40, Status.OK)
    assert "v1" in used.detail
    assert readings["nvidia:GPU-0", "memory_reserved_bytes", "vram"].status is Status.UNSUPPORTED


def test_a_pynvml_without_memory_info_v2(nvml, nvidia, monkeypatch):
    monkeypatch.delattr(Nvml, "nvmlMemory_v2")
    readings = sample(nvidia, Group.MEMORY, "nvidia:GPU-0")
    assert readings["nvidia:GPU-0", "memory_used_bytes", "vram"].value == 40


def test_a_lost_gpu_does_not_hide_its_neighbour(nvml, nvidia):
    nvml.failing["nvmlDeviceGetHandleByUUID", "GPU-0"] = 15
    assert [device.id for device in nvidia.enumerate().devices] == ["nvidia:GPU-1"]
    readings = sample(nvidia, Group.MEMORY, "nvidia:GPU-0", "nvidia:GPU-1")
    lost = readings["nvidia:GPU-0", "memory_used_bytes", "vram"]
    assert (lost.value, lost.status) == (None, Status.ERROR)
    assert "15" in lost.detail
    assert readings["nvidia:GPU-1", "memory_used_bytes", "vram"].value == 30
    nvml.failing["nvmlDeviceGetHandleByUUID", "GPU-1"] = 15
    with pytest.raises(GoneError):
        nvidia.enumerate()


def test_a_gpu_that_is_lost_between_two_figures(nvml, nvidia):
    nvml.failing["nvmlDeviceGetTemperature", "GPU-0"] = 15
    readings = sample(nvidia, Group.TEMPERATURE, "nvidia:GPU-0")
    assert readings["nvidia:GPU-0", "temperature_celsius", "core"].status is Status.ERROR
    assert readings["nvidia:GPU-0", "temperature_celsius", "memory"].status is Status.UNSUPPORTED


def test_a_pynvml_without_the_call(nvidia):
    readings = sample(nvidia, Group.POWER, "nvidia:GPU-0")
    assert {(reading.value, reading.status) for reading in readings.values()} == {(None, Status.UNSUPPORTED)}


@pytest.mark.parametrize("subject", ["nvidia:GPU-9", "nvidia:", "amd:GPU-0"])
def test_an_unknown_nvidia_id(nvidia, subject):
    for call in (lambda: sample(nvidia, Group.MEMORY, subject), lambda: nvidia.expose([subject])):
        with pytest.raises(GoneError, match=subject):
            call()


def test_nvidia_processes_are_merged_by_pid(nvml, nvidia, tmp_path):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/comm").write_text("python\n")
    nvml.processes = {"Compute": [(7, 2**64 - 1), (8, 2**64 - 1)], "Graphics": [(7, 50)]}
    found = [(p.pid, p.name, p.memory_bytes, p.status) for p in nvidia.processes(["nvidia:GPU-0"], math.inf)]
    assert found == [(7, "python", 50, Status.OK), (8, None, None, Status.UNSUPPORTED)]


def test_absurd_entries_of_a_list_of_processes(nvml, nvidia):
    nvml.processes["Compute"] = [(0, 5), (2**32 - 1, 5), (9, 2**60), (10, 5)]
    found = [(p.pid, p.memory_bytes, p.status) for p in nvidia.processes(["nvidia:GPU-0"], math.inf)]
    assert found == [(9, None, Status.ERROR), (10, 5, Status.OK)]


def test_a_list_of_processes_without_end(nvml, nvidia):
    nvml.processes["Compute"] = 2**32 - 1  # which pynvml would make room for
    with pytest.raises(TemporaryError):
        nvidia.processes(["nvidia:GPU-0"], math.inf)


def test_lists_have_the_layout_of_pynvml():
    from hal_nvidia import processes

    for own, theirs in (
        (processes._ProcessV2, pynvml.c_nvmlProcessInfo_v2_t),
        (processes._Sample, pynvml.c_nvmlProcessUtilizationSample_t),
    ):
        assert ctypes.sizeof(own) == ctypes.sizeof(theirs)
        for name, *_ in own._fields_:
            assert getattr(own, name).offset == getattr(theirs, name).offset


class Smi(ModuleType):
    """As much of amdsmi as is asked for here: handles are positions in `bdfs`."""

    AmdSmiMemoryType = SimpleNamespace(VRAM=0)
    AmdSmiTemperatureType = SimpleNamespace(EDGE=0, HOTSPOT=1)  # VRAM is not in this version
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
    __version__ = "7.0.2"

    def __init__(self):
        super().__init__("amdsmi")
        self.bdfs = ["0000:C1:00.0"]
        self.asic = {"asic_serial": "0x00000000ABCDEF01"}

    def amdsmi_init(self): ...
    def amdsmi_shut_down(self): ...

    def amdsmi_get_lib_version(self):
        return {"major": 26, "minor": 0, "release": 2}

    def amdsmi_get_processor_handles(self):
        return list(range(len(self.bdfs)))

    def amdsmi_get_gpu_device_bdf(self, handle):
        return self.bdfs[handle]

    def amdsmi_get_gpu_kfd_info(self, handle):
        return {"current_partition_id": int(self.bdfs[handle][-1]), "node_id": "N/A"}

    def amdsmi_get_gpu_asic_info(self, handle):
        return self.asic

    def amdsmi_get_gpu_enumeration_info(self, handle):
        return {"hip_id": 3, "drm_card": "N/A"}

    def amdsmi_get_gpu_vram_usage(self, handle):
        return {"vram_total": 100, "vram_used": 40}

    def amdsmi_get_temp_metric(self, handle, sensor, metric):
        return 2**32 - 1

    def amdsmi_get_gpu_process_list(self, handle):
        return [
            {"pid": 7, "name": "N/A", "mem": 90, "memory_usage": {"vram_mem": 50, "gtt_mem": 40}},
            {"pid": 8, "name": "trainer", "mem": 90, "memory_usage": {"vram_mem": 0, "gtt_mem": 0}},
            {"pid": 9, "name": "", "mem": 2**64 - 1},
        ]


@pytest.fixture
def smi(monkeypatch):
    fake = Smi()
    monkeypatch.setitem(sys.modules, "amdsmi", fake)
    return fake


@pytest.fixture
def amd(smi, tmp_path):
    return hal_amd.Backend(root=str(tmp_path), library="libc.so.6")


CARD = "amd:pci-0000:c1:00.0"


def test_a_partitioned_card_is_one_device(smi, amd):
    smi.bdfs = ["0000:C1:00.0", "0000:C1:00.1", "0000:C1:00.2", "0000:C2:00.0"]
    assert [device.id for device in amd.enumerate().devices] == [CARD, "amd:pci-0000:c2:00.0"]


def test_a_card_without_an_address_is_left_out(smi, amd):
    smi.bdfs = ["64695f757067:2f:06.1", "0000:C1:00.0"]
    assert [device.id for device in amd.enumerate().devices] == [CARD]
    smi.bdfs = ["64695f757067:2f:06.1"]
    with pytest.raises(StateError, match="/dev/dri"):
        amd.enumerate()


def test_an_amdsmi_that_knows_little(amd):
    (card,) = amd.enumerate().devices
    assert (card.model, card.compute_units, card.numa_node, card.memory_bytes) == (
        "AMD GPU",
        None,
        None,
        None,
    )
    assert card.indices == {"amdsmi": 0, "hip": 3}
    memory = sample(amd, Group.MEMORY, CARD)
    assert memory[CARD, "memory_total_bytes", "vram"].value == 100 * 2**20
    free = memory[CARD, "memory_free_bytes", "vram"]
    assert (free.value, free.status) == (60 * 2**20, Status.ESTIMATED)
    temperatures = sample(amd, Group.TEMPERATURE, CARD)
    assert {(reading.value, reading.status) for reading in temperatures.values()} == {
        (None, Status.UNSUPPORTED)
    }


def test_amd_processes(amd):
    found = [(p.pid, p.name, p.memory_bytes, p.status) for p in amd.processes([CARD], math.inf)]
    assert found == [
        (7, None, 50, Status.OK),
        (8, "trainer", 90, Status.OK),
        (9, None, None, Status.UNSUPPORTED),
    ]


@pytest.mark.parametrize(
    ("serial", "shown"), [("0x00000000ABCDEF01", "GPU-00000000abcdef01"), ("N/A", "3"), (None, "3")]
)
def test_what_rocr_is_told(smi, amd, serial, shown):
    smi.asic = {"asic_serial": serial}
    assert amd.expose([CARD]).env == {"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": shown}


def test_a_card_that_cannot_be_named_to_rocr(smi, amd):
    smi.asic = {}
    smi.amdsmi_get_gpu_enumeration_info = lambda handle: {}
    with pytest.raises(UnsupportedError, match=CARD):
        amd.expose([CARD])


@pytest.mark.parametrize("subject", ["amd:pci-0000:ff:00.0", "amd:", "nvidia:GPU-0"])
def test_an_unknown_amd_id(amd, subject):
    for call in (lambda: sample(amd, Group.MEMORY, subject), lambda: amd.expose([subject])):
        with pytest.raises(GoneError, match=subject):
            call()
