"""Why a request waits: what each device lacks, counted, and the nearest thing that would let it run."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from hal.scheduler.core.admit import Blocked, Why, plan
from hal.scheduler.core.backfill import reserve
from hal.scheduler.core.lease import Amount, Lease, LeaseState, Waiting
from hal.scheduler.core.masks import Eligible
from hal.scheduler.core.match import values_of
from hal.scheduler.core.placement import why_not
from hal.scheduler.core.request import Alternative, Member
from hal.scheduler.core.terms import shape_of, terms_of, usable_alternatives
from hal.scheduler.core.world import Reservation, World
from hal.selector import NoAnswer, selector, to_short
from hal.units import format_bytes, format_seconds

__all__ = ["Explanation", "explain", "in_short", "lost_nodes"]

# The fields of WhyNot, and what they say of so many devices (the last of nodes).
_NAMED = 3  # nodes
_REASONS = {
    "unusable": "{} failed, drained or cordoned",
    "no_slices": "of {} no part can be held to a limit",
    "too_small": "{} too small even when empty",
    "busy": "{} in use, and wanted whole",
    "bytes_taken": "{} with too little memory free",
    "compute_taken": "{} with too little compute free",
    "nodes_count": "{} node(s) with too few such devices free",
    "nodes_cpu": "{} node(s) with too little CPU free",
    "nodes_ram": "{} node(s) with too little RAM free",
}


class Explanation(Struct, frozen=True):
    """``reasons`` are sentences without a full stop, the most general first."""

    id: str
    state: str  # waiting, active, suspended, ending
    ahead: int  # requests before it in its queue
    reasons: tuple[str, ...]
    nearest: str


def explain(world: World, id: str, now: int) -> Explanation | None:
    """None when there is neither a request nor a lease of this id."""
    lease = world.leases.get(id)
    if lease is not None:
        return _of_lease(world, lease, now)
    one = world.line.waiting.get(id)
    if one is None:
        return None
    found = plan(world, one, now)
    reasons: list[str] = []
    if isinstance(found, Blocked) and found.why is not Why.ROOM:
        reasons.append(_barred(world, one, found))
    kept = world.counters.reservation
    usable = usable_alternatives(one, now)
    for number, member in enumerate(one.request.members):
        for index in usable[number]:
            text = _devices(world, member.alternatives[index], kept if kept and kept.id != id else None)
            name = f"alternative {index + 1}" if len(member.alternatives) > 1 else "devices"
            who = f"member {number + 1}, " if len(one.request.members) > 1 else ""
            reasons.append(f"{who}{name}: {text}")
        late = len(member.alternatives) - len(usable[number])
        if late:
            reasons.append(f"{late} alternative(s) are only for a deadline that is further away")
    if (away := lost_nodes(world)) is not None:
        reasons.append(f"{away}: what is there does not count")
    return Explanation(id, "waiting", _ahead(world, one), tuple(reasons), _nearest(world, one, found, now))


def in_short(world: World, one: Waiting, found: Blocked, now: int) -> str:
    """Why it has no room now, in one sentence."""
    if found.why is not Why.ROOM:
        return _barred(world, one, found)
    for member in one.request.members:
        if (told := _out_of_use(world, member)) is not None:
            return f"no room now: {told}; try again when that is over"
    wanted = one.request.members[found.member].alternatives
    if sum(member.replicas for member in one.request.members) > 1:
        return "no room for all of the gang now: try again when a lease has ended"
    fleet = world.fleet
    best, name = -1, ""
    for alternative in wanted:
        meant = world.matcher.eligible(fleet, alternative).devices & fleet.usable
        if meant.any():
            free = np.where(meant, fleet.bytes_free, -1)
            row, column = np.unravel_index(int(free.argmax()), free.shape)
            node = fleet.facts[int(row)]
            if free[row, column] > best and node is not None:
                best, name = int(free[row, column]), node.devices[int(column)].id
    first = wanted[0]
    if not first.count:
        return "no node has so much CPU and RAM free now; try again when a lease has ended"
    size = "a whole device" if first.memory_bytes is None else format_bytes(first.memory_bytes)
    what = (
        size
        if first.count == 1
        else f"{first.count} devices"
        if size[0] == "a"
        else f"{first.count} x {size}"
    )
    also = " or its alternatives" if len(wanted) > 1 else ""
    free_text = (
        f"the most that is free is {format_bytes(best)} on {name}" if name else "no device is meant now"
    )
    away = "" if name else lost_nodes(world)
    return f"no room for {what}{also} now: {free_text}; {away or 'try again when a lease has ended'}"


def lost_nodes(world: World) -> str | None:
    """Nodes that are lost, of whose devices none counts until they come back; None: there is no such node."""
    lost = sorted(world.counters.lost)
    if not lost:
        return None
    names = ", ".join(f"'{node}'" for node in lost[:_NAMED]) + (" and others" if len(lost) > _NAMED else "")
    return f"node {names} is lost" if len(lost) == 1 else f"nodes {names} are lost"


def _out_of_use(world: World, member: Member) -> str | None:
    """Where cordons and failures leave too few devices, whatever ends; None: they do not."""
    fleet = world.fleet
    out = np.zeros(fleet.there.shape, bool)
    for one in member.alternatives:
        could = world.matcher.eligible(fleet, one).devices & fleet.there
        if one.memory_bytes is not None:
            could &= fleet.slices & (fleet.bytes_total >= one.memory_bytes)
        if np.count_nonzero(could & fleet.usable) >= one.count:
            return None
        out |= could & ~fleet.usable
    if not out.any():
        return None
    row, column = np.argwhere(out)[0].tolist()
    node = fleet.facts[row]
    assert node is not None
    first, number = node.devices[column].id, np.count_nonzero(out)
    why = world.unusable(first, node.id)
    if why is None:
        return None
    told = f"{first} is {why}" if why in ("cordoned", "drained") else f"{first}: {why}"
    which = "the only device" if number == 1 else f"{number} of the devices"
    verb = "is" if number == 1 else "are"
    return f"{which} that would do {verb} out of use ({told})"


# ---- devices ----------------------------------------------------------------------------------


def _devices(world: World, one: Alternative, kept: Reservation | None) -> str:
    fleet = world.fleet
    eligible = world.matcher.eligible(fleet, one)
    total = int((fleet.there & (fleet.slices | eligible.devices)).sum())  # as 'hal status' counts them
    counts = why_not(fleet, shape_of(one, one.count), eligible)
    parts = _not_meant(world, one, eligible)
    parts += [text.format(count) for name, text in _REASONS.items() if (count := getattr(counts, name))]
    unknown = sum(
        1 for node in fleet.facts if node for d in node.devices
        if d.outside_bytes is None and eligible.devices[fleet.cell_of[d.id]]
    )  # fmt: skip
    if unknown:
        parts.append(f"of {unknown} it is not known how much is in use")
    if kept is not None:
        parts.append(f"{len(kept.devices)} kept for '{kept.id}', which is next")
    return f"of {total}: " + ("; ".join(parts) if parts else "some have room")


def _not_meant(world: World, one: Alternative, eligible: Eligible) -> list[str]:
    """For each condition of the selector, how many devices fail it: the first that a device fails counts."""
    fleet = world.fleet
    conditions = [selector(text) for text in selector(one.selector).conditions()] if one.selector else []
    failing = [0] * len(conditions)
    unsaid = [0] * len(conditions)
    others = 0
    for node in fleet.facts:
        for device in node.devices if node else ():
            if eligible.devices[fleet.cell_of[device.id]] or not device.holds_slices:
                continue
            for number, condition in enumerate(conditions):
                try:
                    holds = condition.matches(values_of(device, condition.paths))
                except NoAnswer:
                    unsaid[number] += 1
                    break
                if not holds:
                    failing[number] += 1
                    break
            else:
                others += 1
    parts = []
    for condition, fails, unknown in zip(conditions, failing, unsaid, strict=True):
        if fails:
            parts.append(f"{fails} fail {to_short(condition.cel)}")
        if unknown:
            parts.append(f"of {unknown} is not known whether {to_short(condition.cel)}")
    if others:
        parts.append(f"{others} not meant (too dear, or not held as wanted)")
    return parts


# ---- queues -----------------------------------------------------------------------------------


def _barred(world: World, one: Waiting, found: Blocked) -> str:
    queue = world.tree.queues[found.queue]
    if found.why is Why.LIMIT:
        used, bound, what = world.tree.used[queue.name], queue.limit, "limit"
    else:
        used, bound, what = (
            world.tree.firm.get(queue.name, Amount()),
            queue.quota,
            "quota for what is not to be preempted",
        )
    parts = []
    if bound.devices_milli is not None:
        parts.append(f"{used.devices_milli / 1000:g} of {bound.devices_milli / 1000:g} devices")
    if bound.memory_bytes is not None:
        parts.append(f"{format_bytes(used.memory_bytes)} of {format_bytes(bound.memory_bytes)}")
    return f"queue '{queue.name}' is at its {what}: it has {' and '.join(parts)}"


def _ahead(world: World, one: Waiting) -> int:
    mine = (-one.request.priority, one.order)
    return sum(
        1
        for other in world.line.waiting.values()
        if other.request.queue == one.request.queue and (-other.request.priority, other.order) < mine
    )


# ---- the nearest ------------------------------------------------------------------------------


def _nearest(world: World, one: Waiting, found: object, now: int) -> str:
    if isinstance(found, Blocked) and found.why is not Why.ROOM:
        queue = world.tree.queues[found.queue]
        bound = queue.limit if found.why is Why.LIMIT else queue.quota
        if not bound.hold(terms_of(one.request.members).least):
            return f"a larger {'limit' if found.why is Why.LIMIT else 'quota'} for queue '{queue.name}'"
        return f"the end of a lease of queue '{queue.name}'"
    kept = world.counters.reservation
    if not isinstance(found, Blocked):
        if kept is not None and kept.id != one.id:
            return f"'{kept.id}' is served first; or a declared duration short enough to be over before"
        return "its turn"
    found_kept = kept if kept is not None and kept.id == one.id else reserve(world, one, now)
    if isinstance(found_kept, Blocked):
        for member in one.request.members:
            if (told := _out_of_use(world, member)) is not None:
                return f"an end to this: {told}"
        if (away := lost_nodes(world)) is not None:
            return f"the return of what is lost ({away}), or more devices"
        return "more devices: it would not fit even if every lease ended"
    living = [world.leases[id] for id in found_kept.waits_for if id in world.leases]
    names = ", ".join(f"'{lease.id}'" for lease in living[:4])
    more = f" and {len(living) - 4} more" if len(living) > 4 else ""
    when = (
        "" if found_kept.at is None else f", in {format_seconds((found_kept.at - now) / 1000)} at the latest"
    )
    return f"the end of {names}{more}{when}"


def _of_lease(world: World, lease: Lease, now: int) -> Explanation:
    reasons = [f"granted {format_seconds((now - lease.granted) / 1000)} ago on " + ", ".join(
        device for spot in lease.spots() for device in spot.devices
    )]  # fmt: skip
    for spot in lease.spots():
        for device in spot.devices:
            why = world.unusable(device, spot.node)
            if why is not None:
                reasons.append(f"{device} is {why}")
    nearest = {
        LeaseState.ACTIVE: "it runs",
        LeaseState.SUSPENDED: "the return of its node",
        LeaseState.ENDING: "the end of its processes",
    }[lease.state]
    return Explanation(lease.id, lease.state.value, 0, tuple(reasons), nearest)
