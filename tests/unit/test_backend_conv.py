"""No sentinel of a vendor's library, and no unit of its own, passes a backend's conv.py."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

import hal_amd.conv as amd
import hal_amd.errors as amd_errors
import hal_cpu.conv as cpu
import hal_cpu.errors as cpu_errors
import hal_null.conv as null
import hal_nvidia.conv as nvidia
import hal_nvidia.errors as nvidia_errors
from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.model import Status

MAX32, MAX64 = 2**32 - 1, 2**64 - 1


@pytest.mark.parametrize("raw", [MAX32, MAX64, None, "N/A"])
@pytest.mark.parametrize("convert", [nvidia.count, nvidia.watts, nvidia.ratio, nvidia.celsius])
def test_nvidia_sentinels_are_unsupported(convert, raw):
    value = convert(raw)
    assert value.value is None
    assert value.status is Status.UNSUPPORTED


def test_nvidia_units():
    assert nvidia.watts(123_456) == 123.456
    assert nvidia.watts(65_535) == 65.535  # no sentinel of NVML's: 65 W are possible
    assert nvidia.ratio(37) == 0.37
    assert nvidia.ratio(101).status is Status.ERROR
    assert nvidia.celsius(2**31 - 1).status is Status.ERROR


@pytest.mark.parametrize(
    ("convert", "raw"),
    [
        (nvidia.size, 1 << 51),
        (nvidia.watts, 2**32 - 2),
        (nvidia.hertz, 2**31),
        (nvidia.joules, 2**64 - 2),
        (nvidia.seconds, -1),
        (nvidia.fan, 201),
        (nvidia.flag, 2),
        (nvidia.fraction, 101.5),
        (nvidia.fraction, -0.1),
        (nvidia.fraction, math.nan),
        (nvidia.fraction, math.inf),
        (nvidia.link_up, 9),
        (nvidia.performance, 33),
    ],
)
def test_nvidia_absurd_figures_are_errors(convert, raw):
    value = convert(raw)
    assert (value.value, value.status) == (None, Status.ERROR)
    assert str(raw) in value.detail


def test_a_rail_of_no_watts_is_one_without_a_sensor():
    assert nvidia.rail(20_000) == 20
    assert nvidia.rail(0).status is Status.UNSUPPORTED


def test_nvidia_fractions():
    assert nvidia.fraction(37.5) == 0.375
    assert nvidia.fraction(100.2) == 1.0  # rounding of the counters
    assert nvidia.fraction(0.0) == 0.0


def test_nvidia_choices():
    assert nvidia.choice(2, 4) == (0, 0, 1, 0)
    assert {answer.status for answer in nvidia.choice(4, 4)} == {Status.ERROR}
    assert {answer.status for answer in nvidia.choice(MAX32, 4)} == {Status.UNSUPPORTED}


@pytest.mark.parametrize("convert", [nvidia.count, nvidia.watts, nvidia.ratio, nvidia.celsius])
def test_nvidia_zero_is_a_measurement(convert):
    assert convert(0) == 0


@pytest.mark.parametrize("raw", [b"GPU-1", "GPU-1", " GPU-1 "])
def test_nvidia_text_is_str_or_bytes(raw):
    assert nvidia.text(raw) == "GPU-1"


@pytest.mark.parametrize("raw", ["", b"", "N/A", "[N/A]", None, 0])
def test_nvidia_text_may_be_nothing(raw):
    assert nvidia.text(raw) is None


def test_nvidia_pci():
    pci = SimpleNamespace(domain=0, bus=0xC1, device=0, busId=b"00000000:C1:00.0", pciDeviceId=0x233010DE)
    assert nvidia.bdf(pci) == "0000:c1:00.0"
    assert nvidia.pci_ids(pci) == (0x10DE, 0x2330)


def test_nvidia_multiprocessors():
    assert nvidia.multiprocessors(16_896, (9, 0)) == 132
    assert nvidia.multiprocessors(16_896, (99, 0)) is None
    assert nvidia.multiprocessors(None, (9, 0)) is None


@pytest.mark.parametrize("raw", ["N/A", None, 0xFFFF, MAX32, MAX64, True, [], {}])
@pytest.mark.parametrize("convert", [amd.count, amd.mebibytes, amd.microwatts, amd.ratio, amd.celsius])
def test_amd_sentinels_are_unsupported(convert, raw):
    value = convert(raw)
    assert value.value is None
    assert value.status is Status.UNSUPPORTED


def test_amd_units():
    assert amd.mebibytes(2).value == 2 * 2**20
    assert amd.microwatts(750_000_000).value == 750
    assert amd.ratio(37).value == 0.37
    assert amd.ratio(4_294_967).status is Status.ERROR
    assert amd.celsius(43_000).status is Status.ERROR  # millidegrees, from a version that forgot


@pytest.mark.parametrize("convert", [amd.count, amd.mebibytes, amd.ratio, amd.celsius])
def test_amd_zero_is_a_measurement(convert):
    assert convert(0) == (0, Status.OK, "")


def test_amd_power_cap_of_zero_is_a_cap_that_could_not_be_read():
    assert amd.microwatts(0).status is Status.UNSUPPORTED


@pytest.mark.parametrize(
    ("raw", "watts"),
    [((150, "N/A", 150), 150), (("N/A", 90, 90), 90), ((0xFFFF, 0xFFFF, 80), 80), ((0, 90, 90), 0)],
)
def test_amd_power_is_the_first_that_is_a_number(raw, watts):
    assert amd.first_watts(*raw).value == watts


def test_amd_power_may_be_nothing():
    assert amd.first_watts("N/A", 0xFFFF, None).status is Status.UNSUPPORTED


@pytest.mark.parametrize("raw", ["0000:C1:00.0", "0000:c1:00.0"])
def test_amd_bdf(raw):
    assert amd.bdf(raw) == "0000:c1:00.0"


@pytest.mark.parametrize("raw", ["64695f757067:2f:06.1", "N/A", "", None, "0000:c1:00.8", "0000:c1:40.0"])
def test_amd_bdf_that_is_none(raw):
    assert amd.bdf(raw) is None


@pytest.mark.parametrize("raw", ["N/A", "", None, "0x0000000000000000", "0xFFFFFFFFFFFFFFFF", "serial"])
def test_amd_unique_id_that_is_none(raw):
    assert amd.unique_id(raw) is None


def test_amd_names():
    assert amd.unique_id("0x0A1B2C3D4E5F6071") == "0a1b2c3d4e5f6071"
    assert amd.hexadecimal("0x74a1") == amd.hexadecimal(0x74A1) == 0x74A1
    assert [amd.gfx(raw) for raw in ("gfx942", "gfx90a", "gfx1100")] == ["gfx942", "gfx90a", "gfx1100"]
    assert [amd.gfx(raw) for raw in ("gfx0", "gfxffffffffffffffff", "N/A", None)] == [None] * 4


def test_cpu_texts():
    assert cpu.meminfo("MemTotal:  16 kB\nHugePages_Total: 3\nodd\n") == {
        "MemTotal": 16384,
        "HugePages_Total": 3,
    }
    assert cpu.jiffies("cpu  1 2 3 40 50 6 7 8 1 2\ncpu0 0\n") == (27, 117)
    assert cpu.cpu_list("0-3,8\n") == 5
    assert cpu.model_name("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert cpu.model_name("processor : 0\n") is None
    with pytest.raises(ValueError, match="cpu"):
        cpu.jiffies("intr 1 2 3\n")


def test_cpu_energy_survives_the_counter_starting_again():
    assert cpu.energy_joules(1_000_000, 3_000_000, 9_000_000) == 2
    assert cpu.energy_joules(8_000_000, 1_000_000, 9_000_000) == 2


def test_null_sentinel():
    assert null.watts(0xFFFF).status is Status.UNSUPPORTED
    assert null.watts(0).value == 0


class _Nvml(Exception):
    def __init__(self, value):
        super().__init__("words")
        self.value = value


class _AmdSmi(Exception):
    def __init__(self, err_code):
        super().__init__("Error code:\n\t1 | words")
        self.err_code, self.err_info = err_code, "words"


@pytest.mark.parametrize(
    ("failure", "kind", "status"),
    [
        (_Nvml(3), UnsupportedError, Status.UNSUPPORTED),
        (_Nvml(4), StateError, Status.DENIED),
        (_Nvml(10), TemporaryError, Status.STALE),
        (_Nvml(15), GoneError, Status.ERROR),
        (_Nvml(999), HalError, Status.ERROR),
        (_Nvml(12345), HalError, Status.ERROR),
    ],
)
def test_nvidia_errors(failure, kind, status):
    error = nvidia_errors.error(failure, "nvidia:x")
    assert type(error) is kind
    assert error.vendor_code == failure.value
    assert str(error) == "nvidia:x: words"
    assert nvidia_errors.status(failure) is status


@pytest.mark.parametrize(
    ("failure", "kind", "status"),
    [
        (_AmdSmi(2), UnsupportedError, Status.UNSUPPORTED),
        (_AmdSmi(10), StateError, Status.DENIED),
        (_AmdSmi(30), TemporaryError, Status.ERROR),
        (_AmdSmi(31), GoneError, Status.ERROR),
        (_AmdSmi(MAX32), HalError, Status.ERROR),
    ],
)
def test_amd_errors(failure, kind, status):
    error = amd_errors.error(failure, "amd:x")
    assert type(error) is kind
    assert error.vendor_code == failure.err_code
    assert str(error) == "amd:x: words"
    assert amd_errors.status(failure) == (status, "words")


def test_a_wrapper_without_the_call_is_unsupported():
    assert nvidia_errors.status(AttributeError("nvmlNew")) is Status.UNSUPPORTED
    assert amd_errors.status(AttributeError("amdsmi_new"))[0] is Status.UNSUPPORTED
    assert amd_errors.status(ValueError("odd"))[0] is Status.ERROR


def test_cpu_errors():
    assert cpu_errors.status(PermissionError(13, "no")) is Status.DENIED
    assert cpu_errors.status(FileNotFoundError(2, "no")) is Status.UNSUPPORTED
    assert cpu_errors.status(ValueError("odd")) is Status.ERROR
    assert type(cpu_errors.error(PermissionError(13, "no"), "cpu:host")) is StateError
