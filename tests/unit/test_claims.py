"""The node's book of claims: what may stand beside what, and that it lives and dies with its makers."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.backend import StateError, TemporaryError
from hal.slices.claims import ALL_MILLI, Book, Claim, conflict

GIB = 1 << 30
DEVICE = "nvidia:GPU-1"


def claim(memory: int = GIB, *, device: str = DEVICE, **more: object) -> Claim:
    return Claim(id="", device=device, memory_bytes=memory, **more)  # type: ignore[arg-type]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "node")


def test_claims_of_one_device_never_pass_its_memory(book: Book) -> None:
    book.claim(claim(6 * GIB), 10 * GIB)
    with pytest.raises(TemporaryError, match=r"4\.0 GiB unclaimed of 10\.0 GiB, and 5\.0 GiB is wanted"):
        book.claim(claim(5 * GIB), 10 * GIB)
    book.claim(claim(4 * GIB), 10 * GIB)
    book.claim(claim(10 * GIB, device="amd:pci-1"), 10 * GIB)


def test_shares_of_time_never_pass_the_whole(book: Book) -> None:
    book.claim(claim(compute_milli=700), 10 * GIB)
    with pytest.raises(TemporaryError, match=r"30 % of its time unclaimed, and 31 % is wanted"):
        book.claim(claim(compute_milli=310), 10 * GIB)
    book.claim(claim(compute_milli=300), 10 * GIB)
    book.claim(claim(), 10 * GIB)  # takes what it gets


def test_a_directory_that_was_made_by_hand_becomes_a_book(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node").chmod(0o1777)
    book = Book(tmp_path / "node")
    before = os.umask(0o077)
    try:
        book.claim(claim(), 10 * GIB)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "node/lock").stat().st_mode) == 0o666
    assert len(Book(tmp_path / "node").claims()) == 1
    assert not list((tmp_path / "node").glob(".lock-*"))


def test_a_whole_device_is_one_holders(book: Book) -> None:
    whole = book.claim(claim(10 * GIB, whole=True, name="training"), 10 * GIB)
    with pytest.raises(TemporaryError, match="claimed whole by 'training'"):
        book.claim(claim(), 10 * GIB)
    book.end(whole.id)
    book.claim(claim(), 10 * GIB)
    with pytest.raises(TemporaryError, match="1 slices on it"):
        book.claim(claim(10 * GIB, whole=True), 10 * GIB)


def test_a_changed_claim_is_held_against_the_others_only(book: Book) -> None:
    first = book.claim(claim(6 * GIB, kept=True), 10 * GIB)
    book.claim(claim(2 * GIB), 10 * GIB)
    bigger = Claim(id=first.id, device=DEVICE, memory_bytes=8 * GIB, kept=True)
    book.change(bigger, 10 * GIB)
    with pytest.raises(TemporaryError):
        book.change(Claim(id=first.id, device=DEVICE, memory_bytes=9 * GIB, kept=True), 10 * GIB)
    assert bigger in [held.claim for held in book.claims()]


def test_a_claim_ends_with_its_maker_unless_it_is_kept(book: Book) -> None:
    ready, parent = multiprocessing.Pipe()

    def maker() -> None:
        own = Book(book.directory)
        own.claim(claim(name="held"), 10 * GIB)
        own.claim(claim(name="kept", kept=True), 10 * GIB)
        ready.send(True)
        signal.pause()

    process = multiprocessing.get_context("fork").Process(target=maker)
    process.start()
    assert parent.recv()
    assert {held.claim.name for held in book.claims()} == {"held", "kept"}
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert {held.claim.name for held in book.claims()} == {"kept"}
    assert len(list(book.directory.glob("*.claim"))) == 1  # what the dead one left is swept


def test_a_scheduler_takes_its_kept_claims_over(book: Book) -> None:
    made = book.claim(claim(kept=True), 10 * GIB)
    successor = Book(book.directory)
    successor.hold(made.id)
    successor.close()
    assert book.claims() == []
    with pytest.raises(StateError, match="cannot hold the claim"):
        successor.hold(made.id)


def _claim_all(directory: Path, wins: list[int]) -> None:
    own = Book(directory)
    for _ in range(30):
        try:
            own.claim(claim(GIB, kept=True), 40 * GIB)
        except TemporaryError:
            return
        wins.append(1)


def test_many_at_once_get_exactly_what_there_is(book: Book) -> None:
    fork = multiprocessing.get_context("fork")
    with fork.Manager() as manager:
        wins = manager.list()
        makers = [fork.Process(target=_claim_all, args=(book.directory, wins)) for _ in range(4)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        assert len(wins) == 40
    assert sum(held.claim.memory_bytes for held in book.claims()) == 40 * GIB


def test_all_users_may_write_to_the_book_and_end_only_their_own(book: Book) -> None:
    before = os.umask(0o077)
    try:
        book.claim(claim(), 10 * GIB)
    finally:
        os.umask(before)
    assert stat.S_IMODE(book.directory.stat().st_mode) == 0o1777  # sticky: only owners remove
    assert stat.S_IMODE((book.directory / "lock").stat().st_mode) == 0o666
    file = next(book.directory.glob("*.claim"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff\xfe", b"[" * 20000, b'{"id":"other","device":"x","memory_bytes":1}',
     b'{"id":"strange","device":"x","memory_bytes":-5}',
     b'{"id":"strange","device":"x","memory_bytes":1,"compute_milli":99999}'],
)  # fmt: skip
def test_a_strange_file_claims_nothing(book: Book, content: bytes) -> None:
    book.claim(claim(), 10 * GIB)
    (book.directory / "strange.claim").write_bytes(content)
    (book.directory / "link.claim").symlink_to("/etc/passwd")
    os.mkfifo(book.directory / "pipe.claim")
    assert len(book.claims()) == 1


def test_a_directory_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file")
    with pytest.raises(StateError, match="book of claims"):
        Book(tmp_path / "node").claim(claim(), GIB)


def test_ids_are_no_paths(book: Book) -> None:
    for strange in ("../x", "a/b", "", "."):
        with pytest.raises(StateError, match="no claim's id"):
            book.end(strange)


@given(
    st.lists(
        st.builds(
            Claim,
            id=st.uuids().map(lambda u: u.hex),
            device=st.sampled_from(["a", "b"]),
            memory_bytes=st.integers(0, 12),
            compute_milli=st.integers(0, ALL_MILLI),
            whole=st.booleans(),
        ),
        max_size=20,
    )
)
def test_what_is_let_in_never_passes_any_device(wanted: list[Claim]) -> None:
    book: list[Claim] = []
    for one in wanted:
        if conflict(one, book, 10) is None:
            book.append(one)
    for device in ("a", "b"):
        here = [one for one in book if one.device == device]
        assert sum(one.memory_bytes for one in here if not one.whole) <= 10
        assert sum(one.compute_milli for one in here if not one.whole) <= ALL_MILLI
        assert len(here) == 1 or not any(one.whole for one in here)


def test_without_files_nothing_is_taken_for_free(book: Book) -> None:
    book.claim(claim(kept=True), 10 * GIB)
    other = Book(book.directory)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(book.directory, os.O_RDONLY)  # and all below it are in use
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(StateError, match="Too many open files"):
            other.claims()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(lowest)
    assert len(other.claims()) == 1


def test_a_claim_that_others_would_not_read_is_none(book: Book) -> None:
    with pytest.raises(StateError, match="at most 16384 bytes"):
        book.claim(claim(name="x" * 20_000), 10 * GIB)
    assert not list(book.directory.glob("*.claim*"))
    long = book.claim(claim(GIB, group="/" + "x" * 2000, kept=True), 10 * GIB)
    book.change(Claim(id=long.id, device=DEVICE, memory_bytes=2 * GIB, kept=True), 10 * GIB)
    (held,) = Book(book.directory).claims()
    assert held.claim.memory_bytes == 2 * GIB
