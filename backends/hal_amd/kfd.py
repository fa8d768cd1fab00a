"""KFD, the kernel's compute driver: its nodes, and the processes that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Node", "name_of", "nodes"]

_UNITS = 1 << 16  # far more than a card has


class Node(NamedTuple):
    number: int
    gpu_id: int  # in the names of files below kfd/proc
    unique_id: int
    compute_units: int | None
    architecture: str | None


def nodes(root: Path) -> dict[str, Node]:
    """The GPUs by address. Of a divided card the first partition's node, with the units of all."""
    found: dict[str, Node] = {}
    every = root.glob("sys/class/kfd/kfd/topology/nodes/*")
    folders = [f for f in every if f.name.isascii() and f.name.isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name)):
        facts = _properties(folder / "properties")
        gpu_id = _whole_number(folder / "gpu_id")
        if not gpu_id or not facts.get("simd_count"):
            continue  # a processor
        simds, each = facts["simd_count"], facts.get("simd_per_cu") or 0
        units = simds // each if each and simds // each <= _UNITS else None
        unique = facts.get("unique_id", 0)
        gfx = _architecture(facts.get("gfx_target_version", 0))
        node = Node(int(folder.name), gpu_id, unique, units, gfx)
        bdf = next((at for at, known in found.items() if unique and known.unique_id == unique), None)
        if bdf is None:
            found[_address(facts)] = node
        elif units is not None and found[bdf].compute_units is not None:
            found[bdf] = found[bdf]._replace(compute_units=(found[bdf].compute_units or 0) + units)
    return found


def name_of(root: Path, pid: int) -> str | None:
    try:
        return (root / "proc" / str(pid) / "comm").read_text(errors="replace").strip() or None
    except OSError:
        return None


def _properties(path: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in path.read_text(errors="replace").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _is_number(pair[1])}
    except OSError:
        return {}


def _is_number(text: str) -> bool:
    """Of 64 bits, as the kernel prints them."""
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 1 << 64


def _whole_number(path: Path) -> int | None:
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if _is_number(text) else None


def _address(facts: dict[str, int]) -> str:
    """`location_id` is bus, device and function."""
    location = facts.get("location_id", 0)
    place = f"{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
    return f"{facts.get('domain', 0):04x}:{place}"


def _architecture(version: int) -> str | None:
    """90402 is gfx942, 90010 gfx90a."""
    if not 0 < version < 1_000_000:
        return None
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{stepping:x}"
