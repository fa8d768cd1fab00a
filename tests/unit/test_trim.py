"""The correction of what a slice's launches are charged: pure, fed with looks."""

from __future__ import annotations

import pytest

from hal.enforce.trim import NEUTRAL, Trim


def looks(trim: Trim, count: int, charged: float, used: float, *, start: float = 0.0) -> int:
    """Feeds looks a second apart at which ``charged`` and ``used`` of the device's time had gone by."""
    for second in range(count):
        now = start + second
        milli = trim.look(now, round(now * charged * 1e9), used)
    return milli


def test_it_charges_what_was_used() -> None:
    assert looks(Trim(), 20, charged=0.6, used=0.3) == 500
    assert looks(Trim(), 20, charged=0.3, used=0.3) == NEUTRAL


@pytest.mark.parametrize(("charged", "used", "milli"), [(0.9, 0.03, 250), (0.1, 0.9, 2000)])
def test_it_has_bounds(charged: float, used: float, milli: int) -> None:
    assert looks(Trim(), 20, charged=charged, used=used) == milli


@pytest.mark.parametrize("used", [None, 0.01])
def test_who_is_told_nothing_corrects_nothing(used: float | None) -> None:
    trim = Trim()
    assert [trim.look(now, now * 500_000_000, used) for now in range(5)] == [NEUTRAL] * 5


def test_a_new_price_leaves_nothing_to_make_up_for() -> None:
    """The guard halves a price and doubles the correction: earlier looks are taken at the new price too."""
    trim = Trim()
    assert looks(trim, 20, charged=0.6, used=0.3) == 500
    charged = 19 * 600_000_000
    assert [trim.look(20.0 + n, charged + (n + 1) * 300_000_000, 0.3, 1000) for n in range(4)] == [1000] * 4


def test_a_new_price_holds_also_when_the_driver_tells_nothing() -> None:
    assert Trim().look(1.0, 0, None, 700) == 700
