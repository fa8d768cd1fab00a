"""Samples between worker and parent: what comes out is what went in, however little was sent."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from hal.backend import Call, Cost, Figure, Group, Readings, Table, Value
from hal.isolation.shapes import Packed, Packer, Unpacker
from hal.model import Reading, Scope, Status

LABELS = {"heap": "vram"}


def table(*answers: Any) -> Table:
    calls = [
        Call(Group.MEMORY, f"call{n}", Scope.DEVICE, (Figure(f"figure{n}", "bytes", LABELS),), _says(answer))
        for n, answer in enumerate(answers)
    ]
    return Table(calls)


def _says(answer: Any) -> Any:
    def read(library: Any, handle: Any) -> tuple[Any]:
        if isinstance(answer, Exception):
            raise answer
        return (answer() if callable(answer) else answer,)

    return read


def read(one: Table, subject: str = "x:1") -> Readings:
    return one.read(None, None, subject, time.monotonic() + 60, lambda f: Value(None, Status.ERROR, str(f)))


def sent(packed: Packed) -> Packed:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=Packed)


MIXED = (
    1,
    2.5,
    0,
    Value(7, Status.ESTIMATED, "guessed"),
    Value(None, Status.UNSUPPORTED, "no"),
    OSError("gone"),
)


def test_readings_come_out_as_they_went_in_and_their_shape_goes_once() -> None:
    packer, unpacker, one = Packer(), Unpacker(), table(*MIXED)
    sizes = []
    for _ in range(3):
        readings = Readings()
        readings += read(one)
        readings += read(one, "x:2")
        packed = packer.pack(readings, unpacker.known)
        sizes.append(len(msgspec.msgpack.encode(packed)))
        assert unpacker.unpack(sent(packed)) == list(readings)
    assert sizes[0] > 2 * sizes[1]
    statuses = [reading.status.value for reading in readings[:6]]
    assert statuses == ["ok", "ok", "ok", "estimated", "unsupported", "error"]


def test_a_figure_that_comes_and_goes_keeps_its_place() -> None:
    now: list[Any] = [5]
    packer, unpacker, one = Packer(), Unpacker(), table(1, lambda: now[0], 3)
    seen = []
    for value in (5, Value(None, Status.DENIED, "not yours"), 6):
        now[0] = value
        seen.append([r.value for r in unpacker.unpack(sent(packer.pack(read(one), unpacker.known)))])
    assert seen == [[1, 5, 3], [1, None, 3], [1, 6, 3]]


def test_another_way_of_asking_is_another_shape() -> None:
    packer, unpacker = Packer(), Unpacker()
    few, many = table(1), table(1, 2, 3)
    for one in (few, many, few, many):
        readings = read(one)
        assert unpacker.unpack(sent(packer.pack(readings, unpacker.known))) == list(readings)
    assert len(unpacker.known) == 2


def test_shapes_are_not_kept_for_ever() -> None:
    packer, unpacker = Packer(), Unpacker()
    for number in range(300):
        readings = read(table(number), f"x:{number}")
        assert unpacker.unpack(sent(packer.pack(readings, unpacker.known))) == list(readings)
    assert len(unpacker.known) <= 64


def test_a_parent_that_never_read_the_answer_gets_the_shape_again() -> None:
    packer, unpacker, one = Packer(), Unpacker(), table(1)
    packer.pack(read(one), unpacker.known)  # nobody waited for this one
    assert [r.value for r in unpacker.unpack(sent(packer.pack(read(one), unpacker.known)))] == [1]


def test_a_worker_that_takes_over_does_not_number_as_the_one_before() -> None:
    unpacker = Unpacker()
    for one in (table(1), table(2, 3), table(4)):
        readings, packer = read(one), Packer()
        assert unpacker.unpack(sent(packer.pack(readings, unpacker.known))) == list(readings)


def test_readings_of_no_table_go_whole() -> None:
    packer, unpacker = Packer(), Unpacker()
    plain = [Reading("x:1", "power_watts", 1.0, "watts", window_seconds=2.0)]
    assert unpacker.unpack(sent(packer.pack(plain, []))) == plain
    mixed = read(table(1))
    mixed.append(plain[0])  # its columns no longer tell all
    assert unpacker.unpack(sent(packer.pack(mixed, []))) == list(mixed)
    assert unpacker.unpack(sent(packer.pack([], []))) == []


@pytest.mark.parametrize(
    "packed",
    [
        Packed(3, None, [1], [1.0], [], []),
        Packed(0, None, [1, 2], [1.0, 2.0], [], []),
        Packed(0, None, [1], [], [], []),
        Packed(0, None, [1], [1.0], [(5, Status.ERROR, "")], []),
    ],
)
def test_nonsense_is_an_error_and_no_reading(packed: Packed) -> None:
    unpacker = Unpacker()
    unpacker.unpack(sent(Packer().pack(read(table(1)), [])))
    if packed.shape == 0:
        packed = msgspec.structs.replace(packed, shape=unpacker.known[0])
    with pytest.raises((ValueError, IndexError)):
        unpacker.unpack(packed)


def test_a_row_that_gives_too_few_answers_is_an_error_and_shifts_nothing() -> None:
    figures = (Figure("a", "bytes"), Figure("b", "bytes"))
    one = Table([Call(Group.MEMORY, "short", Scope.DEVICE, figures, lambda *_: (1,), Cost.FAST)])
    with pytest.raises(ValueError, match="2 figures gave 1 answers"):
        read(one)
