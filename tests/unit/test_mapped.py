"""Who has a file mapped, whether it has a name still or not."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hal.enforce.mapped import Mapped
from tests.conftest import wait_until

MAPS = """
import mmap, os, signal, sys
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 4096)
file.close()
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "forks" in sys.argv and os.fork():
    del mapped
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a slice"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def mapping(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", MAPS, file], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_it_is_found_and_ended_and_others_are_left(file: Path, mapping: subprocess.Popen[bytes]) -> None:
    other = file.with_name("another")
    other.write_bytes(bytes(4096))
    with closing(Mapped(file)) as found, closing(Mapped(other)) as none:
        assert (found.signal(0), none.signal(signal.SIGKILL)) == ([mapping.pid], [])
        assert found.signal(signal.SIGTERM) == [mapping.pid]
        assert mapping.wait(20) == -signal.SIGTERM
        assert found.signal(signal.SIGTERM) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_without_a_name_still_has_its_programs(
    file: Path, mapping: subprocess.Popen[bytes], when: str
) -> None:
    if when == "before":
        file.unlink()
    with closing(Mapped(file)) as found:
        file.unlink(missing_ok=True)
        file.write_bytes(bytes(4096))  # another of that name
        assert found.signal(0) == [mapping.pid]


def test_one_that_moved_is_known_by_its_number(file: Path, mapping: subprocess.Popen[bytes]) -> None:
    file.rename(file.with_name("moved"))
    with closing(Mapped(file.with_name("moved"))) as found:
        assert found.signal(0) == [mapping.pid]
    linked = file.with_name("linked")
    os.link(file.with_name("moved"), linked)
    with closing(Mapped(linked)) as found:
        assert found.signal(0) == [mapping.pid]


def test_children_have_it_too_and_come_to_light_when_the_others_have_ended(file: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", MAPS, file, "deaf", "forks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, closing(Mapped(file)) as found:
        assert process.stdout is not None
        process.stdout.readline(), process.stdout.readline()
        assert len(found.signal(signal.SIGTERM)) == 1  # its parent has it no more
        wait_until(lambda: not found.signal(signal.SIGKILL))
        process.kill()


def test_this_process_is_never_among_them(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096), closing(Mapped(file)) as found:
        assert found.signal(signal.SIGKILL) == []


def test_what_was_never_there_has_nobody(tmp_path: Path) -> None:
    with closing(Mapped(tmp_path / "nothing")) as found:
        assert found.signal(signal.SIGKILL) == []
