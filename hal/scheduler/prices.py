"""What devices cost: the price list of the configuration, laid over what nodes say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.scheduler.config import Price
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.match import values_of
from hal.selector import Cache, selector

__all__ = ["Prices"]


class Prices:
    """The first price whose selector holds of a device is its own; with no list all devices cost nothing."""

    def __init__(self, prices: Sequence[Price] = ()) -> None:
        self._prices = [(selector(one.selector), one.micros_per_hour) for one in prices]
        self._cache = Cache()

    def of(self, device: DeviceFacts) -> int:
        """Millionths of the currency per hour; 0 where no price is meant for it."""
        for meant, micros in self._prices:
            if self._cache.matches(meant, values_of(device, meant.paths)):
                return micros
        return 0

    def laid_over(self, node: NodeFacts) -> NodeFacts:
        """The node with these prices, whatever it says that it costs."""
        prices = [self.of(device) for device in node.devices]
        if all(price == one.micros_per_hour for price, one in zip(prices, node.devices, strict=True)):
            return node
        devices = tuple(
            msgspec.structs.replace(one, micros_per_hour=price)
            for price, one in zip(prices, node.devices, strict=True)
        )
        return msgspec.structs.replace(node, devices=devices)
