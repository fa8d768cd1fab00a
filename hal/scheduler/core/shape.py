"""What is placed, and where it is placed."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["NoRoomError", "Shape", "Spot"]


class Shape(Struct, frozen=True, cache_hash=True):
    """What one member needs on one node: ``count`` devices, and of each so many bytes and milli-shares.

    With ``whole`` each device is taken whole, and must have nobody else on it. A ``count`` of 0 needs
    the host only.
    """

    count: int = 1
    memory_bytes: int = 0
    compute_milli: int = 0
    cpu_milli: int = 0
    ram_bytes: int = 0
    whole: bool = False


class Spot(Struct, frozen=True):
    """Where a shape is placed: devices of one node."""

    node: str
    devices: tuple[str, ...]
    shape: Shape


class NoRoomError(ValueError):
    """The spot is not there, or something holds it: taking it would lend the same thing twice."""
