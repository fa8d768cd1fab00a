"""Whether a request can ever be served here, whatever is free; and if not, what to say."""

from __future__ import annotations

import numpy as np

from hal.scheduler.core.decisions import Refusal
from hal.scheduler.core.facts import WHOLE_MILLI, DeviceFacts, NodeFacts
from hal.scheduler.core.match import key_of, values_of
from hal.scheduler.core.request import Alternative, Member, Request, Topology
from hal.scheduler.core.world import World
from hal.selector import selector
from hal.units import format_bytes

__all__ = ["never"]

_SURE = 1024  # requests that are remembered
_KNOWN = 32  # sizes that are remembered, of those of which none is smaller than another


def never(world: World, request: Request) -> tuple[Refusal, str] | None:
    """None when every member has an alternative that would fit if nothing else were here."""
    known = world.fleet.memo.get("possible")
    if known is None or known.layout != world.fleet.layout:
        known = world.fleet.memo["possible"] = _Possible(world)
    if request.members in known.sure:
        return None
    for number, member in enumerate(request.members):
        if any(known.is_possible(alternative) for alternative in member.alternatives):
            continue
        found = [_impossible(world, alternative) for alternative in member.alternatives]
        refusals = [refusal for refusal in found if refusal is not None]
        if len(refusals) < len(found):
            continue
        # The alternative that came nearest is the one to speak of.
        code, message = min(refusals, key=lambda refusal: refusal[0] is Refusal.NO_DEVICE)
        who = f"member {number + 1}: " if len(request.members) > 1 else ""
        return code, who + message
    refused = _too_large_together(world, request)
    if refused is None:
        known.remember(request.members)
    return refused


def _too_large_together(world: World, request: Request) -> tuple[Refusal, str] | None:
    """A gang that needs more devices, or more memory, than there is for all of it."""
    if sum(member.replicas for member in request.members) == 1:
        return None
    fleet = world.fleet
    cells = np.zeros(fleet.there.shape, bool)
    devices, size = 0.0, 0
    for member in request.members:
        for one in member.alternatives:
            cells |= world.matcher.eligible(fleet, one).devices
        least = min(one.count * _part_of_one(one) for one in member.alternatives)
        devices += least * member.replicas
        size += min(one.count * (one.memory_bytes or 0) for one in member.alternatives) * member.replicas
    there, memory = int(cells.sum()), int(fleet.bytes_total[cells].sum())
    if devices > there:
        return Refusal.TOO_LARGE, f"the gang needs {devices:g} such devices, and there are {there}"
    if size > memory:
        return Refusal.TOO_LARGE, (
            f"the gang needs {format_bytes(size)} of device memory, and there is {format_bytes(memory)}"
        )
    return None


def _part_of_one(one: Alternative) -> float:
    """The least of a device that one of its count takes."""
    return 1.0 if one.memory_bytes is None else one.compute_milli / WHOLE_MILLI


class _Possible:
    """What the nodes as they are could hold if nothing else were here: asked once for all that is smaller."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.layout = world.fleet.layout
        self.found: dict[tuple[str, int, Topology], list[tuple[int, int, int]]] = {}
        self.sure: set[tuple[Member, ...]] = set()  # of requests that were asked about before

    def remember(self, members: tuple[Member, ...]) -> None:
        if len(self.sure) >= _SURE:
            self.sure.clear()
        self.sure.add(members)

    def is_possible(self, one: Alternative) -> bool:
        # A key says whether memory is asked for only where that changes which devices are meant.
        wanted = one.memory_bytes or 0, one.cpu_milli, one.ram_bytes
        known = self.found.setdefault((key_of(one), one.count, one.topology), [])
        if any(wanted[0] <= size and wanted[1] <= cpu and wanted[2] <= ram for size, cpu, ram in known):
            return True
        if not self._fits(one):
            return False
        smaller = [k for k in known if k[0] <= wanted[0] and k[1] <= wanted[1] and k[2] <= wanted[2]]
        for each in smaller:
            known.remove(each)
        if len(known) >= _KNOWN:
            known.pop(0)
        known.append(wanted)
        return True

    def _fits(self, one: Alternative) -> bool:
        if one.topology is Topology.FABRIC and one.count > 1:
            return _impossible(self.world, one) is None
        fleet = self.world.fleet
        hosts = (fleet.cpu_total >= one.cpu_milli) & (fleet.ram_total >= one.ram_bytes)
        if not one.count:
            return bool(hosts.any())
        cells = self.world.matcher.eligible(fleet, one).devices & hosts[:, None]
        if one.memory_bytes is not None:
            cells &= fleet.slices & (fleet.bytes_total >= one.memory_bytes)
        each = cells.sum(1)
        match one.topology:
            case Topology.ANY:
                most = each.sum()
            case Topology.SPREAD:
                most = np.count_nonzero(each)
            case _:
                most = each.max(initial=0)
        return bool(most >= one.count)


def _impossible(world: World, one: Alternative) -> tuple[Refusal, str] | None:
    fleet = world.fleet
    if not one.count:
        nodes = [node for node in fleet.facts if node is not None]
        fits = any(node.cpu_milli >= one.cpu_milli and node.ram_bytes >= one.ram_bytes for node in nodes)
        return None if fits else (Refusal.TOO_LARGE, _too_small_hosts(nodes, "no node"))
    mask = world.matcher.eligible(fleet, one).devices
    devices = [
        [d for column, d in enumerate(node.devices) if mask[row, column]]
        for row, node in enumerate(fleet.facts)
        if node is not None
    ]
    meant = [device for node in devices for device in node]
    if not meant:
        return Refusal.NO_DEVICE, _nothing_is_meant(world, one)
    if one.memory_bytes is not None:
        holding = [device for device in meant if device.holds_slices]
        if not holding:
            names = ", ".join(sorted(device.id for device in meant)[:3])
            return Refusal.NO_DEVICE, (
                f"nothing can hold a part of {names} to its limit: ask for the whole device"
            )
        if all(device.memory_bytes < one.memory_bytes for device in holding):
            most = max(holding, key=lambda device: device.memory_bytes)
            return Refusal.TOO_LARGE, (
                f"{format_bytes(one.memory_bytes)} is more than any device has: the largest that fits the "
                f"request is {most.id} with {format_bytes(most.memory_bytes)}"
            )
    return _too_many(world, one, devices)


def _too_many(world: World, one: Alternative, devices: list[list[DeviceFacts]]) -> tuple[Refusal, str] | None:
    nodes = [node for node in world.fleet.facts if node is not None]
    fitting = [
        [
            d
            for d in there
            if one.memory_bytes is None or (d.holds_slices and d.memory_bytes >= one.memory_bytes)
        ]
        for there, node in zip(devices, nodes, strict=True)
        if node.cpu_milli >= one.cpu_milli and node.ram_bytes >= one.ram_bytes
    ]
    if not any(fitting):
        return Refusal.TOO_LARGE, _too_small_hosts(nodes, "no node with such a device")
    match one.topology:
        case Topology.ANY:
            most_devices, where = sum(map(len, fitting)), "there are"
        case Topology.SPREAD:
            most_devices, where = sum(1 for there in fitting if there), "nodes with such a device:"
        case Topology.FABRIC if one.count > 1:
            groups: dict[tuple[int, str], int] = {}
            for number, there in enumerate(fitting):
                for device in there:
                    if device.fabric is not None:
                        key = (number, device.fabric)
                        groups[key] = groups.get(key, 0) + 1
            most_devices, where = max(groups.values(), default=0), "the most on one fabric is"
        case _:
            most_devices, where = max(map(len, fitting)), "the most on one node is"
    if most_devices < one.count:
        return Refusal.TOO_LARGE, f"{one.count} such devices are wanted, and {where} {most_devices}"
    return None


def _no_such_attribute(name: str, devices: list[DeviceFacts]) -> str:
    from difflib import get_close_matches  # seldom needed

    own = {attribute for device in devices for attribute in device.attributes}
    known = sorted(own | {"fabric", "id", "model", "numa_node", "vendor"})
    if name in {device.vendor for device in devices}:
        return f"no device here has an attribute '{name}'; for the vendor write vendor == \"{name}\""
    near = get_close_matches(name, known, 1)
    meant = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
    return f"no device here has an attribute '{name:.64}'; {meant}"


def _too_small_hosts(nodes: list[NodeFacts], which: str) -> str:
    cpu = max((node.cpu_milli for node in nodes), default=0)
    ram = max((node.ram_bytes for node in nodes), default=0)
    return f"{which} has so much CPU and RAM: the most is {cpu / 1000:g} cores and {format_bytes(ram)}"


def _nothing_is_meant(world: World, one: Alternative) -> str:
    devices = [device for node in world.fleet.facts if node for device in node.devices]
    vendors = sorted({device.vendor for device in devices if device.holds_slices})
    for path in selector(one.selector).paths if one.selector and devices else ():
        if path[:2] == ("attributes", "hal") and not any(values_of(device, (path,)) for device in devices):
            return _no_such_attribute(path[-1], devices)
    if not vendors and not (one.selector and devices):
        return "this machine has no accelerator that can be shared; 'hal doctor' says what was looked for"
    what = (
        f"no device that can be shared is meant by '{one.selector[:120]}'"
        if one.selector
        else "no device that can be shared is meant"
    )
    if one.max_micros_per_hour is not None:
        what += f" at no more than {one.max_micros_per_hour / 1e6:g} an hour"
    if one.memory_bytes is not None and one.isolation.value != "any":
        what += f" where {one.isolation.value} holds a slice"
    return f"{what}; of these some can: {', '.join(vendors)}" if vendors else what
