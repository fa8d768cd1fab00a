"""What makes CUDA see some devices and no other."""

from __future__ import annotations

from collections.abc import Sequence

from hal.model import Exposure
from hal_nvidia import device
from hal_nvidia.driver import Driver

__all__ = ["expose"]


def expose(driver: Driver, ids: Sequence[str]) -> Exposure:
    """The environment for these devices, in this order. Raises GoneError for an unknown id."""
    if not ids:
        return Exposure({"CUDA_VISIBLE_DEVICES": "-1"})
    nvml = driver.open()
    for subject in ids:
        device.handle(nvml, subject)
    uuids = ",".join(subject.partition(":")[2] for subject in ids)
    return Exposure({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuids})
