"""Which programs the guard gets into, and which use a device without it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.enforce.reach import _of_elf, descendants, unheld, why_not

SOURCE = "int main(void) { return 0; }\n"


def build(directory: Path, *options: str) -> str:
    source = directory / "program.c"
    source.write_text(SOURCE)
    done = subprocess.run(
        [os.environ.get("CC", "cc"), *options, source, "-o", directory / "program"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"cannot build with {options}: {done.stderr[:200]}")
    return str(directory / "program")


def test_a_dynamic_program_is_reached(tmp_path: Path) -> None:
    assert why_not(build(tmp_path)) is None
    assert why_not(sys.executable) is None
    assert why_not("sh") is None


def test_a_static_program_is_not(tmp_path: Path) -> None:
    assert why_not(build(tmp_path, "-static")) == "it is linked statically"


def test_a_set_user_id_program_is_not(tmp_path: Path) -> None:
    program = build(tmp_path)
    Path(program).chmod(0o755 | stat.S_ISUID)
    assert "set-user-ID" in (why_not(program) or "")


def test_a_script_is_what_its_interpreter_is(tmp_path: Path) -> None:
    static = build(tmp_path, "-static")
    script = tmp_path / "script"
    lines = {f"#!{static}\n": "it is linked statically"}
    lines |= dict.fromkeys(("#!/bin/sh\n", "#!/usr/bin/env python3\n", "#!/no/such/thing\n", "#!\n"))
    for line, reason in lines.items():
        script.write_text(line)
        script.chmod(0o755)
        assert why_not(str(script)) == reason, line
    (tmp_path / "mine").symlink_to(static)
    script.write_text("#!/usr/bin/env mine\n")
    assert why_not(str(script), {"PATH": str(tmp_path)}) == "it is linked statically"


def test_a_script_that_interprets_itself_ends(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    assert why_not(str(script)) is None


def test_what_is_not_there_is_left_to_the_kernel(tmp_path: Path) -> None:
    assert why_not("no-such-program") is None
    (tmp_path / "empty").touch(mode=0o755)
    assert why_not(str(tmp_path / "empty")) is None


@given(st.binary(max_size=200), st.binary(max_size=400))
def test_no_bytes_break_the_look(head: bytes, rest: bytes) -> None:
    whole = (b"\x7fELF\x02\x01" + head).ljust(64, b"\0")
    _of_elf(whole[:64], whole[64:] + rest)


def test_processes_that_use_a_runtime_without_the_guard_are_found(tmp_path: Path) -> None:
    processes = (
        (10, 1, "/x/libcuda.so.1\n"),
        (11, 10, "/x/libcuda.so.1\n/y/libhalguard.so\n"),
        (12, 11, "/lib/libc.so.6\n"),
        (13, 12, "/x/libamdhip64.so.7\n"),
        (14, 1, ""),
    )
    for pid, parent, maps in processes:
        directory = tmp_path / str(pid)
        directory.mkdir()
        (directory / "maps").write_text(maps)
        (directory / "comm").write_text(f"program{pid}\n")
        (directory / "stat").write_text(f"{pid} (a) b) c) S {parent} 0\n")
    assert sorted(descendants(10, tmp_path)) == [10, 11, 12, 13]
    assert unheld(sorted(descendants(10, tmp_path)), tmp_path) == [(10, "program10"), (13, "program13")]
    shutil.rmtree(tmp_path / "13")
    assert unheld([13], tmp_path) == []
