"""Where a shape goes. The same nodes in the same state, shape, mask, policy and mix give the same spot."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from hal.scheduler.core.facts import WHOLE_MILLI
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.masks import Eligible
from hal.scheduler.core.mix import Mix
from hal.scheduler.core.scores import Scores
from hal.scheduler.core.shape import Shape, Spot

__all__ = ["Policy", "Strategy", "Weights", "WhyNot", "place", "why_not"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ROWS = 512  # shapes whose scores are kept
_ALL = 2048  # while so many nodes have room, each is scored; of more, those that look best
_BEST = 192
_FEW = 16  # changed nodes that are looked up among the states that were worked out before
_STATES = 16384  # states of nodes whose scores are kept, of all shapes together


class Strategy(StrEnum):
    FRAGMENTATION = "fragmentation"  # where the least is lost to what is still to come
    BEST_FIT = "best-fit"  # where the least is left
    SPREAD = "spread"  # where the most is left
    RANDOM = "random"


class Weights(Struct, frozen=True, cache_hash=True):
    """What a placement costs, each term in devices: the lowest sum wins."""

    fragmentation: float = 1.0  # of the capacity that it loses to others, or of what the strategy looks at
    cost: float = 0.1  # of the price of what it takes, in prices of the fleet's dearest device
    topology: float = 0.1  # of each further group of devices (a fabric, a NUMA node) that it is spread over
    affinity: float = 1.0  # of being near to what the caller named


class Policy(Struct, frozen=True, cache_hash=True):
    strategy: Strategy = Strategy.FRAGMENTATION
    weights: Weights = Weights()
    seed: int = 0  # of the random strategy


class WhyNot(Struct, frozen=True):
    """How many devices (``nodes_``: how many nodes) each reason rules out, by the first that applies."""

    not_eligible: int = 0  # the selector does not want it
    unusable: int = 0  # drained, cordoned or faulty
    no_slices: int = 0  # nothing can hold a part of it to its limit
    too_small: int = 0  # not even when nothing else is on it
    busy: int = 0  # wanted whole, and somebody is on it; or wanted in part, and it is taken whole
    bytes_taken: int = 0
    compute_taken: int = 0
    nodes_count: int = 0  # some of the node's devices fit, but too few
    nodes_cpu: int = 0  # its devices fit, but it has too little CPU free
    nodes_ram: int = 0


def place(
    fleet: Fleet,
    shape: Shape,
    eligible: Eligible,
    policy: Policy,
    mix: Mix,
    near: Mapping[str, float] | None = None,
) -> Spot | None:
    """The best spot for ``shape`` among the eligible devices, or None when none has room. Takes nothing.

    ``near`` says of nodes by id how close they are (0 to 1) to what the shape belongs with.
    """
    kept = fleet.memo.setdefault("placement", _Kept())
    assert isinstance(kept, _Kept)
    row = kept.row(fleet, shape, eligible, policy, mix)
    row.refresh(policy)
    candidates = row.candidates(near, policy)
    if not len(candidates):
        return None
    if len(candidates) > 1:
        of_these = row.costs[candidates]
        for name, closeness in (near or {}).items():
            nearness = policy.weights.affinity * WHOLE_MILLI * closeness
            of_these[candidates == fleet.row_of.get(name, -1)] -= nearness
        candidates = candidates[of_these == of_these.min()]
    chosen = int(candidates[0] if len(candidates) == 1 else candidates[np.argmin(fleet.ranks()[candidates])])
    node = fleet.facts[chosen]
    assert node is not None
    return Spot(node.id, tuple(node.devices[column].id for column in row.columns[chosen].tolist()), shape)


# By the shape's row, the node's row and the node's state: the cost, infinite without room, and the columns.
_States = dict[tuple[int, int, bytes], tuple[float, NDArray[np.int16]]]


class _Kept:
    """What one fleet's placements share: the scores of the expectation, and a row for each shape."""

    def __init__(self) -> None:
        self.scores: Scores | None = None
        self.layout = -1
        self.seen = (-1, -1)  # the masks and the layout that the scores were last compared with
        self.rows: dict[tuple[Shape, str, Policy], _Row] = {}
        self.states: _States = {}

    def row(self, fleet: Fleet, shape: Shape, eligible: Eligible, policy: Policy, mix: Mix) -> _Row:
        scores, seen = self.scores, (fleet.masks.made, fleet.layout)
        if scores is None or scores.expected is not mix.expected or self.seen != seen:
            self.seen = seen
            if scores is None or not scores.hold(fleet, mix.expected):
                scores = self.scores = Scores(fleet, mix.expected)
                self.rows.clear()
        if self.layout != fleet.layout or len(self.states) >= _STATES:
            self.layout = fleet.layout
            self.states.clear()
        key = (shape, eligible.key, policy)
        row = self.rows.pop(key, None)
        price = fleet.top_price()
        if row is None or row.eligible is not eligible or row.price != price:
            row = _Row(fleet, scores, shape, eligible, price, self.states)
            if len(self.rows) >= _ROWS:
                del self.rows[next(iter(self.rows))]
        self.rows[key] = row
        return row


class _Row:
    """The cost of one shape on each node, worked out again for nodes that have changed."""

    def __init__(
        self, fleet: Fleet, scores: Scores, shape: Shape, eligible: Eligible, price: int, states: _States
    ) -> None:
        self.fleet, self.scores, self.shape, self.eligible, self.price = fleet, scores, shape, eligible, price
        self.states = states
        self.number = fleet.memo["rows"] = fleet.memo.get("rows", 0) + 1
        rows = len(fleet.cpu_free)
        self.tick = -1
        self.fits: Bools = np.zeros(rows, bool)
        self.looks: Ints = np.zeros(rows, np.int64)  # how good it looks, the lower the better
        self.costs: Floats = np.full(rows, np.inf)
        self.known: Bools = np.zeros(rows, bool)  # whether the cost is worked out
        self.settled = False  # it is for all that have room
        self._fitting: Ints | None = None  # those, once they were looked for
        self.columns: NDArray[np.int16] = np.zeros((rows, shape.count), np.int16)

    def refresh(self, policy: Policy) -> None:
        """See which nodes have room, and forget the costs of those that have changed."""
        fleet = self.fleet
        changed = fleet.changed_since(self.tick)
        if len(changed) <= _FEW and self._returns_to_states(policy):
            changed = [row for row in changed if not self._recall(row)]
        if changed:
            self.settled, self._fitting = False, None
            # What is asked of all rows is asked of the columns as they lie.
            some = len(changed) < len(self.fits) // 4
            rows = np.array(sorted(changed), np.int64) if some else slice(None)
            self.fits[rows], cells = self._room(rows)
            self.known[rows] = False
            self.costs[rows] = np.inf
            if len(self.fits) > _ALL:
                self.looks[rows] = self._look(rows, cells, policy)
        self.tick = fleet.tick

    def candidates(self, near: Mapping[str, float] | None, policy: Policy) -> Ints:
        """The nodes to choose from, with their costs worked out."""
        rows = self.fits.nonzero()[0] if self._fitting is None else self._fitting
        self._fitting = rows
        if len(rows) > _ALL:
            # Ranks make the looks differ, so that the same nodes are seen whatever joined first.
            looks = self.looks[rows] * len(self.fits) + self.fleet.ranks()[rows]
            best = rows[looks <= np.partition(looks, _BEST - 1)[_BEST - 1]]
            close = [
                row for row in map(self.fleet.row_of.get, near or ()) if row is not None and self.fits[row]
            ]
            rows = np.union1d(best, np.array(close, np.int64)) if close else best
        if self.settled:
            return rows
        unknown = rows if policy.strategy is Strategy.RANDOM else rows[~self.known[rows]]
        self.settled = len(self.fits) <= _ALL and policy.strategy is not Strategy.RANDOM
        if len(unknown):
            self._work_out(unknown, policy)
            self.known[unknown] = True
            if len(unknown) <= _FEW and self._returns_to_states(policy):
                for row in unknown.tolist():
                    key = (self.number, row, self.fleet.state(row))
                    self.states[key] = float(self.costs[row]), self.columns[row].copy()
        return rows

    # ---- inside -----------------------------------------------------------------------------

    def _returns_to_states(self, policy: Policy) -> bool:
        """Whether a node's score is worth keeping: the same shapes come and go, and so do its states."""
        return len(self.fits) <= _ALL and policy.strategy is not Strategy.RANDOM

    def _recall(self, row: int) -> bool:
        """Take a changed node's score from the last time that it was in this state; False: it never was."""
        known = self.states.get((self.number, row, self.fleet.state(row)))
        if known is None:
            return False
        self.costs[row], self.columns[row] = known
        if not self.known[row]:
            self.fits[row] = self.known[row] = True
            self._fitting = None
        return True

    def _room(self, rows: Ints | slice) -> tuple[Bools, Bools]:
        """Which of these nodes have room, and which of their devices have, whatever their node has."""
        fleet, shape = self.fleet, self.shape
        host = (fleet.cpu_free[rows] >= shape.cpu_milli) & (fleet.ram_free[rows] >= shape.ram_bytes)
        if not shape.count:
            return host & self.eligible.nodes[rows], np.zeros((len(host), 0), bool)
        cells = self.eligible.devices[rows] & fleet.usable[rows]
        if shape.whole:
            cells &= fleet.idle[rows]
        else:
            cells &= fleet.sliceable[rows]
            if shape.memory_bytes:
                cells &= fleet.bytes_free[rows] >= shape.memory_bytes
            if shape.compute_milli:
                cells &= fleet.milli_free[rows] >= shape.compute_milli
        return host & (cells.sum(1, dtype=np.int16) >= shape.count), cells

    def _look(self, rows: Ints | slice, cells: Bools, policy: Policy) -> Ints:
        """A first impression, cheap enough for all nodes: how much would be left, and what the cut wastes."""
        fleet, shape = self.fleet, self.shape
        looks: Ints = fleet.milli_left[rows] + fleet.cpu_free[rows] // 64
        if policy.strategy is Strategy.SPREAD:
            return -looks
        if policy.strategy is Strategy.RANDOM:
            return np.zeros_like(looks)
        if policy.strategy is Strategy.FRAGMENTATION and shape.count and not shape.whole:
            looks += self.scores.looks(shape, rows, cells)
        return looks

    def _work_out(self, rows: Ints, policy: Policy) -> None:
        """The cost of each of these nodes, all of which have room, and the devices it is for."""
        fleet, shape, weights = self.fleet, self.shape, policy.weights
        each, columns = self._alternatives(rows, self._room(rows)[1], policy)
        match policy.strategy:
            case Strategy.FRAGMENTATION:
                costs = self.scores.fragmentation(shape, each, columns)
            case Strategy.RANDOM:
                costs = _scatter(fleet.ranks()[each], policy.seed, fleet.tick)
            case Strategy.BEST_FIT | Strategy.SPREAD:
                left = fleet.milli_left[each] - shape.count * shape.compute_milli
                rest = fleet.milli_free[each[:, None], columns].sum(1) if shape.count else np.zeros(len(each))
                # A core counts as the share of a device that a node with eight of them has beside it.
                costs = (left + (fleet.cpu_free[each] - shape.cpu_milli) / 16 + rest / 64).astype(float)
                if policy.strategy is Strategy.SPREAD:
                    costs = -costs
        costs *= weights.fragmentation
        if shape.count:
            if weights.cost and self.price:
                prices = fleet.micros[each[:, None], columns].sum(1)
                part = 1.0 if shape.whole else self._part(each, columns)
                costs += prices * part * (weights.cost * WHOLE_MILLI / self.price)
            if weights.topology and shape.count > 1:
                groups = np.sort(fleet.group[each[:, None], columns], axis=1)
                further = (groups[:, 1:] != groups[:, :-1]).sum(1)
                costs += further * (weights.topology * WHOLE_MILLI)
        # The first of each node's alternatives in the order of cost, then of columns, is the node's.
        order = np.lexsort((np.arange(len(each)), costs, each))
        each, columns, costs = each[order], columns[order], costs[order]
        first = np.ones(len(each), bool)
        first[1:] = each[1:] != each[:-1]
        self.costs[each[first]] = costs[first]
        self.columns[each[first]] = columns[first]

    def _part(self, rows: Ints, columns: Ints) -> Floats:
        """How much of the devices the shape takes, the mean of one alternative's."""
        total = self.fleet.bytes_total[rows[:, None], columns]
        of_bytes = np.where(total > 0, self.shape.memory_bytes / np.maximum(total, 1), 0.0)
        part: Floats = np.maximum(of_bytes, self.shape.compute_milli / WHOLE_MILLI).max(1)
        return part

    def _alternatives(self, rows: Ints, cells: Bools, policy: Policy) -> tuple[Ints, Ints]:
        """Nodes, and for each the columns of the devices that would be taken; a node may be there often."""
        fleet, count = self.fleet, self.shape.count
        if not count:
            return rows, np.zeros((len(rows), 0), np.int64)
        if count == 1 and policy.strategy is not Strategy.RANDOM:
            kinds = self._alike(rows)
            for column in range(1, cells.shape[1]):  # a device that is like one before it need not be tried
                same = (kinds[:, :column] == kinds[:, column : column + 1]) & cells[:, :column]
                cells[:, column] &= ~same.any(1)
            which, columns = np.nonzero(cells)
            return rows[which], columns[:, None]
        # The smallest group that has enough; where none has, the largest first. Then the fullest devices.
        groups = fleet.group[rows]
        sizes = ((groups[:, :, None] == groups[:, None, :]) & cells[:, None, :]).sum(2)
        width = cells.shape[1]
        order = np.where(sizes >= count, sizes, 2 * width - sizes) * width + groups
        order = order * (WHOLE_MILLI + 1) + fleet.milli_free[rows]
        if policy.strategy is Strategy.SPREAD:
            order = -fleet.milli_free[rows]
        order[~cells] = np.iinfo(np.int64).max
        chosen = np.argsort(order, axis=1, kind="stable")[:, :count]
        return rows, np.sort(chosen, axis=1)

    def _alike(self, rows: Ints) -> Ints:
        """A number for each device: the same for those of one node between which nothing has to choose."""
        fleet = self.fleet
        kinds = fleet.milli_free[rows] * 2 + fleet.idle[rows]
        more = [fleet.bytes_free, fleet.kind] if self.scores.by_bytes else []
        for column in [*more, fleet.micros] if self.price else more:
            kinds = kinds * 1000003 + column[rows]
        partial = (self.scores.masks[column] for column in self.scores.partial)
        for mask in {id(mask): mask for mask in partial if mask is not None}.values():
            kinds = kinds * 1000003 + mask.devices[rows]
        return kinds


def _scatter(rows: Ints, seed: int, tick: int) -> Floats:
    """A number for each row that looks like chance, and is the same each time."""
    start = (seed * 1000003 + tick) * 0x9E3779B97F4A7C15 % (1 << 64)
    mixed = rows.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(float)


def why_not(fleet: Fleet, shape: Shape, eligible: Eligible) -> WhyNot:
    """Why ``shape`` finds no room: for explaining, not for deciding."""
    left = fleet.there.copy()
    counts: dict[str, int] = {}

    def strike(reason: str, holds: Bools) -> None:
        counts[reason] = counts.get(reason, 0) + int((left & ~holds).sum())
        left[...] &= holds

    if shape.count:
        strike("not_eligible", eligible.devices)
        strike("unusable", fleet.usable)
        if shape.whole:
            strike("busy", fleet.idle)
        else:
            strike("no_slices", fleet.slices)
            strike("too_small", fleet.bytes_total >= shape.memory_bytes)
            strike("busy", fleet.sliceable)
            strike("bytes_taken", fleet.bytes_free >= shape.memory_bytes)
            strike("compute_taken", fleet.milli_free >= shape.compute_milli)
        fitting = left.sum(1)
        counts["nodes_count"] = int(((fitting > 0) & (fitting < shape.count)).sum())
        nodes = fitting >= shape.count
    else:
        nodes = eligible.nodes.copy()
    counts["nodes_cpu"] = int((nodes & (fleet.cpu_free < shape.cpu_milli)).sum())
    nodes &= fleet.cpu_free >= shape.cpu_milli
    counts["nodes_ram"] = int((nodes & (fleet.ram_free < shape.ram_bytes)).sum())
    return WhyNot(**counts)
