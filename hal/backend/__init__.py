"""The contract a vendor implements, its errors, and the table from which most of a backend is made."""

from hal.backend.contract import Backend, Exposes, Group, Limits, ListsProcesses
from hal.backend.errors import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.backend.table import Call, Figure, Value, read_table

__all__ = [
    "Backend",
    "Call",
    "Exposes",
    "Figure",
    "GoneError",
    "Group",
    "HalError",
    "Limits",
    "ListsProcesses",
    "StateError",
    "TemporaryError",
    "UnsupportedError",
    "Value",
    "read_table",
]
