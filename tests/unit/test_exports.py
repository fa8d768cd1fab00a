"""What the compiled parts show to the programs that they are loaded into: their purpose and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hal_native import drivers_directory, guard_library

NATIVE = Path(__file__).parents[2] / "native"
DRIVERS = {
    "libnvidia-ml.so.1": r"nvml[A-Z]\w+",
    "libcuda.so.1": r"cu[A-Z]\w+",
    "libamd_smi.so": r"amdsmi_\w+",
    "libamdhip64.so": r"hip[A-Z]\w+",
    "libamdhip64.so.6": r"hip[A-Z]\w+",
    "libamdhip64.so.7": r"hip[A-Z]\w+",
}


def exported(library: Path) -> set[str]:
    """Names of the dynamic symbols that it defines."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", library], capture_output=True, text=True, check=True
    )
    return {line.split()[0].partition("@")[0] for line in listed.stdout.splitlines()}


def needed(library: Path) -> set[str]:
    listed = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True)
    return set(re.findall(r"NEEDED +(\S+)", listed.stdout))


def test_the_guard_shows_its_hooks_only() -> None:
    found = exported(guard_library())
    marked: set[str] = set()
    for source in (NATIVE / "guard").glob("*.[ch]"):
        marked |= set(re.findall(r"^HOOK\b[^;{(]*?\b(\w+)\(", source.read_text(), flags=re.MULTILINE))
    assert {"dlsym", "cuMemAlloc_v2", "hipMalloc"} <= found
    assert not [name for name in found if not re.fullmatch(r"dlsym|dlmopen|(cu|hip|nvml)[A-Z]\w+", name)]
    assert marked <= found


def test_the_guard_runs_on_glibc_2_28() -> None:
    """It is preloaded into other people's containers, whose C library is older than the host's."""
    listed = subprocess.run(["objdump", "-T", guard_library()], capture_output=True, text=True, check=True)
    asked = re.findall(r"\*UND\*.*\(GLIBC_([0-9.]+)\) +(\S+)", listed.stdout)
    assert asked
    assert not [entry for entry in asked if tuple(map(int, entry[0].split("."))) > (2, 28)]


def test_the_guard_needs_the_c_library_only() -> None:
    assert needed(guard_library()) <= {"libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}


@pytest.mark.parametrize("name", DRIVERS)
def test_a_stand_in_shows_its_vendors_functions_only(name: str) -> None:
    library = drivers_directory() / name
    found = exported(library)
    assert found
    # Tests switch faults on in a driver that is loaded already.
    own = {name for name in found if not name.startswith("hal_emulator_")}
    assert not [symbol for symbol in own if not re.fullmatch(DRIVERS[name], symbol)]
    assert needed(library) <= {"libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def test_every_hook_has_a_stand_in_to_be_tested_against() -> None:
    hooks = exported(guard_library()) - {"dlsym", "dlmopen"}
    drivers = ("libcuda.so.1", "libamdhip64.so", "libnvidia-ml.so.1")
    assert not hooks - set().union(*(exported(drivers_directory() / name) for name in drivers))


def test_the_guard_runs_where_glibc_is_old() -> None:
    """It goes into other people's containers: nothing newer than 2.28 (RHEL 8, Debian 10)."""
    listed = subprocess.run(["objdump", "-T", guard_library()], capture_output=True, text=True, check=True)
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_(\d+(?:\.\d+)+)", listed.stdout)}
    assert versions
    assert max(versions) <= (2, 28), f"{listed.stdout}"


def test_no_stand_in_is_missing_from_here() -> None:
    assert {file.name for file in drivers_directory().iterdir()} == set(DRIVERS)
