"""A made-up cluster of any size under steady load: how long a decision takes, and how much memory."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable

from msgspec import Struct

from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.mix import Mix
from hal.scheduler.core.placement import Policy, place
from hal.scheduler.core.shape import Shape

__all__ = ["Synthetic", "cluster", "measure"]

_GIB = 1 << 30
_MODELS = (("green", "small", 24), ("green", "large", 80), ("blue", "large", 192))
_PER_DEVICE = 1.5  # slices held at a time: enough that nodes differ, and that most requests find room


class Synthetic(Struct, frozen=True):
    """What was measured. Times are of one decision: the mix told, the spot chosen, not yet taken."""

    nodes: int
    devices: int
    decisions: int
    refused: int
    p50_milliseconds: float
    p99_milliseconds: float
    max_milliseconds: float
    memory_bytes: int  # the most that the whole process has had


def cluster(nodes: int, devices_per_node: int) -> list[NodeFacts]:
    """Nodes of three models of devices, each with two fabrics."""
    made = []
    for number in range(nodes):
        vendor, model, gib = _MODELS[number % len(_MODELS)]
        name = f"node-{number:06d}"
        devices = tuple(
            DeviceFacts(
                f"{vendor}:{name}-{i}",
                vendor,
                model,
                gib * _GIB,
                fabric=f"fabric-{2 * i // max(devices_per_node, 1)}",
                micros_per_hour=gib * 25_000,
            )
            for i in range(devices_per_node)
        )
        made.append(NodeFacts(name, 16_000 * devices_per_node, 128 * _GIB * devices_per_node, devices))
    return made


def measure(
    nodes: int,
    devices_per_node: int,
    decisions: int,
    seed: int,
    shapes: int = 64,
    policy: Policy | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Synthetic:
    """Fill the cluster, then take and give at random. ``shapes`` different ones; 0: each is new."""
    chance = random.Random(seed)  # noqa: S311 - a simulation's, to be the same each time
    fleet, mix, policy = Fleet(), Mix(), policy or Policy()
    for node in cluster(nodes, devices_per_node):
        fleet.join(node)
    known = [_shape(chance) for _ in range(shapes)]
    held, times, refused = [], [], 0
    for number in range(decisions):
        shape = chance.choice(known) if known else _shape(chance)
        start = time.perf_counter()
        mix.arrived(shape)
        spot = place(fleet, shape, fleet.everything, policy, mix)
        times.append(1000 * (time.perf_counter() - start))
        if spot is None:
            refused += 1
        else:
            fleet.take(spot)
            held.append(spot)
        if len(held) > nodes * devices_per_node * _PER_DEVICE or (spot is None and held):
            index = chance.randrange(len(held))
            held[index], held[-1] = held[-1], held[index]
            fleet.give(held.pop())
        progress(number + 1)
    times.sort()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Synthetic(
        nodes=nodes,
        devices=nodes * devices_per_node,
        decisions=decisions,
        refused=refused,
        p50_milliseconds=times[len(times) // 2],
        p99_milliseconds=times[min(len(times) * 99 // 100, len(times) - 1)],
        max_milliseconds=times[-1],
        memory_bytes=most if sys.platform == "darwin" else most * 1024,
    )


def _shape(chance: random.Random) -> Shape:
    if chance.random() < 0.1:
        count = chance.choice((1, 1, 2, 4, 8))
        return Shape(count, 0, 0, 8_000 * count, 64 * _GIB * count, whole=True)
    return Shape(
        1,
        chance.randrange(1, 128) * (_GIB // 4),
        chance.choice((0, 100, 250, 500)),
        chance.randrange(500, 8_000),
        chance.randrange(1, 33) * _GIB,
    )
