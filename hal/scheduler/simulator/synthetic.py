"""A made-up cluster of any size under steady load: how long a decision takes, and how much memory."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable

from msgspec import Struct

from hal.scheduler.core.decisions import Grant
from hal.scheduler.core.events import Ended, NodeJoined, Release, Submit
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.placement import Policy
from hal.scheduler.core.request import Alternative, Member, Request
from hal.scheduler.core.state import State

__all__ = ["Synthetic", "cluster", "measure", "request_of"]

_GIB = 1 << 30
_DAY = 24 * 3600 * 1000
_MODELS = (("green", "small", 24), ("green", "large", 80), ("blue", "large", 192))
_PER_DEVICE = 1.5  # slices held at a time: enough that nodes differ, and that most requests find room


class Synthetic(Struct, frozen=True):
    """What was measured. Times are of one request: from the event to the lease, or to the refusal."""

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
    """Fill the cluster, then take and give at random. ``shapes`` different requests; 0: each is new."""
    chance = random.Random(seed)  # noqa: S311 - a simulation's, to be the same each time
    state = State(policy)
    for node in cluster(nodes, devices_per_node):
        state.apply(NodeJoined(node), 0)
    known = [request_of(chance) for _ in range(shapes)]
    held: list[str] = []
    times, refused = [], 0
    for number in range(decisions):
        request = chance.choice(known) if known else request_of(chance)
        id = f"r{number}"
        submit = Submit(request, id, id, 0)
        start = time.perf_counter()
        made = state.apply(submit, 0)
        times.append(1000 * (time.perf_counter() - start))
        granted = isinstance(made[-1], Grant)
        if granted:
            held.append(id)
        else:
            refused += 1
        if len(held) > nodes * devices_per_node * _PER_DEVICE or (held and not granted):
            index = chance.randrange(len(held))
            held[index], held[-1] = held[-1], held[index]
            state.apply(Release(held[-1], 0), 0)
            state.apply(Ended(held.pop()), 0)
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


def request_of(chance: random.Random) -> Request:
    if chance.random() < 0.1:
        count = chance.choice((1, 1, 2, 4, 8))
        one = Alternative(count=count, cpu_milli=8_000 * count, ram_bytes=64 * _GIB * count)
    else:
        one = Alternative(
            memory_bytes=chance.randrange(1, 128) * (_GIB // 4),
            compute_milli=chance.choice((0, 100, 250, 500)),
            cpu_milli=chance.randrange(500, 8_000),
            ram_bytes=chance.randrange(1, 33) * _GIB,
        )
    return Request((Member((one,)),), ttl_ms=_DAY)
