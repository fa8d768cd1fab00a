"""A store cut short at every page, and with bits turned over: it is refused, or as it was written.

`HAL_ROUNDS` is how many bits are tried (200).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.backend import GoneError, StateError
from hal.scheduler.core import DeviceFacts, Event, NodeFacts, NodeJoined, Release, State, Submit
from hal.scheduler.core.records import changes, everything, read, restore
from hal.scheduler.core.request import Request
from hal.scheduler.places import Places
from hal.scheduler.process import AlreadyRunning, locked
from hal.scheduler.store import Store, care, journal

ROUNDS = int(os.environ.get("HAL_ROUNDS", "200"))
DEVICES = tuple(DeviceFacts(f"x:{number}", "x", "x", 80 << 30) for number in range(8))
NODE = NodeFacts("n", 1000, 1 << 30, DEVICES)


def mark(store: Store) -> int:
    return journal.mark([journal.encode(store.rows())])


def history(path: Path, steps: int = 60) -> Iterator[int]:
    """Leases come and go; the mark of all rows after each commit."""
    store, state = Store(path, kept=40), State()
    yield mark(store)
    state.world.note("meta", "counters")
    store.note(0, journal.Began(0, state.grace_ms, (), ()))
    for at in range(steps):
        events: list[Event] = (
            [Submit(Request(wait=True), f"{at:04}", str(at), 1000)] if at else [NodeJoined(NODE)]
        )
        events += [Release(f"{at - 12:04}", 1000)] if at > 12 else []
        for event in events:
            state.apply(event, at)
            store.note(at, event)
        store.put(changes(state))
        if store.wants_base():
            store.rebase(at, everything(state), tuple(state.world.fleet.facts), state.grace_ms)
        store.commit()
        yield mark(store)
    if steps % 2:
        store.close()
    else:
        os._exit(0)  # as a kill leaves it


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    path = tmp_path_factory.mktemp("closed") / "leases.db"
    return path, list(history(path, 61))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    path = tmp_path_factory.mktemp("killed") / "leases.db"
    told = path.with_name("marks")
    child = os.fork()
    if child == 0:
        with told.open("wb", buffering=0) as file:
            for one in history(path, 60):
                file.write(one.to_bytes(8, "big"))
    os.waitpid(child, 0)
    marks = told.read_bytes()
    return path, [int.from_bytes(marks[at : at + 8], "big") for at in range(0, len(marks), 8)]


def opened(path: Path) -> int | None:
    """The mark of its rows; None: it was refused, with a sentence that names the file."""
    try:
        store = Store(path)
    except StateError as wrong:
        assert str(path) in str(wrong)
        assert "\n" not in str(wrong)
        return None
    try:
        restore(read(store.rows()), [NODE])
        return mark(store)
    finally:
        store.close()


def looked_through(path: Path) -> bool:
    try:
        care.check(path)
    except (StateError, GoneError) as wrong:
        assert str(path) in str(wrong)
        return False
    return True


def copied(source: Path, to: Path) -> Path:
    to.mkdir()
    for suffix in ("", "-wal"):
        one = source.with_name(source.name + suffix)
        if one.exists():
            shutil.copy(one, to)
    return to / source.name


def test_cut_short_at_every_page_it_is_refused(closed: tuple[Path, list[int]], tmp_path: Path) -> None:
    path, marks = closed
    assert looked_through(path)
    whole = path.read_bytes()
    for pages in range(1, len(whole) // 4096):
        cut = copied(path, tmp_path / str(pages))
        cut.write_bytes(whole[: pages * 4096])
        assert opened(cut) in (None, marks[-1])
        cut.write_bytes(whole[: pages * 4096])
        assert not looked_through(cut)


def test_a_log_cut_short_is_an_earlier_state(killed: tuple[Path, list[int]], tmp_path: Path) -> None:
    """What SQLite has not moved into the file yet: the last commits are as if they had never been made."""
    path, marks = killed
    log = path.with_name("leases.db-wal").read_bytes()
    assert opened(copied(path, tmp_path / "whole")) == marks[-1]
    seen = set()
    for number, size in enumerate(range(0, len(log), 8 * 4120)):
        cut = copied(path, tmp_path / str(number))
        cut.with_name("leases.db-wal").write_bytes(log[:size])
        found = opened(cut)
        seen.add(found)
        assert found in (*marks, journal.mark([journal.encode([])]))
    assert len(seen) > 5


@pytest.mark.parametrize("which", ["closed", "killed"])
def test_with_a_bit_turned_over_it_is_refused_or_as_it_was(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path, marks = request.getfixturevalue(which)
    chance = random.Random(11)
    refused = 0
    for number in range(ROUNDS):
        damaged = copied(path, tmp_path / str(number))
        file = chance.choice([one for one in damaged.parent.iterdir() if one.stat().st_size])
        data = bytearray(file.read_bytes())
        at = chance.choice([chance.randrange(len(data)), chance.randrange(min(len(data), 8192))])
        data[at] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        looked_through(damaged)
        found = opened(damaged)
        refused += found is None
        assert found is None or found in (marks if which == "killed" else marks[-1:]), (file.name, at)
        shutil.rmtree(damaged.parent)
    assert which == "killed" or refused > ROUNDS // 20  # a log with a wrong frame ends before it


# ---- backups ----------------------------------------------------------------------------------


def test_a_backup_is_restored_beside_what_was_there(closed: tuple[Path, list[int]], tmp_path: Path) -> None:
    path, _ = closed
    saved = tmp_path / "saved.db"
    care.backup(path, saved)
    assert saved.stat().st_mode & 0o777 == 0o600
    before = care.check(path)
    places = Places(tmp_path / "run")
    places.make()
    places.store.write_bytes(b"damaged")
    with locked(places, None), pytest.raises(AlreadyRunning, match="already serves"):
        care.restore(saved, places)
    old = care.restore(saved, places)
    assert old is not None
    assert old.read_bytes() == b"damaged"
    after = care.check(places.store)
    assert (after.leases, after.waiting) == (before.leases, before.waiting)
    assert after.term == before.term + 1_000_000
    store = Store(places.store)
    counters = read(store.rows()).counters
    assert counters is not None
    assert counters.epoch >= 1_000_000
    store.close()
    assert care.restore(saved, places) != old


def test_a_store_has_one_scheduler_from_whichever_runtime_directory(
    closed: tuple[Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved.db"
    care.backup(closed[0], saved)
    monkeypatch.setenv("HAL_STATE_DIR", str(tmp_path / "state"))
    ours, theirs = (_places(tmp_path / name, monkeypatch) for name in ("ours", "theirs"))
    assert ours.store == theirs.store
    with locked(ours, None):
        with pytest.raises(AlreadyRunning, match=f"already serves {ours.state}"), locked(theirs, None):
            pass
        with pytest.raises(AlreadyRunning):
            care.restore(saved, theirs)
    assert not ours.store.exists()
    assert not list(ours.state.iterdir())
    care.restore(saved, theirs)
    ours.make()
    with locked(ours, None):
        assert ours.store.stat().st_mode & 0o777 == 0o600


def _places(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("HAL_RUNTIME_DIR", str(directory))
    places = Places()
    places.make()
    return places


def test_what_is_no_backup_is_not_restored(tmp_path: Path) -> None:
    places = Places(tmp_path / "run")
    places.make()
    bad = tmp_path / "bad.db"
    with pytest.raises(GoneError, match=f"there is no lease store {bad}"):
        care.restore(bad, places)
    bad.write_bytes(b"nothing of ours" * 1000)
    with pytest.raises(StateError, match=f"the lease store {bad} is damaged"):
        care.restore(bad, places)
    assert not places.store.exists()


def test_a_journal_of_another_history_is_found(closed: tuple[Path, list[int]], tmp_path: Path) -> None:
    """Rows and journal are each as they were written, and do not belong together."""
    path = copied(closed[0], tmp_path / "other")
    store = Store(path)
    store.put([("queue", "odd", journal.encode({"name": "odd"}))])
    store.commit()
    store.close()
    with pytest.raises(StateError, match=r"batch \d+ of the journal does not lead to the rows"):
        care.check(path)
