"""A measured figure beside what it is to be, and what others were measured at."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["PEERS", "PEERS_SOURCE", "Figure", "Peer", "at_least", "at_most", "missing"]


class Figure(Struct, frozen=True):
    """One figure. ``value`` None: not measured, and ``remark`` says why."""

    name: str
    value: float | None
    unit: str
    target: str = ""  # for people; empty where there is none
    reached: bool | None = None  # None: no target, or not measured
    remark: str = ""


def at_most(name: str, value: float, unit: str, limit: float, remark: str = "") -> Figure:
    return Figure(name, value, unit, f"≤ {limit:g}", value <= limit, remark)


def at_least(name: str, value: float, unit: str, limit: float, remark: str = "") -> Figure:
    return Figure(name, value, unit, f"≥ {limit:g}", value >= limit, remark)


def missing(name: str, target: str, why: str) -> Figure:
    return Figure(name, None, "", target, remark=f"not measured: {why}")


class Peer(Struct, frozen=True):
    """What another scheduler does in a second, by one client and by eight: least and most of two runs."""

    name: str
    what: str
    one: str
    eight: str


PEERS_SOURCE = (
    "measured for hal on 2 virtual cores of an AMD EPYC, Debian 12, fake devices, loopback, two runs each; "
    "not the same work: Ray's group is reserved with the node's agent, HyperQueue and srun start a process"
)
PEERS = (
    Peer("Slurm 22.05", "salloc --no-shell and scancel, tuned", "23-25", "10-11"),
    Peer("Slurm 22.05", "srun --gres=shard:1 true, tuned", "13-15", "11"),
    Peer("Ray 2.60", "placement group of 0.25 GPU, create, ready, remove", "26-67", "18-38"),
    Peer("Ray 2.60", "the same, 20 in flight", "250-383", "303-373"),
    Peer("HyperQueue 0.27", "submit 0.25 of a pool, until it has exited", "46", "225-328"),
    Peer("HyperQueue 0.27", "one job of 8,000 tasks", "418-442", "398-442"),
    Peer(
        "prototype",
        "40 lines: ROUTER, fdatasync for each drained batch, tcp with CURVE",
        "310-938",
        "2457-3937",
    ),
)
