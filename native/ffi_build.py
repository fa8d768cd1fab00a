"""Emits the C source of hal_native._native from the shared headers: ``python ffi_build.py OUT.c``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

INCLUDE = Path(__file__).resolve().parent / "include"
HEADERS = ("hal_ledger.h", "hal_machine.h")


def declarations(text: str) -> str:
    """A header as cffi reads it: no comments, directives, alignment, atomics or inline bodies.

    cffi takes every layout from the C compiler where a structure is marked with ``...``.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    text = re.sub(r"static inline .*?\n?\{.*?\}\n", "", text, flags=re.S)
    text = re.sub(r"_Alignas\(\d+\)|_Atomic", "", text)
    return re.sub(r"^(struct \w+ \{.*?)^\};", r"\1 ...; };", text, flags=re.S | re.M)


def main(out: str) -> None:
    ffi = cffi.FFI()
    for header in HEADERS:
        ffi.cdef(declarations((INCLUDE / header).read_text()))
    ffi.cdef("uint32_t hal_ledger_owner_pid(uint64_t owner);")
    ffi.cdef("unsigned hal_ledger_devices(const struct hal_ledger *l);")
    source = "".join(f'#include "{header}"\n' for header in HEADERS)
    ffi.set_source("hal_native._native", source, py_limited_api=True)
    ffi.emit_c_code(out)


if __name__ == "__main__":
    main(sys.argv[1])
