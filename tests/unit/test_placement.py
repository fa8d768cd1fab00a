"""What other schedulers get wrong with parts of devices, and each term of a placement's cost."""

from __future__ import annotations

from collections import Counter

import pytest

from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.mix import Mix
from hal.scheduler.core.placement import Policy, Strategy, Weights, place, why_not
from hal.scheduler.core.shape import NoRoomError, Shape, Spot

GIB = 1 << 30
EVERY = list(Strategy)


def node(name: str, *sizes: int, cpu: int = 64_000, **facts: object) -> NodeFacts:
    devices = tuple(
        DeviceFacts(f"{name}:{i}", "any", "model", size * GIB, **facts)  # type: ignore[arg-type]
        for i, size in enumerate(sizes)
    )
    return NodeFacts(name, cpu, 256 * GIB, devices)


def fleet_of(*nodes: NodeFacts) -> Fleet:
    fleet = Fleet()
    for one in nodes:
        fleet.join(one)
    return fleet


def fill(fleet: Fleet, shape: Shape, times: int, policy: Policy) -> list[Spot | None]:
    mix, spots = Mix(), []
    for _ in range(times):
        mix.arrived(shape)
        spot = place(fleet, shape, fleet.everything, policy, mix)
        if spot is not None:
            fleet.take(spot)
        spots.append(spot)
    return spots


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize(
    "shape", [Shape(compute_milli=500), Shape(memory_bytes=8 * GIB)], ids=["compute", "bytes"]
)
def test_sixteen_halves_on_eight_devices_are_two_on_each(strategy: Strategy, shape: Shape) -> None:
    fleet = fleet_of(node("a", *[16] * 8))
    spots = fill(fleet, shape, 17, Policy(strategy))
    assert Counter(spot.devices for spot in spots if spot) == {(f"a:{i}",): 2 for i in range(8)}
    assert spots[16] is None


@pytest.mark.parametrize("strategy", EVERY)
def test_eight_of_two_fifths_on_two_nodes_of_two_all_run(strategy: Strategy) -> None:
    spots = fill(
        fleet_of(node("a", 16, 16), node("b", 16, 16)), Shape(compute_milli=400), 9, Policy(strategy)
    )
    assert [spot is None for spot in spots] == [False] * 8 + [True]
    assert max(Counter(spot.devices for spot in spots if spot).values()) == 2


@pytest.mark.parametrize(("milli", "times"), [(330, 3), (100, 10), (333, 3), (1, 1000)])
def test_parts_that_add_up_to_a_device_fit_one(milli: int, times: int) -> None:
    spots = fill(fleet_of(node("a", 16)), Shape(compute_milli=milli), times + 1, Policy())
    assert [spot is None for spot in spots] == [False] * times + [True]


@pytest.mark.parametrize("strategy", EVERY)
def test_bytes_are_bytes_on_devices_of_any_size(strategy: Strategy) -> None:
    fleet = fleet_of(node("a", 16, 24, 80, 192))
    spots = fill(fleet, Shape(memory_bytes=20 * GIB), 20, Policy(strategy))
    assert Counter(spot.devices[0] for spot in spots if spot) == {"a:1": 1, "a:2": 4, "a:3": 9}
    why = why_not(fleet, Shape(memory_bytes=20 * GIB), fleet.everything)
    assert (why.too_small, why.bytes_taken) == (1, 3)


@pytest.mark.parametrize("strategy", EVERY)
def test_no_sum_over_devices(strategy: Strategy) -> None:
    fleet = fleet_of(node("a", 16, 16))
    fill(fleet, Shape(compute_milli=600), 2, Policy(strategy))
    assert place(fleet, Shape(compute_milli=800), fleet.everything, Policy(strategy), Mix()) is None
    assert why_not(fleet, Shape(compute_milli=800), fleet.everything).compute_taken == 2


def test_a_whole_device_is_nobody_elses() -> None:
    fleet = fleet_of(node("a", 16, 16))
    fleet.take(Spot("a", ("a:0",), Shape(memory_bytes=GIB)))
    spot = place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix())
    assert spot is not None and spot.devices == ("a:1",)
    fleet.take(spot)
    assert place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix()) is None
    with pytest.raises(NoRoomError, match="a:1"):
        fleet.take(Spot("a", ("a:1",), Shape()))  # not even nothing of it
    fleet.give(spot)
    assert place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix()) == spot


@pytest.mark.parametrize(
    "shape",
    [
        Shape(compute_milli=701),
        Shape(memory_bytes=11 * GIB),
        Shape(whole=True),
        Shape(cpu_milli=63_001),
        Shape(ram_bytes=255 * GIB),
        Shape(2),
    ],
)
def test_take_refuses_more_than_is_free(shape: Shape) -> None:
    fleet = fleet_of(node("a", 16))
    fleet.take(Spot("a", ("a:0",), Shape(1, 6 * GIB, 300, 1_000, 2 * GIB)))
    with pytest.raises(NoRoomError):
        fleet.take(Spot("a", ("a:0",), shape))
    fleet.take(Spot("a", ("a:0",), Shape(1, 10 * GIB, 700, 63_000, 254 * GIB)))


def test_what_is_given_back_twice_is_refused() -> None:
    fleet = fleet_of(node("a", 16))
    spot = Spot("a", ("a:0",), Shape(memory_bytes=GIB, cpu_milli=1000))
    fleet.take(spot)
    fleet.give(spot)
    with pytest.raises(ValueError, match="a:0"):
        fleet.give(spot)
    assert fleet.cpu_free[0] == 64_000


def test_outside_use_counts_and_an_unknown_one_lends_nothing() -> None:
    fleet = fleet_of(node("a", 16, outside_bytes=10 * GIB), node("b", 16, outside_bytes=None))
    assert place(fleet, Shape(memory_bytes=7 * GIB), fleet.everything, Policy(), Mix()) is None
    spot = place(fleet, Shape(memory_bytes=6 * GIB), fleet.everything, Policy(), Mix())
    assert spot is not None and spot.node == "a"
    assert place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix()) is None


def test_what_is_leased_stays_booked_while_a_node_is_away() -> None:
    fleet = fleet_of(node("a", 16))
    spot = Spot("a", ("a:0",), Shape(memory_bytes=10 * GIB, cpu_milli=60_000))
    fleet.take(spot)
    fleet.leave("a")
    assert place(fleet, Shape(count=0), fleet.everything, Policy(), Mix()) is None
    fleet.join(node("a", 16))
    assert fleet.bytes_free[0, 0] == 6 * GIB and fleet.cpu_free[0] == 4_000
    fleet.give(spot)
    assert fleet.bytes_free[0, 0] == 16 * GIB


def test_a_drained_device_takes_nothing_new() -> None:
    fleet = fleet_of(node("a", 16, 16))
    fleet.set_usable("a:0", False)
    spots = fill(fleet, Shape(compute_milli=500), 3, Policy())
    assert [spot and spot.devices for spot in spots] == [("a:1",), ("a:1",), None]
    assert why_not(fleet, Shape(compute_milli=500), fleet.everything).unusable == 1
    fleet.set_usable("a:0", True)
    assert place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix()) is not None


def test_cpu_and_memory_of_the_node_bind() -> None:
    fleet = fleet_of(node("a", 16, 16, cpu=1_000), node("b", 16, cpu=9_000))
    spot = place(fleet, Shape(cpu_milli=2_000), fleet.everything, Policy(), Mix())
    assert spot is not None and spot.node == "b"
    why = why_not(fleet, Shape(cpu_milli=10_000), fleet.everything)
    assert (why.nodes_cpu, why.nodes_ram, why.nodes_count) == (2, 0, 0)
    assert why_not(fleet, Shape(2, cpu_milli=2_000), fleet.everything).nodes_count == 1


def test_a_trial_leaves_nothing_behind() -> None:
    fleet = fleet_of(node("a", 16, 16))
    held = Spot("a", ("a:0",), Shape(compute_milli=300))
    fleet.take(held)
    with fleet.trial():
        fleet.give(held)
        fleet.take(Spot("a", ("a:0", "a:1"), Shape(2, whole=True)))
        with fleet.trial():
            fleet.give(Spot("a", ("a:0", "a:1"), Shape(2, whole=True)))
            fleet.take(held)
        assert place(fleet, Shape(), fleet.everything, Policy(), Mix()) is None
    assert fleet.milli_free[0, :2].tolist() == [700, 1000]
    assert place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix()) is not None


def test_a_selector_is_asked_once() -> None:
    asked = []
    fleet = fleet_of(node("a", 16), node("b", 80))

    def large(device: DeviceFacts) -> bool:
        asked.append(device.id)
        return device.memory_bytes > 40 * GIB

    for _ in range(3):
        spot = place(fleet, Shape(), fleet.select("large", large), Policy(), Mix())
        assert spot is not None and spot.node == "b"
    fleet.join(node("c", 80))
    assert asked == ["a:0", "b:0", "c:0"]
    fleet.leave("b")
    spot = place(fleet, Shape(), fleet.select("large", large), Policy(), Mix())
    assert spot is not None and spot.node == "c"


def test_of_many_selectors_the_last_ones_are_kept_and_everything_is() -> None:
    fleet = fleet_of(node("a", 16))
    for number in range(300):
        fleet.select(f"key {number}", lambda _: False)
    assert fleet.mask("key 0") is None and fleet.mask("key 299") is not None
    fleet.join(node("b", 80))
    spot = place(fleet, Shape(memory_bytes=20 * GIB), fleet.everything, Policy(), Mix())
    assert spot is not None and spot.node == "b"


def test_several_devices_come_from_one_fabric() -> None:
    devices = tuple(DeviceFacts(f"a:{i}", "any", "m", 16 * GIB, fabric=f"f{i % 2}") for i in range(8))
    fleet = fleet_of(NodeFacts("a", 64_000, GIB, devices))
    spot = place(fleet, Shape(3, whole=True), fleet.everything, Policy(), Mix())
    assert spot is not None and {int(name[2:]) % 2 for name in spot.devices} == {0}
    fleet.take(spot)
    spot = place(fleet, Shape(4, whole=True), fleet.everything, Policy(), Mix())
    assert spot is not None and {int(name[2:]) % 2 for name in spot.devices} == {1}


def test_the_node_on_which_devices_are_close_is_chosen() -> None:
    def with_fabrics(name: str, *fabrics: str) -> NodeFacts:
        devices = (DeviceFacts(f"{name}:{i}", "any", "m", 16 * GIB, fabric=f) for i, f in enumerate(fabrics))
        return NodeFacts(name, 64_000, GIB, tuple(devices))

    fleet = fleet_of(with_fabrics("a", "x", "y"), with_fabrics("b", "z", "z"))
    spot = place(fleet, Shape(2, whole=True), fleet.everything, Policy(), Mix())
    assert spot is not None and spot.node == "b"


def test_the_cheaper_of_equals_is_chosen_and_the_nearer() -> None:
    fleet = fleet_of(node("a", 16, micros_per_hour=3_000_000), node("b", 16, micros_per_hour=1_000_000))
    spot = place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix())
    assert spot is not None and spot.node == "b"
    near = place(fleet, Shape(whole=True), fleet.everything, Policy(), Mix(), near={"a": 1.0, "gone": 1.0})
    assert near is not None and near.node == "a"
    free = Policy(weights=Weights(cost=0.0))
    spot = place(fleet, Shape(whole=True), fleet.everything, free, Mix())
    assert spot is not None and spot.node == "a"


def test_cpu_is_a_dimension_of_fragmentation() -> None:
    """What needs much CPU goes where the devices do not need it."""
    fleet = fleet_of(node("a", *[16] * 8, cpu=64_000), node("b", 16, cpu=64_000))
    mix = Mix()
    for _ in range(32):
        mix.arrived(Shape(whole=True, cpu_milli=8_000))
    for shape in (Shape(0, cpu_milli=40_000), Shape(compute_milli=500, cpu_milli=40_000)):
        spot = place(fleet, shape, fleet.everything, Policy(), mix)
        assert spot is not None and spot.node == "b"


def test_a_part_goes_where_it_completes_a_device() -> None:
    fleet = fleet_of(node("a", 16, 16, 16))
    mix = Mix()
    for _ in range(64):
        mix.arrived(Shape(compute_milli=650))
        mix.arrived(Shape(compute_milli=350))
        mix.arrived(Shape(compute_milli=500))
    fleet.take(Spot("a", ("a:1",), Shape(compute_milli=500)))
    fleet.take(Spot("a", ("a:2",), Shape(compute_milli=650)))
    for milli, device in ((350, "a:2"), (500, "a:1")):
        spot = place(fleet, Shape(compute_milli=milli), fleet.everything, Policy(), mix)
        assert spot is not None and spot.devices == (device,)


def test_a_kept_mix_goes_on_as_it_was() -> None:
    mix = Mix()
    for number in range(700):
        mix.arrived(Shape(compute_milli=1 + number % 600), f"key-{number % 3}")
    other = Mix.of(mix.state())
    for one in (mix, other):
        for number in range(1500):
            one.arrived(Shape(compute_milli=1 + number % 7))
    assert mix.state() == other.state()
    assert mix.epoch == 4 and len(mix.counts) <= 512 and len(mix.expected) <= 96


def test_sizes_that_have_gone_do_not_count() -> None:
    """What was there before is not to decide where something goes: a journal is replayed from later, too."""
    without, past = node("a", 0, 0, cpu=1000), fleet_of(node("a", 16))
    past.join(without)
    fresh = fleet_of(without)
    assert (past.has_memory, fresh.has_memory) == (False, False)
    for fleet in (past, fresh):
        fleet.join(node("b", 0))
        assert place(fleet, Shape(count=0, cpu_milli=1000), fleet.everything, Policy(), Mix()) is not None
    costs = [
        next(iter(fleet.memo["placement"].rows.values()))
        .costs[[fleet.row_of["a"], fleet.row_of["b"]]]
        .tolist()
        for fleet in (past, fresh)
    ]
    assert costs[0] == costs[1]
