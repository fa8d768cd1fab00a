"""What is here: the library's devices as the model's, and ids back to the library's names."""

from __future__ import annotations

from hal.backend import GoneError
from hal.model import Device, DeviceKind, Heap, Inventory, whole
from hal_null import conv, errors
from hal_null.driver import Library, LibraryError

__all__ = ["enumerate_devices", "uuid_of"]


def enumerate_devices(library: Library) -> Inventory:
    """Every device, each with its slice `whole`. Raises HalError when the library fails.

    What the library does not say stays None; here that is the PCI address, the driver and more.
    """
    try:
        devices = [_device(library, index, uuid) for index, uuid in enumerate(library.uuids)]
    except LibraryError as failure:
        raise errors.error(failure, "the imaginary library") from failure
    return Inventory(tuple(devices), tuple(map(whole, devices)))


def uuid_of(library: Library, subject: str) -> str:
    """The library's name of the device with this id. Raises GoneError when there is none."""
    vendor, _, uuid = subject.partition(":")
    if vendor != "null" or uuid not in library.uuids:
        raise GoneError(f"{subject}: no such imaginary device")
    return uuid


def _device(library: Library, index: int, uuid: str) -> Device:
    total = conv.kibibytes(library.memory(uuid)["total"]).value
    return Device(
        id=f"null:{uuid}",
        vendor="null",
        kind=DeviceKind.NPU,
        model="Imaginary Accelerator",
        heaps=(Heap("vram", None if total is None else int(total)),),
        uuid=uuid,
        indices={"null": index},  # an index is for translating, never for naming
    )
