"""The typical mix of tasks, learned from what arrives.

What is expected changes in epochs only, so that what was scored in one stays true until the next: after
32 arrivals, 128, 512 and 2,048, and then after every 4,096. Older arrivals count less, by half in each
16,384. Before anything has arrived, whole devices, halves and quarters are expected.
"""

from __future__ import annotations

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI
from hal.scheduler.core.masks import EVERYTHING
from hal.scheduler.core.shape import Shape

__all__ = ["Expected", "Mix", "MixState", "extent"]

_SOON = (32, 128, 512, 2048)
_EVERY = 4096
_HALVED_EVERY = 16384
_NOTED_EVERY = 32
_KEPT = 512  # classes that are counted; when there are more, the rarer half is forgotten
_EXPECTED = 96  # classes that placement looks at
_UNITS = 4096  # the sum of their weights, about
_PRIOR = (
    (Shape(count=1, whole=True), 4.0),
    (Shape(count=2, whole=True), 0.5),
    (Shape(count=4, whole=True), 0.5),
    (Shape(count=8, whole=True), 0.5),
    (Shape(count=1, compute_milli=WHOLE_MILLI // 2), 2.0),
    (Shape(count=1, compute_milli=WHOLE_MILLI // 4), 2.0),
)


class Expected(Struct, frozen=True):
    """One class of tasks: its shape, its selector's key, and how often it is expected."""

    shape: Shape
    eligible: str
    weight: int


class MixState(Struct, frozen=True):
    """All that a mix knows, to be kept and taken up again."""

    arrivals: int
    epoch: int
    counts: tuple[tuple[Shape, str, float], ...]
    expected: tuple[Expected, ...]


class Mix:
    """How often each class of task arrives. What it expects is a function of what has arrived."""

    def __init__(self) -> None:
        self.arrivals = 0
        self.epoch = 0  # rises when `expected` changes
        self.counts: dict[tuple[Shape, str], float] = {(shape, EVERYTHING): count for shape, count in _PRIOR}
        self.expected = self._expect()

    def arrived(self, shape: Shape, eligible: str = EVERYTHING) -> None:
        """Count a task that wants ``shape`` where the mask of key ``eligible`` holds.

        A key has to stand for the same selector in each run, or a replay ends elsewhere.
        """
        self.arrivals += 1
        if shape.count:
            key = (shape, eligible)
            self.counts[key] = self.counts.get(key, 0.0) + 1.0
            if len(self.counts) > _KEPT:
                often = sorted(self.counts, key=lambda key: -self.counts[key])[: _KEPT // 2]
                self.counts = {key: self.counts[key] for key in often}
        if self.arrivals in _SOON or self.arrivals % _EVERY == 0:
            if self.arrivals % _HALVED_EVERY == 0:
                self.counts = {key: count / 2 for key, count in self.counts.items()}
            self.expected = self._expect()
            self.epoch += 1

    def is_worth_noting(self, before: int) -> bool:
        """Whether to write it down, after ``before`` arrivals until now. With many classes it is long, and
        the few arrivals that a restart forgets only weigh placements."""
        return self.arrivals < _NOTED_EVERY or self.arrivals // _NOTED_EVERY > before // _NOTED_EVERY

    def state(self) -> MixState:
        counts = tuple((shape, eligible, count) for (shape, eligible), count in self.counts.items())
        return MixState(self.arrivals, self.epoch, counts, self.expected)

    @classmethod
    def of(cls, state: MixState) -> Mix:
        mix = cls()
        mix.arrivals, mix.epoch, mix.expected = state.arrivals, state.epoch, state.expected
        mix.counts = {(shape, eligible): count for shape, eligible, count in state.counts}
        return mix

    def _expect(self) -> tuple[Expected, ...]:
        """The classes that want the most, and how often each comes."""
        order = {key: place for place, key in enumerate(self.counts)}
        most = sorted(self.counts, key=lambda key: (-self.counts[key] * extent(key[0]), order[key]))
        total = sum(self.counts[key] for key in most[:_EXPECTED]) or 1.0
        return tuple(
            Expected(shape, eligible, max(round(self.counts[shape, eligible] / total * _UNITS), 1))
            for shape, eligible in most[:_EXPECTED]
        )


def extent(shape: Shape) -> int:
    """How much of a fleet one of the class takes, roughly, in milli-shares of devices."""
    return shape.count * (WHOLE_MILLI if shape.whole else max(shape.compute_milli, WHOLE_MILLI // 4))
