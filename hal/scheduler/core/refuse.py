"""Whether a request can ever be served here, whatever is free; and if not, what to say."""

from __future__ import annotations

from hal.scheduler.core.decisions import Refusal
from hal.scheduler.core.facts import DeviceFacts
from hal.scheduler.core.request import Alternative, Request, Topology
from hal.scheduler.core.world import World
from hal.units import format_bytes

__all__ = ["never"]

_KEPT = 256  # answers, as long as the nodes' facts are the same


def never(world: World, request: Request) -> tuple[Refusal, str] | None:
    """None when every member has an alternative that would fit if nothing else were here."""
    fleet = world.fleet
    layout, known = fleet.memo.get("never", (-1, {}))
    if layout != fleet.layout or len(known) >= _KEPT:
        known = {}
        fleet.memo["never"] = fleet.layout, known
    if request.members not in known:
        known[request.members] = _never(world, request)
    found: tuple[Refusal, str] | None = known[request.members]
    return found


def _never(world: World, request: Request) -> tuple[Refusal, str] | None:
    for number, member in enumerate(request.members):
        found = [_impossible(world, alternative) for alternative in member.alternatives]
        refusals = [refusal for refusal in found if refusal is not None]
        if len(refusals) < len(found):
            continue
        # The alternative that came nearest is the one to speak of.
        code, message = min(refusals, key=lambda refusal: refusal[0] is Refusal.NO_DEVICE)
        who = f"member {number + 1}: " if len(request.members) > 1 else ""
        return code, who + message
    return None


def _impossible(world: World, one: Alternative) -> tuple[Refusal, str] | None:
    fleet = world.fleet
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
        most = max(node.cpu_milli for node in nodes), max(node.ram_bytes for node in nodes)
        return Refusal.TOO_LARGE, (
            f"no node with such a device has so much CPU and RAM: the most is {most[0] / 1000:g} cores "
            f"and {format_bytes(most[1])}"
        )
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


def _nothing_is_meant(world: World, one: Alternative) -> str:
    devices = [device for node in world.fleet.facts if node for device in node.devices]
    vendors = sorted({device.vendor for device in devices if device.holds_slices})
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
