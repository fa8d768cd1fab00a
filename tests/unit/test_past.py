"""What has become of leases that are no more: for a while, and with whom it came from."""

from __future__ import annotations

import pytest

from hal.scheduler import core
from hal.scheduler.past import Past
from tests.unit.test_watch import lease

TICK = core.Tick()


def revoked(past: Past, id: str, at: int, cause: core.Cause = core.Cause.RELEASED, who: str = "") -> None:
    past.note(TICK, [core.Revoke(lease(id), cause, "why")], at, who)


def test_a_lease_that_ends_and_a_request_that_waits_no_longer() -> None:
    past = Past()
    revoked(past, "l", 50, who="carol")
    one = past.find("l", 51)
    assert one is not None
    assert (one.state, one.ended_ms, one.granted_ms, one.at_ms) == ("ending", None, 0, 50)
    past.note(core.Ended("l"), [], 60, "")
    past.note(core.Ended("never heard of"), [], 60, "")
    assert (one.state, one.ended_ms) == ("ended", 60)
    told = one.told()
    assert (told["cause"], told["reason"], told["by"], told["devices"]) == (
        "released",
        "why",
        "carol",
        ("d",),
    )
    assert "uid" not in told
    waited = core.Waiting("w", core.Request(name="job"), 8, "k", 0, 0, 1)
    past.note(TICK, [core.Withdrawn("w", core.Cause.EXPIRED, "its deadline has passed", waited)], 70, "")
    other = past.find("w", 71)
    assert other is not None
    assert (other.state, other.uid, other.granted_ms, other.by) == ("withdrawn", 8, None, None)


@pytest.mark.parametrize(
    ("cause", "by"),
    [
        (core.Cause.RELEASED, "carol"),
        (core.Cause.DRAINED, "carol"),
        (core.Cause.LOST, "carol"),
        (core.Cause.PREEMPTED, None),
        (core.Cause.HOLDER_GONE, None),
    ],
)
def test_who_asked_is_named_only_where_it_was_their_will(cause: core.Cause, by: str | None) -> None:
    past = Past()
    revoked(past, "l", 50, cause, "carol")
    one = past.find("l", 51)
    assert one is not None
    assert one.by == by


def test_the_latest_are_kept_and_those_for_a_while() -> None:
    past = Past(kept=3, kept_ms=100)
    for number in range(3):
        revoked(past, f"l{number}", number)
    revoked(past, "l0", 3)  # it was granted again, and has ended again
    revoked(past, "l3", 4)
    assert [id for id in ("l0", "l1", "l2", "l3") if past.find(id, 5)] == ["l0", "l2", "l3"]
    assert past.find("l2", 101) is not None
    assert past.find("l2", 102) is None
    revoked(past, "l4", 103)
    assert list(past._over) == ["l3", "l4"]
