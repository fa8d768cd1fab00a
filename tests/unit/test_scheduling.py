"""The scheduler's rules by example: alternatives, gangs, queues, backfill, preemption, failure, explain."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hal.scheduler.core import (
    Alternative,
    Amount,
    Cause,
    Cordon,
    Decision,
    DeviceFacts,
    DeviceFailed,
    DeviceRecovered,
    Drain,
    Ended,
    Event,
    Grant,
    InvalidError,
    InventoryChanged,
    Isolation,
    Lease,
    LeaseState,
    Limits,
    Member,
    NodeFacts,
    NodeForgotten,
    NodeJoined,
    NodeLost,
    Preempt,
    Propose,
    Queue,
    Queued,
    Refusal,
    Refuse,
    Release,
    RemoveQueue,
    Renew,
    Repartition,
    Request,
    Resume,
    Resumed,
    Revoke,
    SetQueue,
    State,
    Submit,
    Suspend,
    Tick,
    Topology,
    Uncordon,
    Withdrawn,
    check,
)
from hal.scheduler.core.partition import Cut
from hal.scheduler.core.records import changes, everything, read, restore
from hal.scheduler.core.refuse import _impossible, never

GIB = 1 << 30
H100 = 85_520_809_984
MI300X = 206_141_652_992


def device(id: str, memory: int = 80 * GIB, **more: Any) -> DeviceFacts:
    return DeviceFacts(id, id.partition(":")[0], "model", memory, **more)


def node(name: str, *devices: DeviceFacts, cpu: int = 64_000) -> NodeFacts:
    return NodeFacts(name, cpu, 512 * GIB, devices)


class Cluster:
    """A state machine and its clock."""

    def __init__(self, *nodes: NodeFacts, **options: Any) -> None:
        self.state = State(**options)
        self.now = 0
        for one in nodes:
            self.state.apply(NodeJoined(one), 0)

    def apply(self, event: Event) -> list[Decision]:
        return self.state.apply(event, self.now)

    def ask(self, id: str, *alternatives: Alternative, **more: Any) -> list[Decision]:
        members = (Member(alternatives or (Alternative(),)),)
        request = Request(**({"members": members, "wait": True, "ttl_ms": 86_400_000} | more))
        return self.apply(Submit(request, id, f"key-{id}", 1000))

    def granted(self, id: str, *alternatives: Alternative, **more: Any) -> Lease:
        decision = self.ask(id, *alternatives, **more)[-1]
        assert isinstance(decision, Grant), decision
        return decision.lease

    def end(self, id: str) -> list[Decision]:
        return self.apply(Release(id, 0)) + self.apply(Ended(id))

    def on(self, id: str) -> list[str]:
        return [device for spot in self.state.leases[id].spots() for device in spot.devices]

    def told(self, id: str) -> str:
        told = self.state.explain(id, self.now)
        assert told is not None
        return "\n".join([*told.reasons, f"nearest: {told.nearest}"])


def ids(decisions: list[Decision], kind: type) -> list[str]:
    return [getattr(d, "id", None) or d.lease.id for d in decisions if isinstance(d, kind)]  # type: ignore[union-attr]


def mixed() -> NodeFacts:
    return node("a", device("nvidia:0"), device("nvidia:1"), device("amd:0", 192 * GIB))


EITHER = (
    Alternative('vendor == "nvidia"', 40 * GIB, weight=2),
    Alternative('vendor == "amd"', 48 * GIB),
)

# ---- amounts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "share", "devices", "each"),
    [
        (16, (1, 2), 8, 2),
        (8, (2, 5), 4, 2),  # 0.4: never three on one
        (3, (33, 100), 1, 3),
        (10, (1, 10), 1, 10),
        (80, (1, 10), 8, 10),
        (7, (1, 7), 1, 7),
    ],
)
@pytest.mark.parametrize("memory", [H100, MI300X, 24 << 30, 1_000_003])
def test_shares_pack_exactly(
    requests: int, share: tuple[int, int], devices: int, each: int, memory: int
) -> None:
    cluster = Cluster(node("a", *(device(f"nvidia:{n}", memory) for n in range(devices))))
    size = memory * share[0] // share[1]
    for number in range(requests):
        cluster.granted(str(number), Alternative(memory_bytes=size), wait=False)
    assert set(Counter(cluster.on(str(n))[0] for n in range(requests)).values()) == {each}
    left = memory - each * size
    if left:
        assert cluster.granted("rest", Alternative(memory_bytes=left))  # to the last byte
    (refused,) = cluster.ask("more", Alternative(memory_bytes=left + 1), wait=False)
    assert isinstance(refused, Refuse)
    assert refused.code is Refusal.NO_ROOM


def test_what_is_used_from_outside_is_not_lent_and_what_is_not_known_neither() -> None:
    cluster = Cluster(node("a", device("nvidia:0", 100, outside_bytes=30)))
    assert cluster.granted("a", Alternative(memory_bytes=70))
    assert isinstance(cluster.ask("b", Alternative(memory_bytes=1), wait=False)[0], Refuse)
    cluster = Cluster(node("a", device("nvidia:0", 100, outside_bytes=None)))
    for alternative in (Alternative(), Alternative(memory_bytes=1)):
        assert isinstance(cluster.ask("c", alternative, wait=False)[0], Refuse)
    assert ids(cluster.ask("d"), Queued) == ["d"]
    assert "of 1 it is not known how much is in use" in cluster.told("d")
    assert ids(cluster.apply(InventoryChanged(node("a", device("nvidia:0", 100)))), Grant) == ["d"]


def test_an_ending_lease_counts_until_its_processes_are_gone() -> None:
    cluster = Cluster(node("a", device("nvidia:0")))
    cluster.granted("first")
    cluster.ask("second")
    assert ids(cluster.apply(Release("first", 1000)), Grant) == []
    assert ids(cluster.apply(Ended("first")), Grant) == ["second"]  # at once, with no tick to wait for


# ---- alternatives and gangs -------------------------------------------------------------------


def test_a_member_may_need_cpu_and_ram_only_where_such_are_taken() -> None:
    host = Alternative(count=0, cpu_milli=40_000)
    live = Cluster(mixed())
    (refused,) = live.ask("a", host)
    assert isinstance(refused, Refuse) and refused.field == "members[0].alternatives[0].count"
    cluster = Cluster(mixed(), hosts=True)
    lease = cluster.granted("a", host)
    assert [(spot.node, spot.devices) for spot in lease.spots()] == [("a", ())]
    assert ids(cluster.ask("b", Alternative(memory_bytes=GIB, cpu_milli=30_000)), Queued) == ["b"]
    assert "the end of 'a'" in cluster.told("b")
    (refused,) = cluster.ask("c", host, wait=False)
    assert isinstance(refused, Refuse) and refused.code is Refusal.NO_ROOM
    (refused,) = cluster.ask("d", Alternative(count=0, cpu_milli=64_001))
    assert isinstance(refused, Refuse) and refused.code is Refusal.TOO_LARGE
    (refused,) = cluster.ask("e", Alternative("vendor == 'amd'", count=0))
    assert isinstance(refused, Refuse) and refused.code is Refusal.INVALID
    assert ids(cluster.end("a"), Grant) == ["b"]


def test_who_waits_for_cpu_waits_for_those_that_hold_it_on_whatever_device() -> None:
    cluster = Cluster(mixed())
    cluster.granted("a", Alternative('vendor == "amd"', GIB, cpu_milli=64_000))
    cluster.ask("b", Alternative('vendor == "nvidia"', cpu_milli=1_000))
    assert "the end of 'a'" in cluster.told("b")


@pytest.mark.parametrize("topology", list(Topology))
def test_what_is_possible_is_found_alike_for_all_nodes_at_once_and_one_by_one(topology: Topology) -> None:
    chance = random.Random(topology.value)
    memory, cpu = (None, 1, 24 * GIB, 80 * GIB, 81 * GIB), (0, 8_000, 64_000, 64_001)

    def size() -> int:
        return chance.choice((24, 80))

    for _ in range(20):
        cluster = Cluster(*(
            node(name, *(
                device(f"nvidia:{name}{n}", size() * GIB, fabric=chance.choice((None, "f", "g")))
                for n in range(chance.randrange(4))
            ), cpu=chance.choice((8_000, 64_000)))
            for name in "abc"
        ))  # fmt: skip
        for _ in range(40):
            one = Alternative(
                "", chance.choice(memory), count=chance.choice((1, 2, 3, 5)), cpu_milli=chance.choice(cpu),
                topology=topology,
            )  # fmt: skip
            found = never(cluster.state.world, Request((Member((one,)),)))
            assert (found is None) is (_impossible(cluster.state.world, one) is None), one


def test_what_queues_share_follows_the_nodes() -> None:
    cluster = Cluster(mixed(), node("b", device("nvidia:7")))
    tree = cluster.state.world.tree
    assert tree.total == Amount(4000, 432 * GIB)
    cluster.apply(InventoryChanged(node("a", device("nvidia:0"), device("cpu:0", holds_slices=False))))
    assert tree.total == Amount(2000, 160 * GIB)
    cluster.apply(NodeLost("b"))
    assert tree.total == Amount(1000, 80 * GIB)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Cordon("nvidia:0"), Uncordon("nvidia:0")),
        (DeviceFailed("nvidia:0", "it said so"), DeviceRecovered("nvidia:0")),
        (NodeLost("a"), NodeJoined(node("a", device("nvidia:0")))),
        (InventoryChanged(node("a", device("nvidia:0", outside_bytes=79 * GIB))),
         InventoryChanged(node("a", device("nvidia:0")))),
        (SetQueue(Queue("default", limit=Limits(0, 0))), SetQueue(Queue("default"))),
    ],
)  # fmt: skip
def test_what_makes_room_is_followed_by_the_grant_at_once(before: Event, after: Event) -> None:
    """With no tick to wait for; so is a release (below)."""
    cluster = Cluster(node("a", device("nvidia:0")))
    cluster.granted("first", Alternative(memory_bytes=70 * GIB))
    cluster.ask("waits", Alternative(memory_bytes=20 * GIB))
    assert ids(cluster.apply(before), Grant) == []
    assert ids(cluster.end("first"), Grant) == []
    assert ids(cluster.apply(after), Grant) == ["waits"]


def test_the_heaviest_alternative_that_fits_is_taken() -> None:
    cluster = Cluster(mixed())
    for number in range(4):
        cluster.granted(str(number), *EITHER)
    assert all(cluster.on(str(number))[0].startswith("nvidia") for number in range(4))
    assert cluster.granted("5", *EITHER).parts[0].alternative == 1


def test_a_price_can_outweigh_the_order() -> None:
    dear, cheap = device("nvidia:0", micros_per_hour=4_000_000), device("amd:0", micros_per_hour=2_000_000)
    for price_weight, vendor in ((0, "nvidia"), (1, "amd")):
        cluster = Cluster(node("a", dear, cheap))
        cluster.granted("x", *EITHER, price_weight=price_weight)
        assert cluster.on("x")[0].startswith(vendor)
    assert isinstance(cluster.ask("y", Alternative(max_micros_per_hour=1_000_000))[0], Refuse)


def test_a_gang_over_two_vendors_is_placed_whole_or_not_at_all() -> None:
    """The first member has to leave the only NVIDIA device to the second, who can use no other."""
    cluster = Cluster(node("a", device("nvidia:0"), device("amd:0")))
    gang = (
        Member((Alternative('vendor == "nvidia"', weight=9), Alternative('vendor == "amd"'))),
        Member((Alternative('vendor == "nvidia"'),)),
    )
    cluster.granted("gang", members=gang)
    assert cluster.on("gang") == ["amd:0", "nvidia:0"]
    cluster.end("gang")
    cluster.granted("one", Alternative('vendor == "amd"', 1))
    assert ids(cluster.ask("again", members=gang), Queued) == ["again"]
    assert "one" in cluster.state.leases
    assert len(cluster.state.leases) == 1
    assert ids(cluster.end("one"), Grant) == ["again"]


def test_devices_lie_to_one_another_as_is_wished() -> None:
    nodes = [
        node(name, *(device(f"nvidia:{name}{n}", fabric=f"f{n // 2}") for n in range(4))) for name in "ab"
    ]
    cluster = Cluster(*nodes)
    cluster.granted("busy", Alternative('id == "nvidia:a1"'))
    cluster.granted("busy2", Alternative('id == "nvidia:b2"'))
    cluster.granted("pair", Alternative(count=2, topology=Topology.FABRIC))
    assert cluster.on("pair") in (["nvidia:a2", "nvidia:a3"], ["nvidia:b0", "nvidia:b1"])
    spread = cluster.granted("spread", Alternative(count=2, topology=Topology.SPREAD))
    assert {spot.node for spot in spread.spots()} == {"a", "b"}
    (refused,) = cluster.ask("never", Alternative(count=3, topology=Topology.SPREAD))
    assert isinstance(refused, Refuse)
    assert refused.code is Refusal.TOO_LARGE


def test_isolation_rules_out_what_only_a_guard_holds() -> None:
    soft = device("nvidia:0", attributes={"memory_held_by": "guard"})
    hard = device("amd:0", attributes={"memory_held_by": "hardware"})
    cluster = Cluster(node("a", soft, hard))
    cluster.granted("x", Alternative(memory_bytes=1, isolation=Isolation.KERNEL))
    assert cluster.on("x") == ["amd:0"]


def test_the_cpu_is_only_meant_when_it_is_named_and_the_deadline_far() -> None:
    cpu = device("cpu:host", 512 * GIB, holds_slices=False, attributes={"kind": "cpu"})
    cluster = Cluster(node("a", device("nvidia:0", attributes={"kind": "gpu"}), cpu))
    cluster.granted("gpu", Alternative("memory >= 1Gi"))
    late = (Alternative(), Alternative('kind == "cpu"', slack_ms=3_600_000))
    assert ids(cluster.ask("soon", *late, deadline_ms=60_000), Queued) == ["soon"]
    cluster.granted("later", *late, deadline_ms=7_200_000)
    assert cluster.on("later") == ["cpu:host"]
    assert "only for a deadline that is further away" in cluster.told("soon")


# ---- queues -----------------------------------------------------------------------------------


def test_the_higher_priority_goes_first_and_then_who_came_first() -> None:
    cluster = Cluster(node("a", device("nvidia:0")))
    cluster.granted("now", preemptible=False)
    for id, priority in (("a", 0), ("b", 5), ("c", 5), ("d", 1)):
        cluster.ask(id, priority=priority, preemptible=False)
    order = []
    while cluster.state.leases:
        (id,) = cluster.state.leases
        order += ids(cluster.end(id), Grant)
    assert order == ["b", "c", "d", "a"]


def test_a_limit_holds_and_says_so() -> None:
    cluster = Cluster(node("a", device("nvidia:0"), device("nvidia:1")))
    cluster.apply(SetQueue(Queue("team", limit=Limits(devices_milli=1500))))
    cluster.apply(SetQueue(Queue("team/one", "team")))
    cluster.granted("a", queue="team/one")
    cluster.granted("half", Alternative(memory_bytes=40 * GIB), queue="team/one")
    assert ids(cluster.ask("b", Alternative(memory_bytes=GIB), queue="team/one"), Queued) == ["b"]
    assert "queue 'team' is at its limit: it has 1.5 of 1.5 devices" in cluster.told("b")
    assert "nearest: the end of a lease of queue 'team'" in cluster.told("b")
    cluster.granted("other", Alternative(memory_bytes=GIB))
    (refused,) = cluster.ask("never", Alternative(count=2), queue="team/one")
    assert isinstance(refused, Refuse)
    assert "the limit of queue 'team' alone" in refused.reason
    assert ids(cluster.apply(SetQueue(Queue("team", limit=Limits(2000)))), Grant) == ["b"]


def test_a_queue_is_removed_once_nothing_is_in_it_or_below_it() -> None:
    cluster = Cluster(node("a", device("nvidia:0")))
    for name, parent in (("team", ""), ("team/one", "team")):
        cluster.apply(SetQueue(Queue(name, parent)))

    def refused(name: str) -> tuple[Refusal, str]:
        (decision,) = cluster.apply(RemoveQueue(name))
        assert isinstance(decision, Refuse)
        return decision.code, decision.reason

    assert refused("none") == (Refusal.INVALID, "there is no queue 'none'")
    assert refused("default") == (
        Refusal.IN_USE,
        "queue 'default' stays: requests that name none go there",
    )
    assert refused("team") == (Refusal.IN_USE, "queue 'team' has others below it: team/one")
    cluster.granted("a", queue="team/one")
    cluster.ask("b", queue="team/one")
    in_use = "queue 'team/one' is not empty: leases and requests that wait: {}"
    assert refused("team/one") == (Refusal.IN_USE, in_use.format(2))
    cluster.apply(Release("b", 0))
    cluster.apply(Release("a", 0))
    assert refused("team/one") == (Refusal.IN_USE, in_use.format(1))  # it has not ended yet
    cluster.end("a")
    assert cluster.apply(RemoveQueue("team/one")) == cluster.apply(RemoveQueue("team")) == []
    (decision,) = cluster.ask("c", queue="team")
    assert isinstance(decision, Refuse)
    assert decision.field == "queue"
    assert not cluster.apply(SetQueue(Queue("team", quota=Limits(0))))
    cluster.granted("d", queue="team")


def test_quota_is_reclaimed_from_who_has_more_and_from_the_youngest() -> None:
    cluster = Cluster(node("a", *(device(f"nvidia:{n}") for n in range(4))))
    for name in ("mine", "theirs"):
        cluster.apply(SetQueue(Queue(name, quota=Limits(devices_milli=2000))))
    for number in range(4):
        cluster.granted(f"theirs{number}", queue="theirs", requeue=True)
    decisions = cluster.ask("mine", Alternative(count=2), queue="mine")
    assert ids(decisions, Preempt) == ["theirs2", "theirs3"]
    assert {d.cause for d in decisions if isinstance(d, Preempt)} == {Cause.RECLAIMED}
    assert cluster.apply(Ended("theirs2"))[0].id == "theirs2"  # type: ignore[union-attr]
    assert "mine" in ids(cluster.apply(Ended("theirs3")), Grant)
    assert set(cluster.state.waiting) == {"theirs2", "theirs3"}  # in their old place
    assert ids(cluster.ask("more", queue="mine"), Preempt) == []  # beyond its own quota it asks nobody
    assert ids(cluster.end("mine"), Grant) == ["more", "theirs2"]  # first who has less than its quota


def test_who_has_had_less_goes_first_and_what_was_had_fades() -> None:
    cluster = Cluster(node("a", device("nvidia:0")), half_life_ms=64_000)
    for name in ("a", "b"):
        cluster.apply(SetQueue(Queue(name)))
    cluster.granted("a0", queue="a")
    cluster.now = 600_000
    cluster.ask("a1", queue="a")
    cluster.ask("b1", queue="b")
    assert ids(cluster.end("a0"), Grant) == ["b1"]
    cluster.ask("b2", queue="b")
    cluster.now += 6_000_000  # by now it is b that has had it all
    assert ids(cluster.end("b1"), Grant) == ["a1"]


def test_room_that_was_made_for_one_is_given_to_no_other() -> None:
    """What is kept for who is next was elsewhere before: that no others get back what they had to leave."""
    pair = Alternative(count=2, topology=Topology.NODE)
    small = Alternative(memory_bytes=20 * GIB)
    cluster = Cluster(
        node("a", device("nvidia:0"), device("nvidia:1")), node("b", device("nvidia:2"), device("nvidia:3"))
    )
    cluster.granted("whole", pair, priority=5)
    away = next(iter({"a", "b"} - {spot.node for spot in cluster.state.leases["whole"].spots()}))
    other = "nvidia:2" if away == "b" else "nvidia:0"
    cluster.granted("one", priority=5)
    assert ids(cluster.ask("next", pair, priority=5), Queued) == ["next"]
    for id in "xy":
        cluster.granted(id, small, requeue=True)
    kept = cluster.state.world.counters.reservation
    assert kept is not None and other not in kept.devices
    assert ids(cluster.end("one"), Preempt) == ["x", "y"]
    assert ids(cluster.apply(Ended("x")), Grant) == []
    assert ids(cluster.apply(Ended("y")), Grant) == ["next"]


def test_what_must_not_be_preempted_stays_within_quota() -> None:
    cluster = Cluster(node("a", *(device(f"nvidia:{n}") for n in range(3))))
    cluster.apply(SetQueue(Queue("q", quota=Limits(devices_milli=1000))))
    cluster.granted("soft", queue="q")
    cluster.granted("firm", queue="q", preemptible=False)
    assert ids(cluster.ask("more", queue="q", preemptible=False), Queued) == ["more"]
    assert "at its quota for what is not to be preempted: it has 1 of 1 devices" in cluster.told("more")


# ---- backfill ---------------------------------------------------------------------------------


def test_who_is_over_in_time_goes_ahead_and_nobody_else() -> None:
    cluster = Cluster(node("a", device("nvidia:0"), device("nvidia:1")))
    cluster.granted("running", duration_ms=60_000)
    assert ids(cluster.ask("head", Alternative(count=2)), Queued) == ["head"]
    assert ids(cluster.ask("long", duration_ms=60_001), Queued) == ["long"]
    assert ids(cluster.ask("unknown"), Queued) == ["unknown"]
    cluster.granted("short", duration_ms=60_000)
    assert "kept for 'head', which is next" in cluster.told("long")
    assert "nearest: the end of 'running'" in cluster.told("head")
    assert "in 60 s at the latest" in cluster.told("head") or "in 1 min at the latest" in cluster.told("head")
    cluster.now = 60_000
    cluster.end("running")
    assert ids(cluster.end("short"), Grant) == ["head"]


def test_devices_that_are_not_kept_are_for_anybody() -> None:
    cluster = Cluster(node("a", device("nvidia:0"), device("nvidia:1")), node("b", device("amd:0")))
    cluster.granted("running", Alternative('vendor == "nvidia"'))
    cluster.ask("head", Alternative('vendor == "nvidia"', count=2))
    cluster.granted("beside", Alternative())
    assert cluster.on("beside") == ["amd:0"]


def test_who_has_had_its_time_leaves_when_somebody_waits() -> None:
    cluster = Cluster(node("a", device("nvidia:0")))
    cluster.granted("slow", duration_ms=1000, preemptible=False)
    cluster.now = 2000
    assert cluster.apply(Tick()) == []  # nobody waits
    (preempt, queued) = cluster.ask("next")
    assert isinstance(preempt, Preempt)
    assert preempt.cause is Cause.OVERDUE
    assert isinstance(queued, Queued)


# ---- preemption -------------------------------------------------------------------------------


def test_the_fewest_and_the_youngest_leave() -> None:
    cluster = Cluster(node("a", *(device(f"nvidia:{n}") for n in range(3))))
    for number, size in enumerate((40, 40, 60, 20, 30, 50)):  # two on each device
        cluster.granted(f"r{number}", Alternative(f'id == "nvidia:{number // 2}"', size * GIB))
    decisions = cluster.ask("urgent", Alternative(memory_bytes=50 * GIB), priority=1)
    assert ids(decisions, Preempt) == ["r5"]  # one is enough, and of r2 and r5 it is the younger
    cluster.apply(Release("urgent", 0))
    decisions = cluster.ask("whole", priority=1)
    assert ids(decisions, Preempt) == ["r4"]  # r5 ends already


def test_nobody_leaves_in_vain() -> None:
    """One lease less on node a, and still no room there: its holder stays."""
    cluster = Cluster(
        node("a", device("nvidia:0"), device("nvidia:1")), node("b", device("nvidia:2"), device("nvidia:3"))
    )
    for number in range(4):
        cluster.granted(str(number), Alternative(f'id == "nvidia:{number}"'), preemptible=number != 1)
    assert ids(cluster.ask("pair", Alternative(count=2), priority=1), Preempt) == ["2", "3"]


def test_the_same_priority_another_queue_and_the_firm_stay() -> None:
    cluster = Cluster(node("a", device("nvidia:0"), device("nvidia:1"), device("nvidia:2")))
    cluster.apply(SetQueue(Queue("other")))
    cluster.granted("same", priority=5)
    cluster.granted("firm", preemptible=False)
    cluster.granted("other", queue="other")
    assert ids(cluster.ask("urgent", priority=5), Preempt) == []
    assert ids(cluster.ask("urgent too", priority=6), Preempt) == ["same"]


def test_moves_that_would_make_room_are_proposed_once() -> None:
    cluster = Cluster(node("a", device("nvidia:0"), device("nvidia:1")))
    for number in (0, 1):
        cluster.granted(str(number), Alternative(f'id == "nvidia:{number}"', 30 * GIB), movable=False)
    cluster.granted("loose", Alternative(memory_bytes=20 * GIB), movable=True)
    (other,) = {"nvidia:0", "nvidia:1"} - set(cluster.on("loose"))
    cluster.end("0" if cluster.on("loose") == ["nvidia:0"] else "1")
    (proposal, queued) = cluster.ask("whole")
    assert isinstance(proposal, Propose)
    assert [(move.lease, move.target) for move in proposal.moves] == [("loose", (other,))]
    assert isinstance(queued, Queued)
    assert ids(cluster.apply(SetQueue(Queue("another"))), Propose) == []


def test_cutting_a_device_anew_is_the_last_alternative() -> None:
    class Planner:
        def cut(self, request: Request, idle: tuple[DeviceFacts, ...]) -> Cut | None:
            return Cut(idle[0].id, "2g.20gb") if idle else None

    wanted = Alternative('profile == "2g.20gb"')
    one = device("nvidia:1", attributes={"profile": "2g.20gb"})
    cluster = Cluster(node("a", device("nvidia:0"), one), partitioner=Planner())
    cluster.granted("x", wanted)
    (change, queued) = cluster.ask("y", wanted)
    assert isinstance(change, Repartition)
    assert (change.device, change.layout) == ("nvidia:0", "2g.20gb")
    assert isinstance(queued, Queued)
    cut = device("nvidia:0", attributes={"profile": "2g.20gb"})
    assert ids(cluster.apply(InventoryChanged(node("a", cut, one))), Grant) == ["y"]


# ---- failure ----------------------------------------------------------------------------------


def test_a_lost_node_has_a_time_of_grace() -> None:
    cluster = Cluster(mixed(), node("b", device("nvidia:9")), grace_ms=10_000)
    cluster.granted("x", Alternative('id == "nvidia:0"'), requeue=True)
    (suspend,) = cluster.apply(NodeLost("a"))
    assert isinstance(suspend, Suspend)
    assert suspend.until == 10_000
    cluster.now = 9_999
    assert cluster.apply(Tick()) == []
    (resume,) = cluster.apply(NodeJoined(mixed()))
    assert isinstance(resume, Resume)
    assert cluster.state.leases["x"].state is LeaseState.ACTIVE
    cluster.apply(NodeLost("a"))
    cluster.now += 10_000
    (revoke,) = cluster.apply(Tick())
    assert isinstance(revoke, Revoke)
    assert revoke.cause is Cause.LOST
    assert isinstance(cluster.apply(Ended("x"))[0], Queued)
    assert cluster.apply(NodeJoined(mixed()))[0].lease.epoch == 2  # type: ignore[union-attr]


def test_a_gang_on_two_lost_nodes_comes_back_with_the_second() -> None:
    first, second = node("a", device("nvidia:0")), node("b", device("nvidia:1"))
    cluster = Cluster(first, second)
    cluster.granted("gang", Alternative(count=2, topology=Topology.SPREAD))
    cluster.apply(NodeLost("a"))
    cluster.apply(NodeLost("b"))
    assert cluster.apply(NodeJoined(first)) == []
    assert ids(cluster.apply(NodeJoined(second)), Resume) == ["gang"]


def test_a_restart_forgets_neither_who_waits_nor_what_was_had() -> None:
    cluster = Cluster(node("a", device("nvidia:0")), half_life_ms=64_000)
    for name in ("a", "b"):
        cluster.apply(SetQueue(Queue(name)))
    cluster.granted("a0", queue="a")
    cluster.now = 600_000
    cluster.end("a0")
    cluster.granted("c0")
    cluster.ask("a1", queue="a")
    cluster.ask("b1", queue="b")
    rows = everything(cluster.state)
    cluster.state = restore(read(rows), [node("a", device("nvidia:0"))], half_life_ms=64_000)
    assert cluster.apply(Resumed()) == []
    assert ids(cluster.end("c0"), Grant) == ["b1"]


def test_a_failed_device_is_left_and_its_holder_placed_elsewhere() -> None:
    cluster = Cluster(node("a", device("nvidia:0"), device("nvidia:1")))
    cluster.granted("x", Alternative('id == "nvidia:0" || vendor == "nvidia"', count=1), requeue=True)
    (broken,) = cluster.on("x")
    (revoke,) = cluster.apply(DeviceFailed(broken, "Xid 79"))
    assert isinstance(revoke, Revoke)
    assert "Xid 79" in revoke.reason
    assert ids(cluster.apply(Ended("x")), Grant) == ["x"]
    assert cluster.on("x") != [broken]
    cluster.ask("y")
    assert "1 failed, drained or cordoned" in cluster.told("y")
    assert ids(cluster.apply(DeviceRecovered(broken)), Grant) == ["y"]


def test_a_cordon_keeps_who_is_there_and_a_drain_does_not() -> None:
    cluster = Cluster(mixed())
    cluster.granted("x", Alternative('id == "nvidia:0"', 1))
    assert cluster.apply(Cordon("nvidia:0")) == []
    assert ids(cluster.ask("y", Alternative('id == "nvidia:0"', 1)), Queued) == ["y"]
    assert ids(cluster.apply(Drain("a")), Revoke) == ["x"]
    cluster.apply(Uncordon("a"))
    cluster.apply(Ended("x"))
    assert ids(cluster.apply(Uncordon("nvidia:0")), Grant) == ["y"]


def test_a_forgotten_node_takes_its_leases_and_all_that_was_set_of_it_with_it() -> None:
    cluster = Cluster(node("a", device("a/0")), node("b", device("b/0")))
    cluster.granted("x", Alternative('id == "a/0"'), requeue=True)
    cluster.granted("y", Alternative('id == "b/0"'))
    cluster.apply(Cordon("a"))
    cluster.apply(Cordon("a/0"))
    cluster.apply(NodeLost("a"))
    (revoke,) = cluster.apply(NodeForgotten("a", ("a/0",)))
    assert isinstance(revoke, Revoke)
    assert (revoke.lease.id, revoke.cause) == ("x", Cause.LOST)
    assert ("node", "a", None) in changes(cluster.state)
    assert cluster.apply(NodeForgotten("a")) == []
    counters = cluster.state.world.counters
    assert (counters.lost, counters.cordoned) == ({}, {})
    assert ids(cluster.apply(Ended("x")), Queued) == ["x"]
    assert ids(cluster.apply(NodeJoined(node("a", device("a/0")))), Grant) == ["x"]
    assert ("node", "a", None) not in changes(cluster.state)


def test_who_is_forgotten_and_joins_in_one_commit_is_known() -> None:
    cluster = Cluster(node("a", device("a/0")))
    cluster.apply(NodeForgotten("a"))
    cluster.apply(NodeJoined(node("a", device("a/0"))))
    assert ("node", "a", None) not in changes(cluster.state)


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Cordon("nvidia:0", "dust"), "nvidia:0: dust"),
        (Drain("a"), "nvidia:0 is drained"),
        (DeviceFailed("nvidia:0", "Xid 79"), "nvidia:0: failed: Xid 79"),
    ],
)
def test_who_has_no_room_because_of_a_cordon_is_told_so(event: Event, why: str) -> None:
    cluster = Cluster(node("a", device("nvidia:0")), node("b", device("amd:0")))
    cluster.apply(event)
    only = Alternative('vendor == "nvidia"', GIB)
    (refused,) = cluster.ask("x", only, wait=False)
    assert isinstance(refused, Refuse)
    told = f"the only device that would do is out of use ({why})"
    assert refused.reason == f"no room now: {told}; try again when that is over"
    (queued,) = cluster.ask("y", only)
    assert isinstance(queued, Queued)
    assert "try again when a lease has ended" not in queued.reason
    assert cluster.told("y").endswith(f"nearest: an end to this: {told}")
    cluster.granted("z", Alternative('vendor == "amd"', 80 * GIB))
    (refused,) = cluster.ask("u", only, Alternative('vendor == "amd"', GIB), wait=False)
    assert isinstance(refused, Refuse)  # one of its alternatives only waits for a lease
    assert refused.reason.endswith("try again when a lease has ended")


def test_a_request_is_not_waited_for_beyond_its_deadline() -> None:
    cluster = Cluster(node("a", device("nvidia:0")))
    cluster.granted("x")
    cluster.ask("y", deadline_ms=1000)
    assert cluster.state.next_deadline() == 1000
    cluster.now = 1000
    (withdrawn,) = cluster.apply(Tick())
    assert isinstance(withdrawn, Withdrawn)
    assert isinstance(cluster.apply(Renew("y", 1000))[0], Refuse)


# ---- explain ----------------------------------------------------------------------------------


def test_explain_counts_what_each_condition_rules_out() -> None:
    cluster = Cluster(mixed(), node("b", device("nvidia:2", 24 * GIB), device("nvidia:3")))
    cluster.apply(Cordon("nvidia:3"))
    for number in range(2):
        cluster.granted(str(number), Alternative(f'id == "nvidia:{number}"', 50 * GIB))
    cluster.ask("x", Alternative('vendor == "nvidia" && memory >= 64Gi', 40 * GIB))
    assert cluster.told("x").splitlines() == [
        'devices: of 5: 1 fail vendor == "nvidia"; 1 fail memory >= 64Gi; 1 failed, drained or cordoned; '
        "2 with too little memory free",
        "nearest: the end of '0'",
    ]


def test_explain_says_when_nothing_would_do() -> None:
    cluster = Cluster(node("a", device("nvidia:0")), node("b", device("nvidia:1")))
    gang = (Member((Alternative(memory_bytes=50 * GIB),), replicas=3),)  # one fits on each
    assert ids(cluster.ask("x", members=gang), Queued) == ["x"]
    assert "nearest: more devices: it would not fit even if every lease ended" in cluster.told("x")
    assert cluster.granted("beside")  # and it holds up nobody


@pytest.mark.parametrize(
    ("alternative", "said"),
    [
        (Alternative(), "the gang needs 3 such devices, and there are 2"),
        (
            Alternative(memory_bytes=60 * GIB),
            "the gang needs 180.0 GiB of device memory, and there is 160.0 GiB",
        ),
        (
            Alternative(memory_bytes=GIB, compute_milli=700),
            "the gang needs 2.1 such devices, and there are 2",
        ),
    ],
)
def test_a_gang_that_can_never_be_is_refused_and_does_not_wait(alternative: Alternative, said: str) -> None:
    cluster = Cluster(node("a", device("nvidia:0")), node("b", device("nvidia:1")))
    (refused,) = cluster.ask("x", members=(Member((alternative,), replicas=3),), wait=True)
    assert isinstance(refused, Refuse)
    assert (refused.code, refused.reason) == (Refusal.TOO_LARGE, said)


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ('vendr == "amd"', "no device here has an attribute 'vendr'; did you mean 'vendor'?"),
        ("nvidia", "no device here has an attribute 'nvidia'; for the vendor write vendor == \"nvidia\""),
    ],
)
def test_a_misspelt_attribute_is_named(selector: str, said: str) -> None:
    (refused,) = Cluster(node("a", device("nvidia:0"))).ask("x", Alternative(selector))
    assert isinstance(refused, Refuse)
    assert refused.reason == said


def either(*alternatives: Alternative) -> Request:
    return Request(members=(Member(alternatives),))


# ---- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(members=()), "members"),
        (Request(ttl_ms=1), "ttl_ms"),
        (Request(queue=""), "queue"),
        (Request(name="n" * 65), "name"),
        (Request(duration_ms=0), "duration_ms"),
        (Request(priority=1 << 40), "priority"),
        (Request(members=(Member(()),)), "members[0].alternatives"),
        (Request(members=(Member(), Member(replicas=0))), "members[1].replicas"),
        (Request(members=(Member(replicas=60), Member(replicas=60))), "members"),
        (either(Alternative("vendor =")), "members[0].alternatives[0].selector"),
        (either(Alternative(), Alternative(memory_bytes=0)), "members[0].alternatives[1].memory_bytes"),
        (either(Alternative(compute_milli=500)), "members[0].alternatives[0].compute_milli"),
        (either(Alternative(count=65)), "members[0].alternatives[0].count"),
        (either(Alternative(weight=0)), "members[0].alternatives[0].weight"),
        (Request(queue="nobody's"), "queue"),
    ],
)
def test_a_malformed_request_gets_an_error_that_names_the_field(request_: Request, field: str) -> None:
    cluster = Cluster(mixed())
    (refused,) = cluster.apply(Submit(request_, "x", "key", 1000))
    assert isinstance(refused, Refuse)
    assert (refused.code, refused.field) == (Refusal.INVALID, field)
    assert refused.reason.startswith(f"{field}: ")
    if request_.queue != "nobody's":
        with pytest.raises(InvalidError):
            check(request_)


@pytest.mark.parametrize(
    ("queue", "field"),
    [
        (Queue(""), "name"),
        (Queue("a b"), "name"),
        (Queue("../x"), "name"),
        (Queue("x", quota=Limits(9), limit=Limits(1)), "quota_devices_milli"),
        (Queue("x", weight=0), "weight"),
        (Queue("x", "nobody's"), "parent"),
        (Queue("default", "x"), "parent"),
        (Queue("x", quota=Limits(-1)), "quota_devices_milli"),
    ],
)
def test_a_malformed_queue_gets_an_error_that_names_the_field(queue: Queue, field: str) -> None:
    cluster = Cluster()
    cluster.apply(SetQueue(Queue("x2")))
    (refused,) = cluster.apply(SetQueue(queue))
    assert isinstance(refused, Refuse)
    assert refused.field == field


def test_an_id_that_is_taken_is_refused_and_nothing_lost() -> None:
    cluster = Cluster(mixed())
    cluster.granted("x")
    (refused,) = cluster.apply(Submit(Request(), "x", "another key", 1000))
    assert isinstance(refused, Refuse)
    assert refused.code is Refusal.TAKEN
    assert cluster.on("x")


HISTORY = """
import sys
sys.path.insert(0, {root!r})
import hashlib, msgspec, random
from tests.property.test_core import *
chance, state, out = random.Random(7), State(grace_ms=10_000, half_life_ms=64_000), hashlib.sha256()
def happens(event, now):
    out.update(msgspec.msgpack.encode(state.apply(event, now)))
for number, name in enumerate(QUEUES[1:]):
    happens(SetQueue(Queue(name, "two" if "/" in name else "", Limits(chance.choice([None, 1000, 3000])))), 0)
for name in NODES:
    happens(NodeJoined(node(name)), 0)
for number in range(400):
    alternatives = tuple(
        Alternative(chance.choice(sorted(SELECTORS)), chance.choice([None, 10, 33, 50]),
                    count=chance.choice([1, 1, 2]))
        for _ in range(chance.choice([1, 2, 3]))
    )
    members = (Member(alternatives, chance.choice([1, 1, 2])),)
    happens(Submit(Request(members, queue=chance.choice(QUEUES), priority=chance.choice([0, 5]), wait=True,
            duration_ms=chance.choice([None, 5000, 60000])), str(number), str(number), 1), number * 100)
    for id in sorted(state.leases):
        if chance.random() < 0.1:
            happens(Release(id, 0), number * 100)
        if state.leases[id].state is LeaseState.ENDING:
            happens(Ended(id), number * 100)
print(out.hexdigest(), len(state.waiting), state.world.counters.epoch)
"""


def test_the_same_events_give_the_same_bytes_in_every_process() -> None:
    """Whatever order sets and dictionaries of strings have there."""
    root = str(Path(__file__).parents[2])
    said = {
        subprocess.run(
            [sys.executable, "-c", HISTORY.format(root=root)],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(said) == 1
    (text,) = said
    assert int(text.split()[2]) > 100, "it granted little"


def test_decisions_can_be_written_and_read() -> None:
    cluster = Cluster(mixed())
    decisions = cluster.ask("x")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decisions), type=list[Decision]) == decisions
