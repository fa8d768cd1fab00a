"""Any history of a fleet: nothing is lent twice, and what was kept between decisions changes none of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.scheduler.core import mix as mix_module
from hal.scheduler.core import placement
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.masks import Eligible
from hal.scheduler.core.mix import Mix
from hal.scheduler.core.packing import WORTH, worth_of_rests
from hal.scheduler.core.placement import Policy, Strategy, place
from hal.scheduler.core.shape import NoRoomError, Shape, Spot

GIB = 1 << 30
SELECTORS: dict[str, Callable[[DeviceFacts], bool]] = {
    "everything": lambda _: True,
    "green": lambda device: device.vendor == "green",
    "large": lambda device: device.memory_bytes > 40 * GIB,
}

devices = st.builds(
    DeviceFacts,
    id=st.just(""),
    vendor=st.sampled_from(["green", "blue"]),
    model=st.just("m"),
    memory_bytes=st.sampled_from([0, 16 * GIB, 24 * GIB, 80 * GIB]),
    outside_bytes=st.sampled_from([0, 0, 0, GIB, 9 * GIB, None]),
    holds_slices=st.sampled_from([True, True, True, False]),
    fabric=st.sampled_from([None, "x", "y"]),
    micros_per_hour=st.sampled_from([0, 1_000_000, 4_000_000]),
    numa_node=st.sampled_from([None, 0, 1]),
)
machines = st.tuples(
    st.sampled_from([4_000, 16_000, 64_000]), st.sampled_from([8, 64]), st.lists(devices, max_size=5)
)
shapes = st.builds(
    Shape,
    count=st.sampled_from([0, 1, 1, 1, 1, 2, 3]),
    memory_bytes=st.sampled_from([0, GIB, 5 * GIB, 8 * GIB, 20 * GIB]),
    compute_milli=st.sampled_from([0, 100, 330, 400, 500, 810]),
    cpu_milli=st.sampled_from([0, 1_000, 3_000]),
    ram_bytes=st.sampled_from([0, GIB, 4 * GIB]),
    whole=st.sampled_from([False, False, False, True]),
)
steps = st.one_of(
    st.tuples(st.just("place"), shapes, st.sampled_from(sorted(SELECTORS))),
    st.tuples(st.just("place"), shapes, st.sampled_from(sorted(SELECTORS))),
    st.tuples(st.just("place"), shapes, st.sampled_from(sorted(SELECTORS))),
    st.tuples(st.just("give"), st.integers(0, 50)),
    st.tuples(st.just("join"), st.integers(0, 9), machines),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("usable"), st.integers(0, 9), st.integers(0, 4), st.booleans()),
)
histories = st.tuples(st.lists(machines, min_size=1, max_size=6), st.lists(steps, max_size=40))


class Story:
    """A fleet, what is held on it, and the steps that it goes through."""

    def __init__(self, first: list[Any], policy: Policy) -> None:
        self.fleet, self.mix, self.policy = Fleet(), Mix(), policy
        self.held: list[Spot] = []
        self.asked: list[tuple[Shape, str]] = []
        self.spots: list[Spot | None] = []
        for number, machine in enumerate(first):
            self.join(number, machine)

    def join(self, number: int, machine: Any) -> None:
        cpu, ram, devices = machine
        named = tuple(
            DeviceFacts(f"n{number}:{i}", *[getattr(d, f) for f in d.__struct_fields__[1:]])
            for i, d in enumerate(devices)
        )
        self.fleet.join(NodeFacts(f"n{number}", cpu, ram * GIB, named))

    def eligible(self, fleet: Fleet, key: str) -> Eligible:
        return fleet.select(key, SELECTORS[key]) if key != "everything" else fleet.everything

    def step(self, step: Any) -> None:
        match step:
            case ("place", shape, key):
                eligible = self.eligible(self.fleet, key)
                self.mix.arrived(shape, key)
                spot = place(self.fleet, shape, eligible, self.policy, self.mix)
                self.asked.append((shape, key))
                self.spots.append(spot)
                if spot is not None:
                    self.fleet.take(spot)
                    self.held.append(spot)
            case ("give", index) if self.held:
                self.fleet.give(self.held.pop(index % len(self.held)))
            case ("join", number, machine):
                self.join(number, machine)
            case ("leave", number) if f"n{number}" in self.fleet.row_of:
                self.fleet.leave(f"n{number}")
            case ("usable", number, device, usable):
                self.fleet.set_usable(f"n{number}:{device}", usable)


@pytest.fixture(params=[False, True], ids=["all", "two-stage"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs that pass quickly; and fleets that count as large, of which only the best are scored."""
    monkeypatch.setattr(mix_module, "_SOON", (3, 6, 11))
    monkeypatch.setattr(mix_module, "_EVERY", 17)
    if request.param:
        monkeypatch.setattr(placement, "_ALL", 2)
        monkeypatch.setattr(placement, "_BEST", 2)


strategies = st.sampled_from(
    [Strategy.FRAGMENTATION, Strategy.FRAGMENTATION, Strategy.BEST_FIT, Strategy.SPREAD]
)


@pytest.mark.usefixtures("small")
@settings(max_examples=150, deadline=None)
@given(histories, strategies)
def test_kept_scores_are_those_of_a_fleet_without_a_past(history: Any, strategy: Strategy) -> None:
    first, steps = history
    story = Story(first, Policy(strategy))
    for step in steps:
        story.step(step)
        if not story.asked:
            continue
        fresh = story.fleet.copy()  # its rows are in another order, and it has kept nothing
        for shape, key in dict.fromkeys(story.asked[-4:]):
            mine, other = story.eligible(story.fleet, key), story.eligible(fresh, key)
            args = (story.policy, story.mix)
            assert place(story.fleet, shape, mine, *args) == place(fresh, shape, other, *args)
            kept, new = (
                fleet.memo["placement"].rows[shape, key, story.policy] for fleet in (story.fleet, fresh)
            )
            for node, row in fresh.row_of.items():
                old = story.fleet.row_of[node]
                if new.known[row]:  # of a large fleet some only
                    assert kept.known[old] and new.costs[row] == kept.costs[old], node
                    assert new.columns[row].tolist() == kept.columns[old].tolist(), node


@settings(max_examples=150, deadline=None)
@given(histories, st.sampled_from(list(Strategy)))
def test_the_same_history_gives_the_same_spots(history: Any, strategy: Strategy) -> None:
    first, steps = history
    stories = [Story(first, Policy(strategy, seed=7)) for _ in range(2)]
    for story in stories:
        for step in steps:
            story.step(step)
    assert stories[0].spots == stories[1].spots
    for name in ("bytes_free", "milli_free", "share_free", "cpu_free", "ram_free", "idle"):
        assert np.array_equal(getattr(stories[0].fleet, name), getattr(stories[1].fleet, name))


@settings(max_examples=200, deadline=None)
@given(histories, st.sampled_from(list(Strategy)), st.data())
def test_nothing_is_lent_twice(history: Any, strategy: Strategy, data: st.DataObject) -> None:
    first, steps = history
    story = Story(first, Policy(strategy))
    facts = {device.id: device for node in story.fleet.facts if node for device in node.devices}
    for step in steps:
        if step[0] in ("join", "leave"):
            continue  # what is booked may be more than what a node has after it has shrunk
        story.step(step)
        milli, size = dict.fromkeys(facts, 0), dict.fromkeys(facts, 0)
        cpu = dict.fromkeys(story.fleet.row_of, 0)
        whole: list[str] = []
        for spot in story.held:
            cpu[spot.node] += spot.shape.cpu_milli
            for device in spot.devices:
                if spot.shape.whole:
                    whole.append(device)
                else:
                    milli[device] += spot.shape.compute_milli
                    size[device] += spot.shape.memory_bytes
        shared = {d for spot in story.held if not spot.shape.whole for d in spot.devices}
        assert len(whole) == len(set(whole)) and not shared & set(whole)
        for name, device in facts.items():
            row, column = story.fleet.cell_of[name]
            assert milli[name] <= 1000 and size[name] <= device.memory_bytes
            if name not in whole:
                assert story.fleet.milli_free[row, column] == 1000 - milli[name]
        for name, row in story.fleet.row_of.items():
            node = story.fleet.facts[row]
            assert node is not None and story.fleet.cpu_free[row] == node.cpu_milli - cpu[name] >= 0
    for spot in list(story.held):
        story.fleet.give(spot)
    if facts:
        name = data.draw(st.sampled_from(sorted(facts)))
        assert story.fleet.milli_free[story.fleet.cell_of[name]] == 1000


@settings(max_examples=150, deadline=None)
@given(histories, shapes, st.data())
def test_take_refuses_what_is_not_free(history: Any, shape: Shape, data: st.DataObject) -> None:
    first, steps = history
    story = Story(first, Policy())
    for step in steps:
        story.step(step)
    names = sorted(story.fleet.cell_of) or ["none"]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=shape.count, max_size=shape.count))
    node = data.draw(st.sampled_from(sorted(story.fleet.row_of) or ["none"]))
    before = (story.fleet.milli_free.copy(), story.fleet.bytes_free.copy(), story.fleet.cpu_free.copy())
    spot = Spot(node, tuple(chosen), shape)
    try:
        story.fleet.take(spot)
    except NoRoomError:
        pass
    else:
        assert len(set(chosen)) == shape.count and all(name.startswith(f"{node}:") for name in chosen)
        row = story.fleet.row_of[node]
        assert before[2][row] >= shape.cpu_milli
        for name in () if shape.whole else chosen:
            cell = story.fleet.cell_of[name]
            assert before[0][cell] >= shape.compute_milli and before[1][cell] >= shape.memory_bytes
        story.fleet.give(spot)
    after = (story.fleet.milli_free, story.fleet.bytes_free, story.fleet.cpu_free)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(1, 999), st.integers(1, 5000), max_size=30))
def test_the_worth_of_a_rest_grows_and_adds_up(demand: dict[int, int]) -> None:
    worth = worth_of_rests({size: float(count) for size, count in demand.items()})
    assert worth[0] == 0 and worth[1000] == WORTH
    assert (np.diff(worth) >= 0).all()
    for rest in (999, 810, 500, 333, 100):  # two rests are worth no more than the one that they are cut from
        assert (worth[: rest + 1] + worth[rest::-1] <= worth[rest] + 2).all()


@pytest.mark.parametrize("seed", range(10))
def test_a_node_that_returns_to_a_state_is_scored_as_it_is(seed: int) -> None:
    """Few shapes on few devices, so that states come back; each of them differs from others in one amount."""
    few = [
        Shape(memory_bytes=6 * GIB),
        Shape(compute_milli=300),
        Shape(count=0, cpu_milli=1_500),
        Shape(count=0, ram_bytes=30 * GIB),
        Shape(cpu_milli=1_000, ram_bytes=20 * GIB),
        Shape(whole=True),
    ]
    fleet, mix, held, outside = Fleet(), Mix(), list[Spot](), dict[int, int | None]()
    chance = random.Random(seed)

    def join(node: int) -> None:
        there = [
            DeviceFacts(f"d{d}", "green", "m", 24 * GIB, outside_bytes=outside.get(d, 0))
            for d in (2 * node, 2 * node + 1)
        ]
        fleet.join(NodeFacts(f"n{node}", 4_000, 64 * GIB, tuple(there)))

    join(0), join(1)
    for _ in range(400):
        device = chance.randrange(4)
        match chance.choice(["place", "place", "place", "give", "give", "outside", "usable"]):
            case "place":
                shape = chance.choice(few)
                spot = place(fleet, shape, fleet.everything, Policy(), mix)
                fresh = fleet.copy()
                assert spot == place(fresh, shape, fresh.everything, Policy(), mix)
                if spot is not None:
                    fleet.take(spot)
                    held.append(spot)
            case "give" if held:
                fleet.give(held.pop(chance.randrange(len(held))))
            case "outside":
                outside[device] = chance.choice([0, 0, 9 * GIB, None])
                join(device // 2)
            case "usable":
                fleet.set_usable(f"d{device}", chance.random() < 0.7)
