"""Which devices and nodes a selector wants, kept as masks that follow the fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hal.scheduler.core.facts import DeviceFacts, NodeFacts

__all__ = ["EVERYTHING", "Eligible", "Masks", "always", "grown"]

EVERYTHING = "everything"  # the key of the mask that each fleet has
_KEPT = 256  # selectors whose answers are kept; of the others, each answer is no longer kept up to date


def always(_: object) -> bool:
    return True


class Eligible:
    """A selector's answer for each device and node."""

    def __init__(
        self, key: str, device: Callable[[DeviceFacts], bool], node: Callable[[NodeFacts], bool]
    ) -> None:
        self.key = key
        self.device = device
        self.node = node
        self.devices: NDArray[np.bool_] = np.zeros((0, 0), bool)
        self.nodes: NDArray[np.bool_] = np.zeros(0, bool)  # for a shape that needs no device
        self.members = 0  # devices for which it holds

    def fill(self, row: int, node: NodeFacts | None) -> None:
        """Ask it of the node that is in this row now; None: there is none any more."""
        fits = node is not None and self.node(node)
        self.nodes[row] = fits
        self.members -= int(self.devices[row].sum())
        self.devices[row] = False
        if node is not None:
            for column, facts in enumerate(node.devices):
                self.devices[row, column] = fits and self.device(facts)
        self.members += int(self.devices[row].sum())


class Masks:
    """Those of one fleet, whose rows these ``facts`` are."""

    def __init__(self, facts: list[NodeFacts | None]) -> None:
        self.made = 0  # rises with every new selector
        self._facts = facts
        self._shape = (0, 0)
        self._kept: dict[str, Eligible] = {}

    def __iter__(self) -> Iterator[Eligible]:
        return iter(self._kept.values())

    def select(
        self, key: str, device: Callable[[DeviceFacts], bool], node: Callable[[NodeFacts], bool]
    ) -> Eligible:
        known = self.recall(key)
        if known is None:
            known = Eligible(key, device, node)
            self.made += 1
            self._size(known)
            for row, facts in enumerate(self._facts):
                if facts is not None:
                    known.fill(row, facts)
            if len(self._kept) > _KEPT:
                del self._kept[next(other for other in self._kept if other != EVERYTHING)]
            self._kept[key] = known
        return known

    def recall(self, key: str) -> Eligible | None:
        """The kept mask, to be used: the last used is the last to be dropped."""
        known = self._kept.pop(key, None)
        if known is not None:
            self._kept[key] = known
        return known

    def get(self, key: str) -> Eligible | None:
        """The kept mask, to be looked at."""
        return self._kept.get(key)

    def fill(self, row: int, node: NodeFacts | None) -> None:
        for mask in self._kept.values():
            mask.fill(row, node)

    def resize(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        for mask in self._kept.values():
            self._size(mask)

    def _size(self, mask: Eligible) -> None:
        mask.devices, mask.nodes = grown(mask.devices, self._shape), grown(mask.nodes, self._shape)


def grown(old: NDArray, shape: tuple[int, int], fill: int = 0) -> NDArray:  # type: ignore[type-arg]
    """With so many rows and columns, the new ones filled."""
    # By columns: what is asked most often is asked of all rows, over the few devices of each.
    new = np.full(shape[: old.ndim], fill, old.dtype, order="F")
    new[tuple(slice(length) for length in old.shape)] = old
    return new
