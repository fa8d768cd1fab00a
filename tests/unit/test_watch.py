"""What has happened: numbered, kept for a while, and shown to whom it concerns."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hal.scheduler import core
from hal.scheduler.watch import Wanted, Watch, WatchBody, Watcher


def lease(id: str, uid: int = 7) -> core.Lease:
    part: Any = msgspec.convert(
        {
            "member": 0,
            "replica": 0,
            "alternative": 0,
            "spots": [{"node": "n", "devices": ["d"], "shape": {"whole": True}}],
        },
        core.Part,
    )
    return core.Lease(id, core.Request(name="job"), uid, "k", 0, (part,), core.Amount(), 3, 0, 1, 0, 9)


def filled(count: int, kept: int = 100, term: int = 2) -> Watch:
    watch = Watch(kept)
    watch.begin(term)
    for number in range(count):
        one = lease(f"l{number}", uid=number % 2)
        watch.note(core.Tick(), [core.Grant(one, "room")], 1000 + number)
    return watch


def everything(_: int) -> bool:
    return True


def test_what_was_refused_has_not_happened() -> None:
    watch = filled(0)
    refused = core.Refuse(core.Refusal.IN_USE, "not empty", "q", "name")
    for event in (core.SetQueue(core.Queue("q")), core.RemoveQueue("q")):
        watch.note(event, [refused], 1000)
        watch.note(event, [], 1001)
    found, _, _ = watch.since(2 << 32, 10, everything)
    assert [(one.kind, one.at_ms) for one in found] == [("queue_set", 1001), ("queue_removed", 1001)]


def test_numbers_rise_across_restarts() -> None:
    before, after = filled(5, term=2), filled(1, term=3)
    assert before.last < after.since(0, 10, everything)[0][0].number


def test_a_watcher_gets_each_once_and_in_order() -> None:
    watch = filled(25)
    start, seen = 2 << 32, list[str]()
    while True:
        found, start, lost = watch.since(start, 10, everything)
        assert not lost
        if not found:
            break
        seen += [one.lease for one in found]
    assert seen == [f"l{n}" for n in range(25)]


def test_what_is_no_longer_kept_is_said_to_be_lost() -> None:
    watch = filled(30, kept=10)
    found, reached, lost = watch.since(2 << 32, 100, everything)
    assert (lost, [one.lease for one in found]) == (True, [f"l{n}" for n in range(20, 30)])
    assert watch.since(reached, 100, everything) == ([], reached, False)
    oldest = found[0].number
    assert watch.since(oldest - 1, 100, everything)[2] is False
    assert watch.since(oldest - 2, 100, everything)[2] is True


@pytest.mark.parametrize("after", [0, 1 << 32, (2 << 32) + 999, 9 << 32])
def test_a_number_of_another_scheduler_is_lost(after: int) -> None:
    found, _, lost = filled(3).since(after, 100, everything)
    assert lost
    assert len(found) == 3


def test_nobody_sees_what_is_another_users() -> None:
    watch = filled(10)
    found, reached, _ = watch.since(2 << 32, 100, lambda owner: owner == 1)
    assert [one.lease for one in found] == ["l1", "l3", "l5", "l7", "l9"]
    assert reached == watch.last
    found, reached, _ = watch.since(2 << 32, 2, lambda owner: owner == 0)
    assert [one.lease for one in found] == ["l0", "l2"]
    assert watch.since(reached, 1, lambda owner: owner == 0)[0][0].lease == "l4"


def test_a_lease_from_grant_to_end() -> None:
    watch = Watch()
    watch.begin(1)
    one = lease("l", uid=7)
    request = core.Waiting("l", one.request, 7, "k", 0, 0, 1)
    watch.queued(request, 10, "no room")
    watch.note(core.Tick(), [core.Grant(one, "room")], 20)
    watch.note(core.Tick(), [core.Grant(one, "again", again=True)], 21)
    watch.note(core.NodeLost("n"), [core.Suspend("l", 99, "lost")], 30)
    watch.note(core.Tick(), [core.Resume("l", "back")], 40)
    watch.note(core.Release("l", 7), [core.Revoke(one, core.Cause.RELEASED, "it was released")], 50)
    watch.note(core.Ended("l"), [], 60)
    watch.note(core.Ended("never heard of"), [], 61)
    found, _, _ = watch.since(1 << 32, 100, lambda owner: owner == 7)
    kinds = ["queued", "granted", "node_lost", "suspended", "resumed", "ending", "ended"]
    assert [one.kind for one in found] == kinds
    assert {one.name for one in found if one.lease} == {"job"}
    assert (found[1].devices, found[1].epoch, found[5].cause) == (("d",), 3, "released")
    assert watch._known == {}


def test_what_was_taken_over_is_still_told_of_to_its_owner() -> None:
    watch = Watch()
    watch.begin(4, [lease("l", uid=7)])
    watch.note(core.Ended("l"), [], 60)
    assert [one.kind for one in watch.since(4 << 32, 9, lambda owner: owner == 7)[0]] == ["ended"]
    assert watch.since(4 << 32, 9, lambda owner: owner == 8)[0] == []


def test_a_watcher_waits_until_there_is_something_for_it() -> None:
    watch = filled(2)
    watcher = Watcher(watch, WatchBody(), lambda owner: owner == 1, until=9.0)
    assert watcher.answer(at_once=False) is None
    watch.note(core.Tick(), [core.Grant(lease("mine", uid=1), "room")], 5)
    answer = watcher.answer(at_once=False)
    assert answer is not None
    assert [one["lease"] for one in answer["events"]] == ["mine"]
    assert Watcher(watch, WatchBody(), everything, 9.0).answer(at_once=True) == {
        "events": [],
        "next": watch.last,
        "lost": False,
    }


def test_a_watcher_that_may_see_nothing_is_not_kept_looking() -> None:
    watch = filled(50)
    watcher = Watcher(watch, WatchBody(after=2 << 32), lambda _: False, until=9.0)
    assert watcher.answer(at_once=False) is None
    assert watcher.after == watch.last


ALL = "granted l granted m node_lost suspended l cordoned a/x cordoned b device_failed ending m ended m"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, ALL),
        ({"lease": "m"}, "granted m ending m ended m"),
        ({"node": "n"}, "granted l granted m node_lost suspended l ending m ended m"),
        ({"node": "a"}, "cordoned a/x device_failed"),
        ({"node": "b"}, "cordoned b"),
        ({"kinds": ["granted", "node_lost"]}, "granted l granted m node_lost"),
        ({"owner": "user8"}, "granted m ending m ended m"),
        ({"since_ms": 30}, "cordoned a/x cordoned b device_failed ending m ended m"),
        ({"node": "n", "kinds": ["ended"], "owner": "user8", "since_ms": 7}, "ended m"),
        ({"node": "n", "owner": "user9"}, ""),
    ],
)
def test_of_what_has_happened_only_what_is_asked_for(asked: dict[str, Any], found: str) -> None:
    watch = Watch()
    watch.begin(1)
    for number, (id, uid) in enumerate((("l", 7), ("m", 8))):
        watch.note(core.Tick(), [core.Grant(lease(id, uid), "room")], 10 + number)
    watch.note(core.NodeLost("n"), [core.Suspend("l", 99, "lost")], 20)
    watch.note(core.Cordon("a/x"), [], 30)
    watch.note(core.Cordon("b"), [], 31)
    watch.note(core.DeviceFailed("a/y", "it said so"), [], 32)
    watch.note(core.Tick(), [core.Revoke(lease("m", 8), core.Cause.RELEASED, "it was released")], 40)
    watch.note(core.Ended("m"), [], 50)
    body = msgspec.convert({"after": 1 << 32} | asked, WatchBody)
    wanted = Wanted(body, lambda uid: f"user{uid}", lambda device: device.partition("/")[0] or None)
    answer = Watcher(watch, body, everything, 9.0, wanted).answer(at_once=True)
    assert answer is not None
    said = [f"{one['kind']} {one.get('lease') or one.get('name', '')}".strip() for one in answer["events"]]
    assert " ".join(said) == found
    assert answer["next"] == watch.last
    seen = Watcher(watch, body, lambda uid: uid == 9, 9.0, wanted).answer(at_once=True)
    assert seen is not None
    assert not [one for one in seen["events"] if one.get("lease")]


def test_thousands_are_looked_at_without_asking_of_each_whose_it_is() -> None:
    watch = filled(16_384, kept=16_384)
    asked = list[int]()

    def name_of(owner: int) -> str:
        asked.append(owner)
        return f"user{owner}"

    def sees(owner: int) -> bool:
        asked.append(owner)
        return True

    body = WatchBody(after=2 << 32, owner="user7", limit=1000)
    answer = Watcher(watch, body, sees, 9.0, Wanted(body, name_of, lambda _: None)).answer(at_once=True)
    assert answer == {"events": [], "next": watch.last, "lost": False}
    assert sorted(asked) == [0, 0, 1, 1]
    found, reached, _ = watch.since((2 << 32) + 3000, 1000, everything)
    assert [one.number - (2 << 32) for one in found] == list(range(3001, 4001))
    assert watch.since(watch.last - 2, 1000, everything)[0][0].number == watch.last - 1
    assert reached == found[-1].number


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="there is no kind of event 'grant'"):
        msgspec.convert({"kinds": ["grant"]}, WatchBody)
