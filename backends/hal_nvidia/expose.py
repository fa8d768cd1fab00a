"""What makes CUDA see some devices, or MIG devices, and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hal.model import Exposure
from hal_nvidia.handles import Handles

__all__ = ["expose"]


def expose(open_handles: Callable[[], Handles], ids: Sequence[str]) -> Exposure:
    """The environment for these devices, in this order. Raises GoneError for an unknown id."""
    if not ids:
        return Exposure({"CUDA_VISIBLE_DEVICES": "-1"})
    handles = open_handles()
    for subject in ids:
        handles.forget(subject)  # it may have gone since it was last looked up
        handles.find(subject)
    uuids = ",".join(subject.partition(":")[2] for subject in ids)
    return Exposure({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuids})
