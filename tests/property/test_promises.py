"""What the scheduler promises about time and victims, against plain simulations and brute force."""

from __future__ import annotations

import os
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hal.scheduler.core import (
    Alternative,
    Cause,
    DeviceFacts,
    Ended,
    Grant,
    Lease,
    LeaseState,
    Limits,
    Member,
    NodeFacts,
    NodeJoined,
    Preempt,
    Queue,
    Release,
    Request,
    SetQueue,
    State,
    Submit,
    Tick,
)

EXAMPLES = int(os.environ.get("HAL_HISTORIES", "300")) // 2
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 500 else 120)
MEMORY = 100
# The two borrowers of one device cannot both go, and those of another can.
USED_UP: list[tuple[int | None, int]] = [
    *[(50, 1), (51, 1), (34, 2), (34, 2), (20, 1), (34, 1), (50, 1), (51, 1), (20, 2), (51, 1)],
    *[(50, 2), (50, 2), (None, 2), (50, 2), (100, 2)],
]
sizes = st.sampled_from([None, None, 20, 34, 50, 51, 100])


def cluster(devices: int, nodes: int = 1) -> State:
    state = State()
    for number in range(nodes):
        there = tuple(DeviceFacts(f"gpu:{number}-{n}", "gpu", "gpu", MEMORY) for n in range(devices))
        state.apply(NodeJoined(NodeFacts(f"node{number}", 1000, 1000, there)), 0)
    return state


def request(memory: int | None, count: int = 1, *, duration: int | None = None, **more: object) -> Request:
    member = Member((Alternative(memory_bytes=memory, count=count),))
    fields = {"members": (member,), "duration_ms": duration, "wait": True, "ttl_ms": 86_400_000} | more
    return Request(**fields)  # type: ignore[arg-type]


def submit(state: State, id: str, wanted: Request, now: int) -> list[object]:
    return list(state.apply(Submit(wanted, id, id, 1), now))


jobs = st.lists(
    st.tuples(
        st.integers(0, 5),  # how long after the one before it arrives
        sizes,
        st.sampled_from([1, 1, 1, 2, 3]),
        st.integers(1, 20),  # how long it takes, as it has declared
        st.integers(0, 20),  # by how much less it really takes
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(jobs=jobs, devices=st.integers(1, 4))
def test_backfill_never_delays_who_is_next(
    jobs: list[tuple[int, int | None, int, int, int]], devices: int
) -> None:
    """Who was told when it can begin at the latest begins by then, whatever came later and went ahead."""
    state, ends = cluster(devices), {}
    arrivals, at = [], 0
    for number, (gap, memory, count, declared, less) in enumerate(jobs):
        at += gap
        wanted = request(memory, min(count, devices), duration=declared * 1000)
        arrivals.append((at, f"j{number}", wanted, max(declared - less, 1)))
    takes = {id: real for _, id, _, real in arrivals}
    promised: dict[str, int] = {}
    began: dict[str, int] = {}
    for now in range(at + 1000):
        for id in [id for id, end in ends.items() if end <= now]:
            del ends[id]
            state.apply(Release(id, 0), now * 1000)
            note(state.apply(Ended(id), now * 1000), now, takes, ends, began)
        note(state.apply(Tick(), now * 1000), now, takes, ends, began)
        for _, id, wanted, _ in [one for one in arrivals if one[0] == now]:
            note(submit(state, id, wanted, now * 1000), now, takes, ends, began)
        kept = state.world.counters.reservation
        if kept is not None and kept.at is not None:
            assert kept.at // 1000 == earliest(state, kept.id, now), "neither too late nor too early"
            assert kept.at // 1000 <= promised.get(kept.id, kept.at), "and never later than was said"
            promised[kept.id] = kept.at // 1000
        if now > at and not state.waiting and not ends:
            break
    assert set(began) == set(takes), "all have had their turn"
    late = {id: (began[id], latest) for id, latest in promised.items() if began[id] > latest}
    assert not late


def earliest(state: State, id: str, now: int) -> int:
    """When there is room by what all have declared, if nobody else came."""
    (alternative,) = state.waiting[id].request.members[0].alternatives
    ends = {
        lease.id: (lease.ends or 0) // 1000
        for lease in state.leases.values()
        if lease.id not in state.waiting
    }
    if not fits_without(state, set(), alternative):
        for end in sorted(set(ends.values())):
            if fits_without(state, {id for id, at in ends.items() if at <= end}, alternative):
                return max(end, now)
    return now


def fits_without(state: State, gone: set[str], wanted: Alternative) -> bool:
    """Whether so many devices of one node have so much free."""
    rooms = 0
    (node,) = [one for one in state.world.fleet.facts if one is not None]
    for device in node.devices:
        there = [
            MEMORY if spot.shape.whole else spot.shape.memory_bytes
            for lease in state.leases.values()
            if lease.id not in gone
            for spot in lease.spots()
            if device.id in spot.devices
        ]
        rooms += not there if wanted.memory_bytes is None else sum(there) + wanted.memory_bytes <= MEMORY
    return rooms >= wanted.count


def note(
    decisions: list[object], now: int, takes: dict[str, int], ends: dict[str, int], began: dict[str, int]
) -> None:
    for decision in decisions:
        assert not isinstance(decision, Preempt), "all keep to what they declared"
        if isinstance(decision, Grant):
            began[decision.lease.id] = now
            ends[decision.lease.id] = now + takes[decision.lease.id]


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    held=st.lists(st.tuples(sizes, st.sampled_from([0, 0, 9])), min_size=1, max_size=9),
    memory=sizes,
    count=st.sampled_from([1, 1, 2]),
    devices=st.integers(2, 4),
)
def test_the_fewest_and_the_youngest_have_to_leave(
    held: list[tuple[int | None, int]], memory: int | None, count: int, devices: int
) -> None:
    """No smaller set of those who may be asked would do: all of them are tried."""
    state = cluster(devices)
    for number, (size, priority) in enumerate(held):
        submit(state, f"h{number}", request(size, priority=priority, wait=False), 0)
    wanted = Alternative(memory_bytes=memory, count=count)
    lower = sorted(id for id, lease in state.leases.items() if lease.request.priority < 5)
    fewest = next(
        (
            n
            for n in range(len(lower) + 1)
            if any(fits_without(state, set(some), wanted) for some in combinations(lower, n))
        ),
        None,
    )
    decisions = submit(state, "x", request(memory, count, priority=5), 1)
    victims = {d.lease.id for d in decisions if isinstance(d, Preempt)}
    assert bool(victims) is bool(fewest)
    assert ("x" in state.leases) is (fewest == 0)
    if not fewest:
        return
    assert victims <= set(lower)
    assert fits_without(state, victims, wanted)
    for spared in victims:
        assert not fits_without(state, victims - {spared}, wanted), "each has to leave"
    if count == 1:
        assert len(victims) == fewest
    if fewest == 1:
        alone = [id for id in lower if fits_without(state, {id}, wanted)]
        assert victims == {max(alone, key=lambda id: state.leases[id].epoch)}
    for id in sorted(victims):
        state.apply(Ended(id), 2)
    assert "x" in state.leases


def can_be_freed(state: State, size: int | None, excess: int) -> bool:
    """Whether some of one device's borrowers make room and can go one after the other, each while its queue
    has too much: all are tried, the largest last."""

    def makes_room(device: str, gone: tuple[Lease, ...]) -> bool:
        left = [one for id, one in state.world.holders.get(device, {}).items() if one not in gone]
        memory = [
            MEMORY if spot.shape.whole else spot.shape.memory_bytes
            for one in left
            for spot in one.spots()
            if device in spot.devices
        ]
        return not left if size is None else sum(memory) + size <= MEMORY

    for device, there in state.world.holders.items():
        borrowers = [one for one in there.values() if one.request.queue == "theirs"]
        for number in range(1, len(borrowers) + 1):
            for gone in combinations(borrowers, number):
                charges = sorted(one.charge.devices_milli for one in gone)
                if sum(charges[:-1]) < excess and makes_room(device, gone):
                    return True
    return False


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    quotas=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    borrowed=st.lists(st.tuples(sizes, st.sampled_from([1, 1, 2])), max_size=16),
    wanted=st.lists(sizes, min_size=1, max_size=6),
)
@example((4, 4), [(20, 1), (50, 1), (50, 2), (50, 2), (51, 2), (20, 1), (20, 1)], [None] * 4)
@example((2, 2), USED_UP, [None])
def test_quota_comes_back_as_soon_as_who_has_borrowed_it_has_gone(
    quotas: tuple[int, int], borrowed: list[tuple[int | None, int]], wanted: list[int | None]
) -> None:
    """In one round: who asks within its quota has victims named at once, and their room when they end.
    Unless more would have to leave each device than the other queue has too much."""
    state = cluster(4, 2)
    mine, theirs = sorted(quotas)
    state.apply(SetQueue(Queue("mine", quota=Limits(mine * 1000))), 0)
    state.apply(SetQueue(Queue("theirs", quota=Limits((8 - mine if theirs else 0) * 1000))), 0)
    for number, (size, count) in enumerate(borrowed):
        submit(state, f"b{number}", request(size, count, queue="theirs", wait=False), 0)
    for number in range(8):
        submit(state, f"w{number}", request(None, queue="theirs", wait=False), 0)
    for number, size in enumerate(wanted):
        id = f"m{number}"
        used = state.world.tree.used["mine"].devices_milli
        within = used + (1000 if size is None else size * 10) <= mine * 1000
        decisions = submit(state, id, request(size, queue="mine", priority=-number), 1)
        assert all(d.cause is Cause.RECLAIMED for d in decisions if isinstance(d, Preempt))
        before = state.world.tree.used["theirs"].devices_milli
        for lease in [x for x in state.leases.values() if x.state is LeaseState.ENDING]:
            state.apply(Ended(lease.id), 2)
        quota = state.world.tree.queues["theirs"].quota.devices_milli or 0
        if not within:
            assert id not in state.leases or not any(isinstance(d, Preempt) for d in decisions)
        elif before > quota and id not in state.leases:
            assert not can_be_freed(state, size, before - quota), (size, state.explain(id, 3))
        if not within or id not in state.leases:  # nothing is kept for it
            state.apply(Release(id, 0), 3)
            state.apply(Ended(id), 3)
