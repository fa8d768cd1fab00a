"""What is here: AMD SMI's processors as the model's devices, and ids back to its handles."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from functools import cache
from typing import Any, NamedTuple

from hal.backend import GoneError, StateError
from hal.model import Device, DeviceKind, Heap, Inventory, Pci, whole
from hal_amd import conv, errors, links, slices
from hal_amd.ask import Guarded, ask
from hal_amd.throttle import Looks
from hal_amd.version import Versions, versions

__all__ = ["PREFIX", "Card", "Cards", "Shape", "enumerate_devices"]

_log = logging.getLogger(__name__)
PREFIX = "amd:pci-"
_DIES = 64  # far more than a card has: each one is a figure


class Shape(NamedTuple):
    """How many of what a card has: which rows its table of figures has. Cards of one model share it."""

    dies: int = 0
    partitions: int = 1
    hbm: tuple[int, ...] = ()  # the stacks that have a sensor
    links: int = 0
    blocks: tuple[str, ...] = ()  # where error correction is on


class Card:
    """A physical card, and the handles of the processors that it shows."""

    def __init__(self, id: str, bdf: str) -> None:
        self.id = id
        self.bdf = bdf
        self.processors: dict[int, Any] = {}  # by partition
        self.positions: dict[int, int] = {}  # in AMD SMI's list, by partition
        self.shape = Shape()
        self.looks = Looks()
        # By partition: the questions that it does not support, with what it said.
        self.hopeless: dict[int | None, dict[tuple[Any, ...], Exception]] = {}

    @property
    def first(self) -> Any:
        """The processor that speaks for the whole card."""
        return self.processors[min(self.processors)]


class Cards:
    """The cards as they were when they were last looked up: handles are good until one is refused."""

    def __init__(self, smi: Any) -> None:
        self.versions: Versions = versions(smi)
        self.smi: Any = Guarded(smi, self.versions.refused)
        self._cards: dict[str, Card] | None = None
        self._looks: dict[str, Looks] = {}  # they outlive handles
        self.lost = False  # AMD SMI was shut down, and not by us

    def all(self, *, anew: bool = False) -> dict[str, Card]:
        if self._cards is None or anew:
            self._cards = {card.id: card for card in _look_up(self.smi)}
            for card in self._cards.values():
                card.shape = _shape(self.smi, card)
                card.looks = self._looks.setdefault(card.id, card.looks)
        return self._cards

    def find(self, subject: str) -> tuple[Card, int | None]:
        """The card with this id, and which of its partitions is meant. Raises GoneError for another."""
        device, _, part = subject.partition("/")
        for anew in (False, True):
            card = self.all(anew=anew).get(device)
            if card is not None and part in ("", "whole"):
                return card, None
            number = slices.number(part)
            if card is not None and number in card.processors and len(card.processors) > 1:
                return card, number
        raise GoneError(f"{subject}: no such AMD device")

    def forget(self) -> None:
        """The handles are no longer good."""
        self._cards = None


def enumerate_devices(cards: Cards) -> Inventory:
    """Every card once, its partitions as slices of it, and what joins cards. Raises HalError when AMD SMI
    fails, or has cards and none of them has an address."""
    found = list(cards.all(anew=True).values())
    devices = [_device(cards.smi, card) for card in found]
    parts = [
        piece
        for card, device in zip(found, devices, strict=True)
        for piece in (whole(device), *slices.partitions(cards.smi, card, device))
    ]
    return Inventory(tuple(devices), tuple(parts), tuple(links.links(cards.smi, cards.versions, found)))


def _look_up(smi: Any) -> Iterator[Card]:
    try:
        processors = smi.amdsmi_get_processor_handles()
    except Exception as failure:
        raise errors.error(failure, "amdsmi_get_processor_handles") from failure
    cards: dict[str, Card] = {}
    for position, processor in enumerate(processors):
        raw = ask(smi, "amdsmi_get_gpu_device_bdf", processor)
        bdf = conv.bdf(raw)
        if bdf is None:
            _left_out(position, str(raw))
            continue
        part = _partition(smi, processor, bdf, cards)
        bdf = conv.physical(bdf, part)
        card = cards.setdefault(bdf, Card(PREFIX + bdf, bdf))
        if part not in card.processors:
            card.processors[part] = processor
            card.positions[part] = position
    if processors and not cards:
        raise StateError("AMD SMI gives no PCI address for any GPU; in a container, add --device /dev/dri")
    yield from cards.values()


def _partition(smi: Any, processor: Any, bdf: str, known: Container[str]) -> int:
    """Which of a card's partitions a processor is. Where KFD does not say, the function does: a card that
    is listed with function 0 has no other ones."""
    kfd = ask(smi, "amdsmi_get_gpu_kfd_info", processor) or {}
    said = conv.number(kfd.get("current_partition_id"))
    if said is not None:
        return int(said)
    return int(bdf[-1]) if conv.physical(bdf, int(bdf[-1])) in known else 0


@cache
def _left_out(position: int, raw: str) -> None:
    """Says it once, however often the cards are looked up."""
    _log.warning("left out AMD SMI device %d: %r is no PCI address (is /dev/dri there?)", position, raw)


def _shape(smi: Any, card: Card) -> Shape:
    first = card.first
    dies = conv.number(ask(smi, "amdsmi_get_gpu_xcd_counter", first)) or 0
    joined = ask(smi, "amdsmi_get_link_metrics", first) or {}
    count = conv.number(joined.get("num_links")) or 0
    enabled = int(conv.number(ask(smi, "amdsmi_get_gpu_ecc_enabled", first)) or 0)
    blocks = getattr(smi, "AmdSmiGpuBlock", ())
    return Shape(
        dies=int(dies) if 0 <= dies <= _DIES else 0,
        partitions=len(card.processors),
        hbm=tuple(stack for stack in range(4) if _has_stack(smi, first, stack)),
        links=min(int(count), len(joined.get("links", ()))),
        blocks=tuple(b.name for b in blocks if b.name not in ("INVALID", "RESERVED") and enabled & b.value),
    )


def _has_stack(smi: Any, first: Any, stack: int) -> bool:
    kind = getattr(getattr(smi, "AmdSmiTemperatureType", None), f"HBM_{stack}", None)
    if kind is None:
        return False
    return ask(smi, "amdsmi_get_temp_metric", first, kind, smi.AmdSmiTemperatureMetric.CURRENT) is not None


def _device(smi: Any, card: Card) -> Device:
    first = card.first
    asic = ask(smi, "amdsmi_get_gpu_asic_info", first) or {}
    driver = ask(smi, "amdsmi_get_gpu_driver_info", first) or {}
    node = conv.number(ask(smi, "amdsmi_topo_get_numa_node_number", first))
    return Device(
        id=card.id,
        vendor="amd",
        kind=DeviceKind.GPU,
        model=conv.text(asic.get("market_name")) or "AMD GPU",
        heaps=_heaps(smi, first),
        pci=Pci(card.bdf, conv.hexadecimal(asic.get("vendor_id")), conv.hexadecimal(asic.get("device_id"))),
        uuid=conv.text(ask(smi, "amdsmi_get_gpu_device_uuid", first)),
        serial=conv.unique_id(asic.get("asic_serial")),
        architecture=conv.gfx(asic.get("target_graphics_version")),
        compute_units=slices.all_units(smi, card),
        numa_node=None if node is None else int(node),
        driver=conv.text(driver.get("driver_version")),
        indices={"amdsmi": min(card.positions.values())} | slices.indices(smi, first),
        attributes=slices.modes(smi, first),
    )


def _heaps(smi: Any, first: Any) -> tuple[Heap, ...]:
    """VRAM always; GTT, the host's memory that the card can use, where AMD SMI knows of it."""
    vram, gtt = (
        conv.size(
            ask(smi, "amdsmi_get_gpu_memory_total", first, getattr(smi.AmdSmiMemoryType, kind, None))
        ).value
        for kind in ("VRAM", "GTT")
    )
    heaps = [Heap("vram", None if vram is None else int(vram))]
    return (*heaps, Heap("gtt", int(gtt))) if gtt else tuple(heaps)
