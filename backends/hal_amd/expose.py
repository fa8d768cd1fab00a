"""What makes HIP see some devices and no other."""

from __future__ import annotations

from collections.abc import Sequence

from hal.backend import GoneError, UnsupportedError
from hal.model import Exposure, Inventory, Slice, SliceKind

__all__ = ["expose"]


def expose(here: Inventory, ids: Sequence[str]) -> Exposure:
    """The environment for these devices and partitions, in this order. Raises GoneError for another id.

    ROCR filters first and HIP numbers what is left, so HIP's own variable is set as well: an inherited
    one would be read against the new numbers.
    """
    if not ids:
        return Exposure({"HIP_VISIBLE_DEVICES": "-1", "ROCR_VISIBLE_DEVICES": "-1"})
    shown = [name for subject in ids for name in _names(here, subject)]
    return Exposure(
        {
            "HIP_VISIBLE_DEVICES": ",".join(str(ordinal) for ordinal in range(len(shown))),
            "ROCR_VISIBLE_DEVICES": ",".join(shown),
        }
    )


def _names(here: Inventory, subject: str) -> list[str]:
    """ROCR's names of what is behind an id. The partitions of a card share its serial number, so they
    go by their ordinals, and a card that is divided by those of all its partitions."""
    parts = [piece for piece in here.slices if piece.kind is SliceKind.PARTITION]
    of_card = [piece for piece in parts if subject.removesuffix("/whole") == piece.device]
    wanted = of_card or [piece for piece in parts if piece.id == subject]
    if wanted:
        return [_ordinal(piece) for piece in wanted]
    for device in here.devices:
        if device.id != subject.removesuffix("/whole"):
            continue
        if device.serial is not None:
            return [f"GPU-{device.serial}"]
        if "hip" in device.indices:
            return [str(device.indices["hip"])]
        raise UnsupportedError(f"{device.id} has neither a serial number nor a HIP ordinal to be shown by")
    raise GoneError(f"{subject}: no such AMD device")


def _ordinal(piece: Slice) -> str:
    ordinal = piece.attributes.get("amd.hip")
    if ordinal is None:
        raise UnsupportedError(f"{piece.id} has no HIP ordinal to be shown by")
    return ordinal
