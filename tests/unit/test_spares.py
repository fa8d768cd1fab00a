"""Slice files made ahead of time are like those made when they are needed, and none is left over."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from hal.backend import StateError
from hal.enforce.ledger import Ledger
from hal.enforce.spares import Spares
from hal.model import Enforcement, Rung
from hal.scheduler.agent.binding import Binding, BoundPart
from hal.scheduler.agent.slices import Slices
from hal.scheduler.core.shape import Shape, Spot
from hal.scheduler.places import Places
from hal.slices.claims import Book
from hal_native import lib
from tests.conftest import wait_until

GIB = 1 << 30
UNVOUCHED = 1 << 31  # hal_ledger.h, hal_ledger_slot.owner


def filled(directory: Path) -> Spares:
    """One with spares to give."""
    spares = Spares(directory)
    for number in range(3):
        spares.retire(spares.take(directory / f"{number}.ledger", "first", [("d", GIB)]))
    wait_until(lambda: len(spares._ready) == 2, what="spares to be made")
    return spares


def test_a_spare_is_as_one_that_was_made_for_it(tmp_path: Path) -> None:
    spares = filled(tmp_path)
    limits = [("nvidia:a", GIB), ("amd:b", 2 * GIB)]
    mine = spares.take(tmp_path / "mine.ledger", "mine", limits)
    plain = Ledger.create(tmp_path / "plain.ledger", "mine", limits)
    assert mine.use() == plain.use()
    assert [(one.device, one.limit_bytes, one.used_bytes) for one in mine.devices()] == [
        ("nvidia:a", GIB, 0),
        ("amd:b", 2 * GIB, 0),
    ]
    again = Ledger.open(tmp_path / "mine.ledger")
    mine.set_limit(0, 5)
    assert again.devices()[0].limit_bytes == 5
    for ledger in (mine, plain, again):
        ledger.close()
    spares.close()


def test_the_kernel_vouches_for_who_joins_one(tmp_path: Path) -> None:
    spares = filled(tmp_path)
    moved = spares.take(tmp_path / "mine.ledger", "mine", [("d", GIB)])
    slot = lib.hal_ledger_join(moved._ledger)
    assert not moved._ledger.slot[slot].owner & UNVOUCHED  # its file is found under its new name
    lib.hal_ledger_leave(moved._ledger, slot)
    moved.close()
    spares.close()


def test_no_slice_gets_a_file_that_another_has(tmp_path: Path) -> None:
    spares = filled(tmp_path)
    ledgers = [spares.take(tmp_path / f"l{n}.ledger", str(n), [("d", n + 1)]) for n in range(30)]
    assert [ledger.devices()[0].limit_bytes for ledger in ledgers] == list(range(1, 31))
    assert len({ledger.path.stat().st_ino for ledger in ledgers}) == 30
    for ledger in ledgers:
        spares.retire(ledger)
    spares.close()
    assert list(tmp_path.iterdir()) == []


def test_who_takes_one_pays_for_no_other(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    ledger = spares.take(tmp_path / "only.ledger", "only", [("d", GIB)])
    assert spares._thread is None
    assert [path.name for path in tmp_path.iterdir()] == ["only.ledger"]
    ledger.close()
    spares.close()


def test_one_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    for _ in range(3):
        there = Ledger.create(tmp_path / "there.ledger", "there", [("d", 7)])
        with pytest.raises(StateError, match="cannot make the slice file"):
            spares.take(there.path, "other", [("d", 9)])
        assert Ledger.open(there.path).devices()[0].limit_bytes == 7
        there.unlink()
        there.close()
        spares._taken += 1
    wait_until(lambda: bool(spares._ready) or spares._thread is None)
    spares.close()


def test_a_spare_that_somebody_removed_is_made_anew(tmp_path: Path) -> None:
    spares = filled(tmp_path)
    for path in tmp_path.glob("*.spare"):
        path.unlink()
    ledger = spares.take(tmp_path / "mine.ledger", "mine", [("d", 3)])
    assert ledger.devices()[0].limit_bytes == 3
    ledger.close()
    spares.close()


def test_what_a_killed_one_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "0123.spare").write_bytes(b"left")
    spares = filled(tmp_path)
    spares.sweep()
    assert len(list(tmp_path.glob("*.spare"))) == len(spares._ready) == 2
    spares.close()
    assert list(tmp_path.iterdir()) == []


def test_limits_are_checked_as_without_it(tmp_path: Path) -> None:
    spares = filled(tmp_path)
    with pytest.raises(ValueError, match="1 EiB"):
        spares.take(tmp_path / "mine.ledger", "mine", [("d", -1)])
    assert not (tmp_path / "mine.ledger").exists()
    spares.close()


def test_spares_are_made_again_once_there_is_room(tmp_path: Path) -> None:
    directory = tmp_path / "full"
    spares = Spares(directory)
    for number in range(40):
        spares.retire(spares.take(tmp_path / f"{number}.ledger", "first", [("d", GIB)]))
    wait_until(lambda: spares._work.empty(), what="all to have been tried")
    directory.mkdir()
    for number in range(40, 42):
        spares.retire(spares.take(tmp_path / f"{number}.ledger", "first", [("d", GIB)]))
    wait_until(lambda: bool(spares._ready), what="spares to be made")
    spares.close()


def test_the_next_agent_takes_away_what_a_killed_one_had_made_ahead(tmp_path: Path) -> None:
    """And takes over no slice of nobody's: that one was killed between a spare's new name and its limits."""
    places = Places(tmp_path)
    tmp_path.chmod(0o700)
    places.make()
    (tmp_path / "0123.spare").write_bytes(b"left")
    slices = Slices(Mock(), places, Mock())
    slices.sweep([])
    assert not list(tmp_path.glob("*.spare"))
    Ledger.create(places.slice_file("l"), "", [("", 0)]).close()
    spot = Spot("a", ("nvidia:x",), Shape(memory_bytes=GIB))
    assert not slices.adopt(Binding("l", 1, "l", 0, 1, (BoundPart(0, (spot,)),)))
    Ledger.create(places.slice_file("m"), "m", [("nvidia:x", GIB)]).close()
    assert slices.adopt(Binding("m", 1, "m", 0, 1, (BoundPart(0, (spot,)),)))
    slices.close()


def test_a_slice_that_cannot_be_given_to_its_user_leaves_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a user namespace root cannot give files to all: what was claimed would be lent to nobody again."""
    tmp_path.chmod(0o700)
    places, book = Places(tmp_path), Book(tmp_path / "node")
    places.make()
    slices = Slices(Mock(), places, book)
    monkeypatch.setattr("hal.scheduler.agent.slices._give", Mock(side_effect=OSError(22, "Invalid argument")))
    spot = Spot("a", ("nvidia:x",), Shape(memory_bytes=GIB))
    with pytest.raises(StateError, match="Invalid argument"):
        slices.create(Binding("l", 1, "l", 7, 1, (BoundPart(0, (spot,)),)))
    assert (book.claims(), slices.use("l"), list(places.slices.iterdir())) == ([], [], [])
    slices.close()


@pytest.mark.parametrize("wrong", ["guard", "limit", "share"])
def test_a_slice_that_would_not_be_held_is_not_made(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    places, book = Places(tmp_path), Book(tmp_path / "node")
    places.make()
    slices = Slices(Mock(), places, book)
    monkeypatch.setattr(slices, "enforcement", lambda _: Enforcement(Rung.GUARD, Rung.GUARD))
    spot = Spot("a", ("nvidia:x",), Shape(memory_bytes=GIB, compute_milli=300))
    binding = Binding("l", 1, "l", 7, 1, (BoundPart(0, (spot,)),))
    with monkeypatch.context() as patched:
        if wrong == "guard":
            patched.setattr("hal.scheduler.agent.slices.guard_library", lambda: tmp_path / "none.so")
        elif wrong == "share":
            patched.setattr(Ledger, "set_compute", Mock())
        else:
            take = slices._spares.take
            less = lambda path, name, limits: take(path, name, [(d, size - 1) for d, size in limits])  # noqa: E731
            patched.setattr(slices._spares, "take", less)
        with pytest.raises(StateError, match=r"hal is not installed whole|not as it was asked for"):
            slices.create(binding)
    assert (book.claims(), slices.use("l"), list(places.slices.iterdir())) == ([], [], [])
    slices.create(binding)
    assert [use.compute_ratio for use in slices.use("l")] == [0.3]
    slices.remove("l")
    slices.close()
