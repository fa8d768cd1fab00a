"""What puts a program under the guard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hal_native import guard_library

__all__ = ["guard_environment"]


def guard_environment(ledger: Path, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that make a program, and all it starts, draw device memory from this ledger.

    A guard rail, not a wall: a program that clears its environment or is linked statically leaves it.
    """
    others = [part for part in inherited.get("LD_PRELOAD", "").split(":") if part]
    guard = str(guard_library())
    return {
        "HAL_SLICE": str(ledger),
        "LD_PRELOAD": ":".join([guard, *(other for other in others if other != guard)]),
    }
