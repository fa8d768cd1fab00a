"""The scheduler's state on disk, and how it came about (docs/store.md)."""

from hal.scheduler.store import journal
from hal.scheduler.store.file import NotDurable, Store

__all__ = ["NotDurable", "Store", "journal"]
