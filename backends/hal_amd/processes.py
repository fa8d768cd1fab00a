"""Who uses it: AMD SMI's process list of each card."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hal.backend import TemporaryError
from hal.model import Process, Status
from hal_amd import conv, errors
from hal_amd.device import Cards

__all__ = ["processes"]


def processes(cards: Cards, root: Path, ids: Sequence[str], deadline: float) -> list[Process]:
    """Every process on the devices named. Raises TemporaryError when the deadline passes before the last."""
    found: list[Process] = []
    for subject in ids:
        card, part = cards.find(subject)
        processor = card.first if part is None else card.processors[part]
        if time.monotonic() >= deadline:
            raise TemporaryError(f"processes of {subject}: not reached before the deadline")
        try:
            entries = cards.smi.amdsmi_get_gpu_process_list(processor)
        except Exception as failure:
            if errors.code_of(failure) in errors.INVALID_HANDLE:
                cards.forget()
            if errors.status(failure)[0] is Status.UNSUPPORTED:
                continue
            raise errors.error(failure, subject) from failure
        found.extend(_process(root, subject, entry) for entry in entries if isinstance(entry, dict))
    return found


def _process(root: Path, subject: str, entry: dict[str, Any]) -> Process:
    used = _vram(entry)
    status = Status.UNSUPPORTED if used is None else Status.OK
    return Process(subject, int(entry["pid"]), _name(root, entry), used, status)


def _vram(entry: dict[str, Any]) -> int | None:
    """Bytes of VRAM. Libraries that do not split the sum by kind leave every part at 0."""
    parts = entry.get("memory_usage") or {}
    split = any(conv.number(part) for part in parts.values())
    used = conv.number(parts.get("vram_mem") if split else entry.get("mem"))
    return None if used is None else int(used)


def _name(root: Path, entry: dict[str, Any]) -> str | None:
    """The kernel's name of the process, as for other vendors; AMD SMI's own where /proc does not say."""
    try:
        return (root / "proc" / str(entry["pid"]) / "comm").read_text(errors="replace").strip() or None
    except OSError:
        return conv.text(entry.get("name"))
