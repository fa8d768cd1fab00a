"""From an alternative to the mask of the devices that it means."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from hal.scheduler.core.facts import DeviceFacts
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.masks import EVERYTHING, Eligible
from hal.scheduler.core.request import Alternative, Isolation
from hal.selector import Cache, Path, Quantity, Selector, selector

__all__ = ["Matcher", "key_of", "values_of"]

ACCELERATORS = json.dumps(["", "any", None, None, True])

# Who names one of these has said what kind of device it is; anybody else means an accelerator.
_NAMING = frozenset({"id", "kind", "model", "vendor"})
_RUNGS = {
    Isolation.KERNEL: frozenset({"hardware", "driver", "kernel"}),
    Isolation.HARDWARE: frozenset({"hardware"}),
}


def values_of(device: DeviceFacts, paths: tuple[Path, ...]) -> dict[Path, Any]:
    """The values of those attributes that the device has."""
    found: dict[Path, Any] = {}
    for path in paths:
        value = _value(device, path)
        if value is not None:
            found[path] = value
    return found


def _value(device: DeviceFacts, path: Path) -> Any:
    match path:
        case ("driver",):
            return "hal"
        case ("capacity", "hal", "memory"):
            return Quantity.of(device.memory_bytes)
        case ("attributes", "hal", "id" | "vendor" | "model" | "numa_node" | "fabric" as name):
            return getattr(device, name)
        case ("attributes", "hal", name):
            return device.attributes.get(name)
        case ("attributes", domain, name):
            return device.attributes.get(f"{domain}.{name}")
    return None


@lru_cache(256)
def key_of(one: Alternative, fabric: str | None = None) -> str:
    """What stands for the devices that an alternative means, in each run the same."""
    isolation = Isolation.ANY if one.memory_bytes is None else one.isolation
    whole = isolation is Isolation.ANY  # then it makes no difference
    if not one.selector and whole and one.max_micros_per_hour is None and fabric is None:
        return ACCELERATORS
    return json.dumps([one.selector, isolation, one.max_micros_per_hour, fabric, whole])


class Matcher:
    """Selectors' answers, kept by what they refer to."""

    def __init__(self) -> None:
        self.cache = Cache()
        self._fabrics: tuple[int, tuple[str, ...]] = (-1, ())

    def eligible(self, fleet: Fleet, one: Alternative, fabric: str | None = None) -> Eligible:
        key = key_of(one, fabric)
        if (known := fleet.masks.recall(key)) is not None:
            return known
        isolation = Isolation.ANY if one.memory_bytes is None else one.isolation
        chosen = selector(one.selector) if one.selector else None

        def meant(device: DeviceFacts) -> bool:
            return (
                (one.max_micros_per_hour is None or device.micros_per_hour <= one.max_micros_per_hour)
                and (fabric is None or device.fabric == fabric)
                and (isolation is Isolation.ANY or holder(device) in _RUNGS[isolation])
                and self.selects(chosen, device)
            )

        return fleet.select(key, meant)

    def prepare(self, fleet: Fleet, key: str) -> None:
        """Have the mask of a key that was written down."""
        if key != EVERYTHING:
            chosen, isolation, most, fabric, whole = json.loads(key)
            memory = None if whole else 1
            one = Alternative(chosen, memory, isolation=Isolation(isolation), max_micros_per_hour=most)
            self.eligible(fleet, one, fabric)

    def selects(self, chosen: Selector | None, device: DeviceFacts) -> bool:
        if chosen is None:
            return device.holds_slices
        if not device.holds_slices and not any(path[-1] in _NAMING for path in chosen.paths):
            return False
        return self.cache.matches(chosen, values_of(device, chosen.paths))

    def fabrics(self, fleet: Fleet) -> tuple[str, ...]:
        """The names of all fabrics, in order."""
        if self._fabrics[0] != fleet.layout:
            names = {d.fabric for node in fleet.facts if node for d in node.devices if d.fabric}
            self._fabrics = (fleet.layout, tuple(sorted(names)))
        return self._fabrics[1]


def holder(device: DeviceFacts) -> object:
    """Who holds a slice of the device to its memory."""
    return device.attributes.get("memory_held_by")
