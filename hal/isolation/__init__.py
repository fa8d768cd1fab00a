"""Vendor libraries in processes of their own: what one does to itself, the others do not notice."""

from hal.backend import TemporaryError

__all__ = ["VendorLost"]


class VendorLost(TemporaryError):
    """The worker died or hung; it is started again after a pause."""
