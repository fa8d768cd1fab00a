"""What makes HIP see some devices and no other."""

from __future__ import annotations

from collections.abc import Sequence

from hal.backend import GoneError, UnsupportedError
from hal.model import Device, Exposure
from hal_amd.device import enumerate_devices
from hal_amd.driver import Driver

__all__ = ["expose"]


def expose(driver: Driver, ids: Sequence[str]) -> Exposure:
    """The environment for these devices, in this order. Raises GoneError for an unknown id.

    ROCR filters first and HIP numbers what is left, so HIP's own variable is set as well: an inherited
    one would be read against the new numbers.
    """
    if not ids:
        return Exposure({"HIP_VISIBLE_DEVICES": "-1", "ROCR_VISIBLE_DEVICES": "-1"})
    here = {device.id: device for device in enumerate_devices(driver.open()).devices}
    for subject in ids:
        if subject not in here:
            raise GoneError(f"{subject}: no such AMD device")
    return Exposure(
        {
            "HIP_VISIBLE_DEVICES": ",".join(str(ordinal) for ordinal in range(len(ids))),
            "ROCR_VISIBLE_DEVICES": ",".join(_rocr(here[subject]) for subject in ids),
        }
    )


def _rocr(device: Device) -> str:
    if device.serial is not None:
        return f"GPU-{device.serial}"
    if "hip" in device.indices:
        return str(device.indices["hip"])
    raise UnsupportedError(f"{device.id} has neither a serial number nor a HIP ordinal to be shown by")
