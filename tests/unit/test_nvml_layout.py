"""The stand-in's NVML structures, numbers and functions are those of the real Python package."""

import ctypes
import re
import subprocess
from pathlib import Path

import pynvml
import pytest

from hal_native import drivers_directory

NATIVE = Path(__file__).parents[2] / "native"
HEADER = (NATIVE / "emulator" / "nvml.h").read_text()

STRUCTURES = {
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlPciInfo_v2_t": pynvml.nvmlPciInfo_v2_t,
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlBAR1Memory_t": pynvml.c_nvmlBAR1Memory_t,
    "nvmlFanSpeedInfo_t": pynvml.c_nvmlFanSpeedInfo_t,
    "nvmlPowerValue_v2_t": pynvml.c_nvmlPowerValue_v2_t,
    "nvmlGpmMetricInfo_t": pynvml.c_metricInfo_t,
    "nvmlGpmMetric_t": pynvml.c_nvmlGpmMetric_t,
    "nvmlGpmMetricsGet_t": pynvml.c_nvmlGpmMetricsGet_t,
    "nvmlGpmSupport_t": pynvml.c_nvmlGpmSupport_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
    "nvmlValue_t": pynvml.c_nvmlValue_t,
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlProcessInfo_v2_t": pynvml.c_nvmlProcessInfo_v2_t,
    "nvmlProcessUtilizationSample_t": pynvml.c_nvmlProcessUtilizationSample_t,
    "nvmlViolationTime_t": pynvml.c_nvmlViolationTime_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "nvmlGpuInstancePlacement_t": pynvml.c_nvmlGpuInstancePlacement_t,
    "nvmlComputeInstancePlacement_t": pynvml.c_nvmlComputeInstancePlacement_t,
    "nvmlGpuInstanceProfileInfo_t": pynvml.c_nvmlGpuInstanceProfileInfo_t,
    "nvmlGpuInstanceProfileInfo_v2_t": pynvml.c_nvmlGpuInstanceProfileInfo_v2_t,
    "nvmlGpuInstanceInfo_t": pynvml.c_nvmlGpuInstanceInfo_t,
    "nvmlComputeInstanceProfileInfo_t": pynvml.c_nvmlComputeInstanceProfileInfo_t,
    "nvmlComputeInstanceProfileInfo_v2_t": pynvml.c_nvmlComputeInstanceProfileInfo_v2_t,
    "nvmlComputeInstanceInfo_t": pynvml.c_nvmlComputeInstanceInfo_t,
    "nvmlSetMemoryLimits_v1_t": pynvml.c_nvmlSetMemoryLimits_v1_t,
    "nvmlGetMemoryLimits_v1_t": pynvml.c_nvmlGetMemoryLimits_v1_t,
    "nvmlDeviceAttributes_t": pynvml.c_nvmlDeviceAttributes,
}
# NVML's first form of it, which pynvml no longer has.
WITHOUT_PEER = {"nvmlProcessInfo_v1_t"}


def constants() -> list[str]:
    """Every number that the header gives under a name of NVML's."""
    names = re.findall(r"^ +(?:R\()?(NVML_[A-Z0-9_]+|nvml\w+)(?:,| =) ", HEADER, re.MULTILINE)
    return sorted({*names, "NVML_DEVICE_ARCH_UNKNOWN"})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C compiler makes of the header: expression -> value."""
    expressions = list(constants())
    for name, peer in STRUCTURES.items():
        expressions.append(f"sizeof({name})")
        for field in peer._fields_:
            expressions.append(f"offsetof({name}, {field[0]})")
            expressions.append(f"sizeof((({name} *)0)->{field[0]})")
    prints = "\n".join(f'printf("%s=%lld\\n", "{e}", (long long)({e}));' for e in expressions)
    headers = '#include <stddef.h>\n#include <stdio.h>\n#include "nvml.h"\n'
    source = f"{headers}int main(void) {{\n{prints}\nreturn 0;\n}}\n"
    work = tmp_path_factory.mktemp("nvml_layout")
    (work / "layout.c").write_text(source)
    include = [f"-I{NATIVE / part}" for part in ("include", "ledger", "emulator")]
    command = ["cc", "-std=c11", *include, "layout.c", "-o", "layout"]
    subprocess.run(command, cwd=work, check=True)
    output = subprocess.run([work / "layout"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.rsplit("=", 1) for line in output.splitlines())}


def test_every_structure_of_the_header_is_compared() -> None:
    names = re.findall(r"^} (nvml\w+_t(?:, nvml\w+_t)*);", HEADER, re.MULTILINE)
    declared = {name for line in names for name in line.split(", ")}
    assert declared == set(STRUCTURES) | WITHOUT_PEER


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_has_the_layout_of_pynvml(name: str, compiled: dict[str, int]) -> None:
    peer = STRUCTURES[name]
    expected = {f"sizeof({name})": ctypes.sizeof(peer)}
    for field in peer._fields_:
        descriptor = getattr(peer, field[0])
        expected[f"offsetof({name}, {field[0]})"] = descriptor.offset
        expected[f"sizeof((({name} *)0)->{field[0]})"] = descriptor.size
    assert {key: compiled[key] for key in expected} == expected


def test_names_have_the_numbers_of_pynvml(compiled: dict[str, int]) -> None:
    expected = {name: getattr(pynvml, name) for name in constants()}
    assert len(expected) > 150
    assert {name: compiled[name] for name in expected} == expected


def test_every_function_that_pynvml_binds_is_there() -> None:
    bound = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', Path(pynvml.__file__).read_text()))
    library = ctypes.CDLL(str(drivers_directory() / "libnvidia-ml.so.1"))
    assert len(bound) > 400
    assert [name for name in sorted(bound) if not hasattr(library, name)] == []
