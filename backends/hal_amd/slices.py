"""The partitions of a card (XCP) as the model's slices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hal.model import Device, Enforcement, Memory, MemoryMode, Rung, Slice, SliceKind
from hal_amd import conv
from hal_amd.ask import ask

if TYPE_CHECKING:
    from hal_amd.device import Card

__all__ = ["all_units", "identifier", "indices", "modes", "number", "partitions"]

_COMPUTE, _MEMORY = "amd.compute_partition", "amd.memory_partition"


def identifier(device: str, part: int) -> str:
    return f"{device}/xcp-{part}"


def number(name: str) -> int | None:
    """Which partition "xcp-3" is."""
    match = re.fullmatch(r"xcp-(\d{1,3})", name)
    return int(match[1]) if match else None


def modes(smi: Any, first: Any) -> dict[str, str]:
    """How a card is divided, in AMD's words; nothing for one that cannot be."""
    words = {
        _COMPUTE: conv.text(ask(smi, "amdsmi_get_gpu_compute_partition", first)),
        _MEMORY: conv.text(ask(smi, "amdsmi_get_gpu_memory_partition", first)),
    }
    return {name: word for name, word in words.items() if word is not None}


def partitions(smi: Any, card: Card, device: Device) -> Iterator[Slice]:
    """The slices of a card that shows several processors; a whole one has none but `whole`."""
    if len(card.processors) < 2:
        return
    compute, memory = device.attributes.get(_COMPUTE), device.attributes.get(_MEMORY)
    ranges = int(memory[3:]) if memory and re.fullmatch(r"NPS\d", memory) else None
    count = len(card.processors)
    share = _share(smi, card, device)
    uuids = {
        part: conv.text(ask(smi, "amdsmi_get_gpu_device_uuid", processor))
        for part, processor in card.processors.items()
    }
    distinct = len(set(uuids.values())) == count
    for part, processor in sorted(card.processors.items()):
        units = _units(smi, processor)
        own = {f"amd.{name}": str(value) for name, value in indices(smi, processor).items()}
        if ranges:
            own["amd.memory_range"] = str(part * ranges // count)
        yield Slice(
            id=identifier(card.id, part),
            device=card.id,
            kind=SliceKind.PARTITION,
            memory=_memory(card.id, share, ranges),
            enforcement=Enforcement(Rung.HARDWARE if ranges and ranges > 1 else Rung.NONE, Rung.HARDWARE),
            parent=f"{card.id}/whole",
            compute_ratio=1 / count,
            profile="/".join(word for word in (compute, memory) if word) or None,
            uuid=uuids[part] if distinct else None,  # one that names all of them names none
            compute_units=units if units != device.compute_units else None,
            attributes=own,
        )


def _memory(card: str, share: int | None, ranges: int | None) -> Memory:
    """Under NPS2 and NPS4 a partition has ranges to itself; under NPS1 all of them draw from one memory."""
    if ranges and ranges > 1:
        return Memory(share)
    return Memory(share, MemoryMode.POOL, f"{card}/vram")


def _share(smi: Any, card: Card, device: Device) -> int | None:
    """What each partition may have. The first one says what the whole card has; the later ones know."""
    totals = [
        conv.number(ask(smi, "amdsmi_get_gpu_memory_total", processor, smi.AmdSmiMemoryType.VRAM))
        for part, processor in card.processors.items()
        if part > 0
    ]
    known = [int(total) for total in totals if total is not None]
    if known:
        return min(known)
    return None if device.memory_bytes is None else device.memory_bytes // len(card.processors)


def _units(smi: Any, processor: Any) -> int | None:
    asic = ask(smi, "amdsmi_get_gpu_asic_info", processor) or {}
    units = conv.number(asic.get("num_compute_units"))
    return int(units) if units else None


def all_units(smi: Any, card: Card) -> int | None:
    """Compute units of the whole card. Of a divided one each processor, the first too, says its own."""
    said = [_units(smi, card.processors[part]) for part in sorted(card.processors)]
    units = [each for each in said if each is not None]
    if len(units) < len(said):
        return None
    return sum(units) if len(set(units)) == 1 else units[0]


def indices(smi: Any, processor: Any) -> dict[str, int]:
    """How HIP and the kernel number a processor, as far as this amdsmi says."""
    info = ask(smi, "amdsmi_get_gpu_enumeration_info", processor) or {}
    kfd = ask(smi, "amdsmi_get_gpu_kfd_info", processor) or {}
    words = {"hip": info.get("hip_id"), "hsa": info.get("hsa_id"), "kfd": kfd.get("node_id"),
             "drm_card": info.get("drm_card"), "drm_render": info.get("drm_render")}  # fmt: skip
    numbers = {word: conv.number(raw) for word, raw in words.items()}
    return {word: int(value) for word, value in numbers.items() if value is not None}
