"""Whether the guard reaches a program. It is loaded by the dynamic loader of glibc (ld.so(8), LD_PRELOAD),
and who is started without that loader, or without its variable, is not held by it."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["descendants", "unheld", "why_not"]

_PT_INTERP = 3  # elf(5)
_DEEPEST_SCRIPT = 4  # a script's interpreter may be a script
_RUNTIMES = ("libcuda.so", "libamdhip64.so", "libhsa-runtime64.so")
_GUARD = "libhalguard.so"


def why_not(program: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why the guard will not be in this program when it is started, in a few words; None: nothing speaks
    against it.

    Of a file that cannot be read nothing is said: the kernel will.
    """
    found = shutil.which(program, path=environ.get("PATH"))
    return None if found is None else _of_file(Path(found), environ, _DEEPEST_SCRIPT)


def _of_file(path: Path, environ: Mapping[str, str], deeper: int) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
            rest = file.read(64 << 10)
            mode = os.fstat(file.fileno()).st_mode
    except OSError:
        return None
    if head[:4] == b"\x7fELF":
        privileged = mode & (stat.S_ISUID | stat.S_ISGID)
        return _of_elf(head, rest) or (
            "the loader ignores LD_PRELOAD for a set-user-ID program" if privileged else None
        )
    interpreter = (head + rest[:192]).splitlines()[0][2:].split() if head[:2] == b"#!" else []
    if not interpreter:
        return None
    if deeper == 0:
        return None
    name = os.fsdecode(interpreter[0])
    if Path(name).name == "env" and len(interpreter) > 1:  # "#!/usr/bin/env python3"
        named = [
            word for word in map(os.fsdecode, interpreter[1:]) if not word.startswith("-") and "=" not in word
        ]
        name = (shutil.which(named[0], path=environ.get("PATH")) or name) if named else name
    return _of_file(Path(name), environ, deeper - 1)


def _of_elf(head: bytes, rest: bytes) -> str | None:
    """``head`` is the ELF header, ``rest`` what follows it in the file."""
    if len(head) < 64 or head[4] != 2:
        return "it is not a 64-bit program"
    order = "<" if head[5] == 1 else ">"
    table, size, count = (
        struct.unpack_from(order + "Q", head, 32)[0],
        *struct.unpack_from(order + "HH", head, 54),
    )
    content = head + rest
    for number in range(count):
        at = table + number * size
        if at + 56 > len(content):
            return None  # the table is somewhere else: unusual, and no reason to say anything
        if struct.unpack_from(order + "I", content, at)[0] != _PT_INTERP:
            continue
        offset = struct.unpack_from(order + "Q", content, at + 8)[0]
        length = struct.unpack_from(order + "Q", content, at + 32)[0]
        loader = content[offset : offset + length].rstrip(b"\0")
        return "it uses musl's loader, and the guard needs glibc's" if b"musl" in loader else None
    return "it is linked statically"


def descendants(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """A process and all that it has started and that still lives."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo.extend(children.get(one, []))
    return found


def unheld(pids: Iterable[int], proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Those processes that use a device's runtime and have no guard in them, as (pid, name).

    They may have cleared their environment, or come through something that does (sudo, ssh, ``env -i``).
    """
    found = []
    for pid in pids:
        try:
            maps = (proc / str(pid) / "maps").read_text(errors="replace")
            if _GUARD not in maps and any(runtime in maps for runtime in _RUNTIMES):
                found.append((pid, (proc / str(pid) / "comm").read_text(errors="replace").strip()))
        except OSError:  # it has ended, or is not ours to look at
            continue
    return found
