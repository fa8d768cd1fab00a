"""The contract a vendor implements, its errors, and the table from which most of a backend is made."""

from hal.backend.contract import (
    EVERY_COST,
    Ages,
    Backend,
    Cost,
    Describes,
    Exposes,
    Group,
    HoldsMemory,
    Limits,
    ListsProcesses,
    SharesUnits,
    Watches,
)
from hal.backend.errors import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.backend.table import Answer, Call, Figure, Value, read_table

__all__ = [
    "EVERY_COST",
    "Ages",
    "Answer",
    "Backend",
    "Call",
    "Cost",
    "Describes",
    "Exposes",
    "Figure",
    "GoneError",
    "Group",
    "HalError",
    "HoldsMemory",
    "Limits",
    "ListsProcesses",
    "SharesUnits",
    "StateError",
    "TemporaryError",
    "UnsupportedError",
    "Value",
    "Watches",
    "read_table",
]
