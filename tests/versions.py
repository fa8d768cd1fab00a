"""hal's compiled half as another version would have it: of this one's source, with another number in it.

A later version that shares its files with this one also writes something that this one does not know, where
docs/ledger.md lets it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from hal_native import drivers_directory, guard_library, lib
from tests.conftest import HAL

__all__ = ["NOW", "Version", "built"]

NATIVE = Path(__file__).parents[1] / "native"
NOW = int(lib.HAL_LEDGER_VERSION)
_EMULATOR = ("emulator", "faults", "hold", "machine", "timeline")
# `python -m hal`, but for `hal_native`, which comes from the folder that is named first.
_RUN = """
import runpy, sys
sys.meta_path[:] = [one for one in sys.meta_path if not type(one).__module__.startswith("_editable")]
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("hal", run_name="__main__", alter_sys=True)
"""


class Version:
    """``hal`` is the command; programs that it starts in a slice have its guard."""

    def __init__(self, folder: Path | None = None) -> None:
        self.hal = HAL if folder is None else [sys.executable, "-c", _RUN, str(folder)]
        self.guard = guard_library() if folder is None else folder / "hal_native" / "libhalguard.so"


def built(folder: Path, number: int, oldest: int) -> Version:
    native = folder / "native"
    shutil.copytree(NATIVE, native, ignore=shutil.ignore_patterns("tests", "bench", "__pycache__"))
    _edit(native / "include" / "hal_ledger.h", r"(HAL_LEDGER_VERSION =) \d+", rf"\1 {number}")
    _edit(native / "include" / "hal_ledger.h", r"(HAL_LEDGER_OLDEST =) \d+", rf"\1 {oldest}")
    if number > NOW:
        _edit(native / "ledger" / "file.c", r"(l->reads = .*;)", r"\1 atomic_store(&l->reserved[10], 4711);")
    package = folder / "hal_native"
    package.mkdir()
    shutil.copy(native / "hal_native" / "__init__.py", package)
    for name in ("drivers", "programs"):
        (package / name).symlink_to(drivers_directory().parent / name)
    subprocess.run([sys.executable, native / "ffi_build.py", native / "_native.c"], check=True)
    ledger = sorted((native / "ledger").glob("*.c"))
    emulator = [native / "emulator" / f"{name}.c" for name in _EMULATOR]
    python = [f"-I{sysconfig.get_path('include')}", "-DPy_LIMITED_API=0x030B0000"]
    _link(package / "_native.abi3.so", [native / "_native.c", *ledger, *emulator], *python)
    hot = re.findall(r'#include ".*?(\w+\.c)"', (native / "guard" / "hot.c").read_text())
    guard = [one for one in [*ledger, *(native / "guard").glob("*.c")] if one.name not in hot]
    _link(package / "libhalguard.so", guard, "-include", str(native / "guard" / "glibc.h"), "-Wl,-z,now")
    return Version(folder)


def _link(library: Path, sources: list[Path], *options: str) -> None:
    native = library.parents[1] / "native"
    folders = [f"-I{native / name}" for name in ("include", "ledger", "emulator", "guard")]
    how = ["-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"]
    how.append("-Wno-incompatible-pointer-types")  # as native/CMakeLists.txt has it for cffi's checks
    command: list[str | Path] = [
        "cc",
        *how,
        *folders,
        *options,
        "-o",
        library,
        *sources,
        "-Wl,--no-as-needed",
        "-ldl",
        "-lm",
    ]
    subprocess.run(command, check=True)


def _edit(file: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, file.read_text())
    assert count == 1, (file, pattern)
    file.write_text(text)
