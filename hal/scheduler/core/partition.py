"""The last alternative: a device cut in another way. Who knows how devices can be cut fills this in."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from hal.scheduler.core.facts import DeviceFacts
from hal.scheduler.core.request import Request

__all__ = ["Cut", "Partitioner"]


class Cut(Struct, frozen=True):
    """A layout for one device, in the words of whoever plans it."""

    device: str
    layout: str


class Partitioner(Protocol):
    """A pure function: the same request and devices give the same answer."""

    def cut(self, request: Request, idle: tuple[DeviceFacts, ...]) -> Cut | None:
        """Which of the devices, on which nothing runs, to cut so that the request would fit."""
        ...
