"""Where a shape goes. The same fleet, shape, mask, policy and mix give the same spot."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from hal.scheduler.core.fleet import Eligible, Fleet, Shape, Spot
from hal.scheduler.core.mix import Mix

__all__ = ["Policy", "Strategy", "Weights", "WhyNot", "place", "why_not"]


class Strategy(StrEnum):
    FRAGMENTATION = "fragmentation"
    BEST_FIT = "best-fit"
    SPREAD = "spread"
    RANDOM = "random"


class Weights(Struct, frozen=True):
    """How much each term counts, in fractions of one device."""

    fragmentation: float = 1.0
    cost: float = 0.0
    topology: float = 0.1
    affinity: float = 0.0


class Policy(Struct, frozen=True):
    strategy: Strategy = Strategy.FRAGMENTATION
    weights: Weights = Weights()
    seed: int = 0  # of the random strategy


class WhyNot(Struct, frozen=True):
    """How many devices (of the last two: nodes) each reason rules out, the first reason that applies."""

    not_eligible: int = 0  # the selector does not want it
    unusable: int = 0  # drained, cordoned or faulty
    no_slices: int = 0  # nothing can hold a part of it to its limit
    too_small: int = 0  # not even when nothing else is on it
    busy: int = 0  # wanted whole, and somebody is on it
    bytes_taken: int = 0
    compute_taken: int = 0
    nodes_cpu: int = 0  # devices fit, but the node has too little CPU free
    nodes_ram: int = 0
    nodes_count: int = 0  # too few of the node's devices fit


def _fits(fleet: Fleet, shape: Shape, eligible: Eligible) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The nodes that have room, and the devices that have (whatever their node has)."""
    host = (fleet.cpu_free >= shape.cpu_milli) & (fleet.ram_free >= shape.ram_bytes)
    if shape.count == 0:
        return host & eligible.nodes, np.zeros(fleet.there.shape, bool)
    cells = eligible.devices & fleet.usable
    if shape.whole:
        cells &= fleet.idle
    else:
        cells &= fleet.sliceable
        cells &= fleet.bytes_free >= shape.memory_bytes
        cells &= fleet.milli_free >= shape.compute_milli
    return host & (cells.sum(1) >= shape.count), cells


def place(
    fleet: Fleet, shape: Shape, eligible: Eligible, policy: Policy, mix: Mix | None = None
) -> Spot | None:
    """The best spot for ``shape`` among the eligible devices, or None when none has room. Takes nothing."""
    nodes, cells = _fits(fleet, shape, eligible)
    rows = np.flatnonzero(nodes)
    if not len(rows):
        return None
    left = fleet.milli_free[rows].sum(1) + fleet.cpu_free[rows] // 64
    row = int(rows[np.argmin(left)])
    node = fleet.facts[row]
    assert node is not None
    columns = np.flatnonzero(cells[row])
    order = np.lexsort((columns, fleet.bytes_free[row, columns], fleet.milli_free[row, columns]))
    chosen = sorted(int(column) for column in columns[order[: shape.count]])
    return Spot(node.id, tuple(node.devices[column].id for column in chosen), shape)


def why_not(fleet: Fleet, shape: Shape, eligible: Eligible) -> WhyNot:
    """Why ``shape`` finds no room: for explaining, not for deciding."""
    left = fleet.there.copy()
    counts: dict[str, int] = {}

    def strike(reason: str, holds: NDArray[np.bool_]) -> None:
        counts[reason] = int((left & ~holds).sum())
        left[...] &= holds

    if shape.count:
        strike("not_eligible", eligible.devices)
        strike("unusable", fleet.usable)
        if shape.whole:
            strike("busy", fleet.idle)
        else:
            strike("no_slices", fleet.sliceable | (fleet.milli_free == 0))
            strike("too_small", fleet.bytes_total >= shape.memory_bytes)
            strike("bytes_taken", fleet.bytes_free >= shape.memory_bytes)
            strike("compute_taken", fleet.sliceable & (fleet.milli_free >= shape.compute_milli))
        fitting = left.sum(1)
        nodes = fitting > 0
        counts["nodes_count"] = int((nodes & (fitting < shape.count)).sum())
        nodes &= fitting >= shape.count
    else:
        nodes = eligible.nodes.copy()
    counts["nodes_cpu"] = int((nodes & (fleet.cpu_free < shape.cpu_milli)).sum())
    nodes &= fleet.cpu_free >= shape.cpu_milli
    counts["nodes_ram"] = int((nodes & (fleet.ram_free < shape.ram_bytes)).sum())
    return WhyNot(**counts)
