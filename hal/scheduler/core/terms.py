"""What follows from the members of a request alone: worked out once for all requests that want the same."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI
from hal.scheduler.core.lease import Amount, Waiting
from hal.scheduler.core.match import key_of
from hal.scheduler.core.request import Alternative, Member
from hal.scheduler.core.shape import Shape

__all__ = ["Terms", "in_turn", "shape_of", "terms_of", "usable_alternatives"]


class Terms(Struct, frozen=True, eq=False):
    """Of the members of one request."""

    least: Amount  # what it is charged at least, whichever alternatives it gets
    expected: tuple[tuple[Shape, str], ...]  # of each member's first alternative, what stands for such tasks
    choices: tuple[tuple[int, ...], ...]  # of each member: its alternatives, the heaviest first
    units: tuple[tuple[int, int], ...]  # members and replicas, in the order in which they are placed
    has_slack: bool  # some alternatives are only for requests whose deadline is far


@lru_cache(1024)
def terms_of(members: tuple[Member, ...]) -> Terms:
    choices = tuple(
        tuple(sorted(range(len(member.alternatives)), key=lambda n: (-member.alternatives[n].weight, n)))
        for member in members
    )
    return Terms(
        least=_least(members),
        expected=tuple(
            (shape_of(first, first.count), key_of(first))
            for first in (member.alternatives[0] for member in members)
        ),
        choices=choices,
        units=in_turn(members, choices),
        has_slack=any(one.slack_ms for member in members for one in member.alternatives),
    )


def in_turn(members: tuple[Member, ...], choices: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """Those with the least choice first, and of these those that need the most."""
    units = [(m, r) for m, member in enumerate(members) for r in range(member.replicas)]
    return tuple(sorted(units, key=lambda unit: (len(choices[unit[0]]), -_demand(members[unit[0]]), unit)))


def usable_alternatives(one: Waiting, now: int) -> tuple[tuple[int, ...], ...]:
    """Of each member, as ``choices``: those for which the deadline is far enough."""
    request = one.request
    terms = terms_of(request.members)
    if request.deadline_ms is None or not terms.has_slack:
        return terms.choices
    left = one.arrived + request.deadline_ms - now
    return tuple(
        tuple(number for number in choice if member.alternatives[number].slack_ms <= max(left, 0))
        for member, choice in zip(request.members, terms.choices, strict=True)
    )


@lru_cache(1024)
def shape_of(one: Alternative, count: int) -> Shape:
    return Shape(
        count=count,
        memory_bytes=one.memory_bytes or 0,
        compute_milli=0 if one.memory_bytes is None else one.compute_milli,
        cpu_milli=one.cpu_milli,
        ram_bytes=one.ram_bytes,
        whole=one.memory_bytes is None and count > 0,
    )


def _demand(member: Member) -> int:
    return max(a.count * (a.memory_bytes or 1 << 40) for a in member.alternatives)


def _least(members: tuple[Member, ...]) -> Amount:
    total = Amount()
    for member in members:
        millis, sizes = [], []
        for one in member.alternatives:
            milli = WHOLE_MILLI if one.memory_bytes is None else max(one.compute_milli, 1)
            millis.append(one.count * milli)
            sizes.append(one.count * (one.memory_bytes or 0))
        total += Amount(min(millis) * member.replicas, min(sizes) * member.replicas)
    return total
