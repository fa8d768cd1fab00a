"""Moves of small leases that would free a whole device: proposed, never made from here."""

from __future__ import annotations

from hal.scheduler.core.admit import Plan, plan
from hal.scheduler.core.decisions import Move
from hal.scheduler.core.lease import Lease, LeaseState, Waiting
from hal.scheduler.core.world import World

__all__ = ["moves"]

_DEVICES = 32  # that are looked at
_HOLDERS = 4  # at most this many are moved away from one


def moves(world: World, one: Waiting, now: int) -> tuple[Move, ...] | None:
    """The moves after which ``one`` would fit, from the device that takes the fewest; None: none do."""
    if not any(lease.request.movable and _can_move(lease) for lease in world.leases.values()):
        return None
    candidates = [
        (len(there), device)
        for device, there in world.holders.items()
        if len(there) <= _HOLDERS and device in world.fleet.cell_of and all(map(_can_move, there.values()))
    ]
    for _, device in sorted(candidates)[:_DEVICES]:
        found = _away_from(world, device, list(world.holders[device].values()), one, now)
        if found is not None:
            return found
    return None


def _can_move(lease: Lease) -> bool:
    spots = lease.spots()
    alone = len(spots) == 1 and len(spots[0].devices) == 1
    return alone and lease.request.movable and lease.state is LeaseState.ACTIVE


def _away_from(
    world: World, device: str, there: list[Lease], one: Waiting, now: int
) -> tuple[Move, ...] | None:
    fleet = world.fleet
    found: list[Move] = []
    if not fleet.usable[fleet.cell_of[device]]:
        return None
    with world.without(there), fleet.trial():
        fleet.set_usable(device, False)
        try:
            for lease in sorted(there, key=lambda lease: lease.epoch):
                moving = Waiting(lease.id, lease.request, lease.uid, lease.key, 0, lease.arrived, lease.order)
                target = plan(world, moving, now, limits=False)
                if not isinstance(target, Plan):
                    return None
                for spot in target.parts[0].spots:
                    fleet.take(spot)
                devices = tuple(one for spot in target.parts[0].spots for one in spot.devices)
                found.append(Move(lease.id, (device,), devices))
        finally:
            fleet.set_usable(device, True)
        fits = isinstance(plan(world, one, now), Plan)
    return tuple(found) if fits else None
