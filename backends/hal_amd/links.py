"""What joins two cards: XGMI within a hive, straight or through other cards, else PCIe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from hal.model import Level, Link, Status
from hal_amd import conv, errors
from hal_amd.ask import ask
from hal_amd.version import Versions

if TYPE_CHECKING:
    from hal_amd.device import Card

__all__ = ["links", "one_link", "width"]

_HOP = 15
_KINDS = {"XGMI": "xgmi", "PCIE": "pcie"}
_LEVELS: dict[object, Level] = {2: Level.NODE, 3: Level.SYS}  # hops, by way of one CPU or of two


def links(smi: Any, versions: Versions, cards: Sequence[Card]) -> Iterator[Link]:
    """An edge for each pair of which AMD SMI knows the way."""
    for a, b in combinations(cards, 2):
        way = ask(smi, "amdsmi_topo_get_link_type", a.first, b.first) or {}
        kind = _KINDS.get(versions.link(smi, way.get("type")))
        if kind == "xgmi" and _straight(smi, a, b):
            yield Link(a.id, b.id, kind, *_bandwidth(smi, a, b))
        elif kind == "xgmi":
            yield Link(a.id, b.id, "xgmi_hops")
        elif kind is not None:
            yield Link(a.id, b.id, kind, level=_LEVELS.get(way.get("hops")))


def _straight(smi: Any, a: Card, b: Card) -> bool:
    """AMD SMI counts one hop for any way over XGMI; KFD's weight is 15 for each real one."""
    weight = conv.number(ask(smi, "amdsmi_topo_get_link_weight", a.first, b.first))
    return weight is None or weight <= _HOP


def one_link(smi: Any, a: Card, b: Card) -> int | None:
    """Megabytes per second that one link between two cards carries."""
    said = ask(smi, "amdsmi_get_minmax_bandwidth_between_processors", a.first, b.first) or {}
    least = conv.number(said.get("min_bandwidth"))
    return int(least) if least and a is not b else None


def width(smi: Any, a: Card, b: Card) -> str:
    """How many links join two cards of a hive, as machine descriptions have it: "1" to "9", "-" for none, "?"
    when AMD SMI does not tell (it gives the bandwidth of one and of all)."""
    if a is b or not _straight(smi, a, b):
        return "-"
    said = ask(smi, "amdsmi_get_minmax_bandwidth_between_processors", a.first, b.first) or {}
    one, most = conv.number(said.get("min_bandwidth")), conv.number(said.get("max_bandwidth"))
    return str(int(most / one)) if one and most and 1 <= most / one <= 9 else "?"


def _bandwidth(smi: Any, a: Card, b: Card) -> tuple[int | None, Status]:
    """Bytes per second in one direction."""
    try:
        said = smi.amdsmi_get_minmax_bandwidth_between_processors(a.first, b.first)
    except Exception as failure:  # most often: it does not know
        return None, errors.status(failure)[0]
    megabytes = conv.number(said.get("max_bandwidth"))
    return (int(megabytes) * 1_000_000, Status.OK) if megabytes else (None, Status.UNSUPPORTED)
