"""Who is answered later is looked at when something has happened for them, or their time is up."""

from __future__ import annotations

import random

from hal.scheduler.answers import Waiter
from hal.scheduler.waiters import Waiters


def test_only_those_touched_or_due_are_looked_at() -> None:
    waiters = Waiters()
    one, other, late = Waiter("a", 100.0), Waiter("b", 100.0), Waiter("c", 5.0)
    for waiter in (one, other, late):
        waiters.add(waiter)
    assert waiters.take(1.0) == []
    waiters.touch("b")
    waiters.touch("nobody")
    assert waiters.take(1.0) == [other]
    assert waiters.take(1.0) == []
    assert waiters.next_due() == 5.0
    assert waiters.take(5.0) == [late]
    assert list(waiters) == [one]


def test_those_who_wait_for_the_same_are_taken_in_the_order_of_their_coming() -> None:
    waiters = Waiters()
    three = [Waiter("a", 10.0 - n) for n in range(3)]
    for waiter in three:
        waiters.add(waiter)
    waiters.touch("a")
    assert waiters.take(0.0) == three
    assert len(waiters) == 0


def test_one_that_is_put_off_comes_first_in_the_next_turn() -> None:
    waiters = Waiters()
    one, other = Waiter("a", 100.0), Waiter("a", 100.0)
    waiters.add(one)
    waiters.put_off(other)
    assert waiters.next_due() == float("-inf")
    waiters.touch("a")
    assert waiters.take(1.0) == [other, one]
    assert waiters.next_due() is None or waiters.next_due() == 100.0
    assert waiters.take(1.0) == []


def test_one_that_is_added_again_waits_again() -> None:
    waiters = Waiters()
    waiter = Waiter("a", 10.0)
    for _ in range(1000):
        waiters.add(waiter)
        waiters.touch_all()
        assert waiters.take(0.0) == [waiter]
    assert waiters.take(100.0) == []
    assert len(waiters._due) < 200, "those answered long ago are forgotten"


def test_as_one_that_looks_at_all_of_them() -> None:
    chance = random.Random(1)
    waiters, plain, touched, now = Waiters(), list[Waiter](), set[str](), 0.0
    for _ in range(3000):
        match chance.randrange(3):
            case 0:
                waiter = Waiter(str(chance.randrange(20)), now + chance.random() * 50)
                waiters.add(waiter)
                plain.append(waiter)
            case 1:
                name = str(chance.randrange(25))
                waiters.touch(name)
                touched |= {one.lease for one in plain if one.lease == name}
            case 2:
                now += chance.random() * 5
                expected = {id(one) for one in plain if one.until <= now or one.lease in touched}
                assert {id(one) for one in waiters.take(now)} == expected
                plain = [one for one in plain if id(one) not in expected]
                touched.clear()
