"""What makes a program see some devices and no other."""

from __future__ import annotations

from collections.abc import Sequence

from hal.model import Exposure
from hal_null.device import uuid_of
from hal_null.driver import Driver

__all__ = ["expose"]


def expose(driver: Driver, ids: Sequence[str]) -> Exposure:
    """The environment for these devices, in this order; with none, what hides them all.

    Set every variable that the vendor's runtime reads, so that none is inherited with another meaning.
    Raises GoneError for an unknown id.
    """
    library = driver.open() if ids else None
    uuids = [uuid_of(library, subject) for subject in ids] if library else []
    return Exposure({"NULL_VISIBLE_DEVICES": ",".join(uuids) or "none"})
