"""The sampler: what is asked for and when, what is kept, and that only a thread waits for a driver."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.backend import Cost, Group
from hal.model import Reading, Status
from hal.telemetry import sampler as module
from hal.telemetry.sampler import Sample, Sampler

FIGURES = {Cost.STATIC: "power_limit_max_watts", Cost.FAST: "power_watts", Cost.SLOW: "pcie_replays_total"}


class Asked:
    """Answers with one reading for each cost class, whose value is the number of the call."""

    def __init__(self, during: Callable[[], None] = lambda: None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.threads: set[int] = set()
        self._during = during

    def sample(
        self,
        groups: Iterable[Group] | None = None,
        ids: Iterable[str] | None = None,
        *,
        timeout: float = 5.0,
        costs: frozenset[Cost] = frozenset(Cost),
    ) -> list[Reading]:
        self.calls.append({"groups": groups, "ids": ids, "timeout": timeout, "costs": costs})
        self.threads.add(threading.get_ident())
        self._during()
        return [Reading("x:1", name, len(self.calls), "w") for cost, name in FIGURES.items() if cost in costs]


def values(sample: Sample) -> dict[str, object]:
    return {reading.name: reading.value for reading in sample.readings}


def test_only_the_groups_and_devices_asked_for_are_read() -> None:
    machine = Asked()
    sampler = Sampler(machine, iter([Group.POWER, Group.PCIE]), iter(["x:1"]))
    for _ in range(3):
        sampler.tick()
    assert {call["groups"] for call in machine.calls} == {(Group.POWER, Group.PCIE)}
    assert {call["ids"] for call in machine.calls} == {("x:1",)}
    everything = Asked()
    Sampler(everything).tick()
    assert (everything.calls[0]["groups"], everything.calls[0]["ids"]) == (None, None)


@given(slow_every=st.integers(1, 7), ticks=st.integers(1, 30), forget=st.integers(0, 30))
def test_fast_every_tick_slow_one_in_n_static_once(slow_every: int, ticks: int, forget: int) -> None:
    machine = Asked()
    sampler = Sampler(machine, slow_every=slow_every)
    since = 0
    for number in range(ticks):
        if number == forget:
            sampler.forget()  # the devices have changed: all is new
            since = 0
        sampler.tick()
        costs = machine.calls[-1]["costs"]
        assert Cost.FAST in costs
        assert (Cost.SLOW in costs) == (since % slow_every == 0)
        assert (Cost.STATIC in costs) == (since == 0)
        since += 1


def test_a_sample_has_the_newest_of_what_is_read_less_often() -> None:
    sampler = Sampler(Asked(), slow_every=2)
    seen = [values(sampler.tick()) for _ in range(4)]
    static, fast, slow = FIGURES[Cost.STATIC], FIGURES[Cost.FAST], FIGURES[Cost.SLOW]
    assert [each[fast] for each in seen] == [1, 2, 3, 4]
    assert [each[slow] for each in seen] == [1, 1, 3, 3]
    assert [each[static] for each in seen] == [1, 1, 1, 1]


def test_what_is_forgotten_is_in_no_later_sample() -> None:
    machine = Asked()
    sampler = Sampler(machine)
    sampler.tick()
    sampler.forget()
    machine.sample = lambda *_, **__: [Reading("x:2", "power_watts", 1, "watts")]  # type: ignore[method-assign]
    assert [reading.subject for reading in sampler.tick().readings] == ["x:2"]


@given(history=st.integers(1, 5), ticks=st.integers(0, 12))
def test_the_ring_is_bounded_and_keeps_the_last(history: int, ticks: int) -> None:
    sampler = Sampler(Asked(), history=history, clock=iter(range(100)).__next__)
    made = [sampler.tick() for _ in range(ticks)]
    assert list(sampler.history) == made[-history:]


def test_a_series_is_a_figure_over_the_ring() -> None:
    machine = Asked()
    answers = iter([
        [Reading("x:1", "temperature_celsius", 40, "celsius", labels={"sensor": "core"}),
         Reading("x:1", "temperature_celsius", 50, "celsius", labels={"sensor": "memory"})],
        [Reading("x:1", "temperature_celsius", None, "celsius", Status.ERROR, labels={"sensor": "core"})],
        [Reading("x:1", "temperature_celsius", 42, "celsius", labels={"sensor": "core"}),
         Reading("x:2", "temperature_celsius", 99, "celsius", labels={"sensor": "core"})],
    ])  # fmt: skip
    machine.sample = lambda *_, **__: next(answers)  # type: ignore[method-assign]
    sampler = Sampler(machine, clock=iter([10.0, 11.0, 12.0]).__next__)
    for _ in range(3):
        sampler.tick()
    assert sampler.series("x:1", "temperature_celsius", sensor="core") == [(10.0, 40), (12.0, 42)]
    assert len(sampler.series("x:1", "temperature_celsius")) == 5  # the memory's is the newest in each
    assert sampler.series("x:1", "power_watts") == []


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"interval": -1}, {"slow_every": 0}, {"history": 0}])
def test_a_pace_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="have to be more than nothing"):
        Sampler(Asked(), **wrong)


# ---- the pace ------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_ticks_are_as_far_apart_as_asked_however_long_reading_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    machine = Asked(lambda: clock.work(0.3))
    starts = [sample.time - 0.3 for sample in islice(Sampler(machine, clock=clock.time), 5)]
    assert starts == pytest.approx([1000.0, 1001.0, 1002.0, 1003.0, 1004.0])


def test_late_ticks_are_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    takes = iter([0.0, 3.5, 0.0, 0.0, 0.0])
    machine = Asked(lambda: clock.work(next(takes)))
    ends = [sample.time for sample in islice(Sampler(machine, clock=clock.time), 5)]
    # The second one ends 2.5 s late: the third follows at once, and the pace begins anew from there.
    assert ends == pytest.approx([1000.0, 1004.5, 1004.5, 1005.5, 1006.5])
    assert min(clock.slept) >= 0


def test_a_tick_waits_for_a_vendor_no_longer_than_its_interval() -> None:
    for interval, most in ((0.1, 1.0), (30.0, 30.0)):
        machine = Asked()
        Sampler(machine, interval=interval).tick()
        assert machine.calls[0]["timeout"] == most


# ---- async ---------------------------------------------------------------------------------------------


def test_the_loop_does_not_wait_for_a_driver_that_hangs() -> None:
    """The loop turns while the tick is stuck: it is the loop that lets the tick go on."""
    answered = threading.Event()
    machine = Asked(lambda: assert_that(answered.wait(30)))

    def assert_that(fact: object) -> None:
        assert fact, "the loop did not turn"

    async def main() -> Sample:
        async def answer() -> None:
            while not machine.calls:
                await asyncio.sleep(0)
            answered.set()

        turning = asyncio.create_task(answer())
        stream = Sampler(machine).stream()
        sample = await anext(stream)
        await turning
        await stream.aclose()  # type: ignore[attr-defined]
        return sample

    assert asyncio.run(main()).readings
    assert threading.get_ident() not in machine.threads


def test_a_stream_gives_what_ticks_give(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[Sample]:
        found = []
        async for sample in Sampler(Asked(), interval=0.001, slow_every=2).stream():
            found.append(sample)
            if len(found) == 4:
                break
        return found

    assert [values(sample)[FIGURES[Cost.SLOW]] for sample in asyncio.run(main())] == [1, 1, 3, 3]


def test_an_error_of_the_machine_ends_the_stream() -> None:
    def fail() -> None:
        raise KeyError("gone")

    async def main() -> None:
        await anext(Sampler(Asked(fail)).stream())

    with pytest.raises(KeyError, match="gone"):
        asyncio.run(main())


def test_the_time_of_a_sample_is_the_wall_clocks() -> None:
    before = time.time()
    sample = Sampler(Asked()).tick()
    assert before <= sample.time <= time.time()
    assert sample.seconds >= 0
