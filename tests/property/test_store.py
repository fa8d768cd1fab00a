"""Every end that a crash can give a store's log, and damage anywhere in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.backend import StateError
from hal.scheduler import core
from hal.scheduler.core.records import Row
from hal.scheduler.store import Store
from hal.scheduler.store.care import check

FRAME = 24 + 4096
TURNS = 8


class Written:
    """A store while its daemon was killed: its files, and its rows and the log's length after each commit."""

    def __init__(self, directory: Path) -> None:
        path = directory / "leases.db"
        store = Store(path)
        log = path.with_name("leases.db-wal")
        self.after: list[tuple[int, list[Row]]] = [(log.stat().st_size, store.rows())]
        for number in range(TURNS):
            store.put([("lease", f"{number}", b"x" * 900), ("meta", "counters", b"%d" % number)])
            if number % 3 == 2:
                store.put([("lease", f"{number - 1}", None)])
            store.note(number, core.HolderGone(f"{number}"))
            store.commit()
            self.after.append((log.stat().st_size, store.rows()))
        self.log = log.read_bytes()
        self.file = path.read_bytes()
        store.close()
        self.closed = path.read_bytes()

    def opened(self, directory: Path, file: bytes, log: bytes) -> list[Row]:
        path = directory / "leases.db"
        path.write_bytes(file)
        path.with_name("leases.db-shm").unlink(missing_ok=True)
        path.with_name("leases.db-wal").write_bytes(log)
        store = Store(path)
        try:
            return store.rows()
        finally:
            store.close()

    def said_by(self, length: int) -> list[Row] | None:
        """What was acknowledged when the log had this length."""
        return next((rows for size, rows in reversed(self.after) if size <= length), None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("written"))


def places(length: int, stride: int) -> Iterator[int]:
    """Around each edge of a frame, and some in between."""
    near = {32 + k * FRAME + d for k in range(length // FRAME + 1) for d in (-1, 0, 1, 7, 8, 16, 23, 24)}
    yield from sorted(one for one in near | set(range(0, length, stride)) if 0 <= one < length)


def test_whatever_a_crash_leaves_of_the_log_all_that_was_said_is_there(
    written: Written, tmp_path: Path
) -> None:
    tried = 0
    for length in places(len(written.log), 997):
        if (said := written.said_by(length)) is None:
            continue  # before the store itself was made
        assert written.opened(tmp_path, written.file, written.log[:length]) == said, length
        tried += 1
    assert tried > 100


def test_damage_in_the_log_is_refused_unless_it_may_be_a_torn_end(written: Written, tmp_path: Path) -> None:
    last, final = written.after[-1]
    before_last, older = written.after[-2]
    refused = 0
    for at in places(last, 499):
        log = bytearray(written.log)
        log[at] ^= 0x40
        try:
            rows = written.opened(tmp_path, written.file, bytes(log))
        except StateError as wrong:
            assert "leases.db-wal is not as it was written at byte" in str(wrong)
            assert "hal admin restore" in str(wrong)
            refused += 1
            continue
        assert rows == final or (at >= before_last and rows == older), at
    assert refused > 100


def test_a_check_refuses_what_the_daemon_would(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    path.write_bytes(written.file)
    log = bytearray(written.log)
    log[5000] ^= 0x40
    path.with_name("leases.db-wal").write_bytes(log)
    with pytest.raises(StateError, match=r"leases\.db-wal is not as it was written at byte 4152"):
        check(path)


def test_damage_in_the_file_is_refused_or_does_not_matter(written: Written, tmp_path: Path) -> None:
    _, final = written.after[-1]
    refused = 0
    for at in range(0, len(written.closed), 61):
        file = bytearray(written.closed)
        file[at] ^= 0x40
        try:
            assert written.opened(tmp_path, bytes(file), b"") == final, at
        except StateError:
            refused += 1
    assert refused > 50
