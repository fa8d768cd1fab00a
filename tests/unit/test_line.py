"""Who waits: what those who have gone leave behind."""

from __future__ import annotations

import random

from hal.scheduler.core.lease import Waiting
from hal.scheduler.core.line import Line
from hal.scheduler.core.request import Request


def one(number: int, uid: int = 7) -> Waiting:
    return Waiting(f"w{number}", Request(wait=True), uid, f"k{number}", 0, number, number)


def test_those_who_leave_behind_one_that_waits_for_long_leave_nothing() -> None:
    line = Line()
    kind = line.add(one(0))
    for number in range(1, 2000):
        line.add(one(number))
        line.remove(f"w{number}")
        assert len(kind.heap) <= 65
    assert line.first(kind) == one(0)
    line.remove("w0")
    assert not line.kinds
    assert not line.of_owner


def test_the_first_is_the_one_that_has_waited_longest_whoever_leaves() -> None:
    line, chance, there = Line(), random.Random(3), list[int]()
    for number in range(3000):
        line.add(one(number, uid=number % 3))
        there.append(number)
        while len(there) > 20:
            line.remove(f"w{there.pop(chance.randrange(len(there)))}")
        (kind,) = line.kinds.values()
        first = line.first(kind)
        assert first is not None
        assert first.order == there[0]
        assert [line.of_owner[uid] for uid in range(3)] == [
            sum(n % 3 == uid for n in there) for uid in range(3)
        ]
