"""The stand-in libamd_smi.so has the layouts and the symbols that AMD's Python package binds."""

import ctypes
import importlib.resources
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"

STRUCTURES = [
    "amdsmi_version_t",
    "amdsmi_enumeration_info_t",
    "amdsmi_asic_info_t",
    "amdsmi_board_info_t",
    "amdsmi_driver_info_t",
    "amdsmi_kfd_info_t",
    "amdsmi_vram_info_t",
    "amdsmi_vram_usage_t",
    "amdsmi_engine_usage_t",
    "amdsmi_power_info_t",
    "amdsmi_power_cap_info_t",
    "amdsmi_proc_info_t",
    "amdsmi_process_info_t",
    "amdsmi_clk_info_t",
    "amdsmi_pcie_info_t",
    "amdsmi_error_count_t",
    "amdsmi_ras_feature_t",
    "amdsmi_retired_page_record_t",
    "amdsmi_link_metrics_t",
    "amdsmi_xgmi_link_status_t",
    "amdsmi_xgmi_info_t",
    "amdsmi_p2p_capability_t",
    "amdsmi_topology_nearest_t",
    "amdsmi_accelerator_partition_profile_t",
    "amdsmi_accelerator_partition_profile_config_t",
    "amdsmi_evt_notification_data_t",
    "amdsmi_memory_partition_config_t",
    "amdsmi_violation_status_t",
    "amd_metrics_table_header_t",
    "amdsmi_gpu_xcp_metrics_t",
    "amdsmi_gpu_metrics_t",
]

# Prints {structure: {field: [offset, size]}}; the structure itself is the field "", and a field of a
# field is written as in C.
DESCRIBE = """
import ctypes, json, sys
from amdsmi import amdsmi_wrapper

def fields(kind, prefix="", start=0):
    for name, inner in kind._fields_:
        if name.startswith("PADDING"):
            continue
        offset = start + getattr(kind, name).offset
        yield prefix + name, [offset, ctypes.sizeof(inner)]
        if issubclass(inner, ctypes.Structure):
            yield from fields(inner, prefix + name + ".", offset)

kinds = {name: getattr(amdsmi_wrapper, name) for name in sys.argv[1:]}
print(json.dumps({n: {"": [0, ctypes.sizeof(k)]} | dict(fields(k)) for n, k in kinds.items()}))
"""

PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include "amdsmi.h"
int main(void) {{
{body}
    return 0;
}}
"""


@pytest.fixture(scope="module")
def drivers() -> Path:
    if importlib.util.find_spec("hal_native") is None:
        pytest.skip("hal_native is not installed")
    path = Path(str(importlib.resources.files("hal_native") / "drivers"))
    if not (path / "libamd_smi.so").exists():
        pytest.skip("hal_native was built without the stand-in drivers")
    return path


@pytest.fixture(scope="module")
def wrapper() -> Path:
    """The package's source: to import it needs the library."""
    spec = importlib.util.find_spec("amdsmi")
    if spec is None or spec.origin is None:
        pytest.skip("AMD's package amdsmi is not installed")
    return Path(spec.origin).with_name("amdsmi_wrapper.py")


@pytest.fixture(scope="module")
def theirs(drivers: Path, wrapper: Path) -> dict[str, dict[str, list[int]]]:
    environment = {k: v for k, v in os.environ.items() if k not in ("ROCM_HOME", "ROCM_PATH")}
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, *STRUCTURES],
        env=environment | {"LD_LIBRARY_PATH": str(drivers)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ours(
    theirs: dict[str, dict[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[int]]]:
    """The same description from our header; a field that it lacks does not compile."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("layout")
    lines = []
    for kind, fields in theirs.items():
        for field in fields:
            offset = f"offsetof({kind}, {field})" if field else "(size_t)0"
            size = f"sizeof((({kind} *)0)->{field})" if field else f"sizeof({kind})"
            lines.append(f'    printf("{kind} %zu %zu {field}\\n", {offset}, {size});')
    source, program = folder / "layout.c", folder / "layout"
    source.write_text(PROGRAM.format(body="\n".join(lines)))
    includes = [f"-I{NATIVE / name}" for name in ("include", "ledger", "emulator")]
    subprocess.run(["cc", "-std=c11", *includes, str(source), "-o", str(program)], check=True)
    found: dict[str, dict[str, list[int]]] = {}
    for line in subprocess.check_output([str(program)], text=True).splitlines():
        kind, offset, size, field = line.split(" ")
        found.setdefault(kind, {})[field] = [int(offset), int(size)]
    return found


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_are_laid_out_as_the_package_reads_them(structure, ours, theirs) -> None:
    assert ours[structure] == theirs[structure]


def test_every_function_that_the_package_binds_is_there(drivers: Path, wrapper: Path) -> None:
    names = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper.read_text()))
    assert len(names) > 100, "the package's source is written in another way now"
    library = ctypes.CDLL(str(drivers / "libamd_smi.so"))
    assert [name for name in sorted(names) if not hasattr(library, name)] == []
