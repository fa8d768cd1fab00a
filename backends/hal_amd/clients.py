"""Who has a card open: /proc/<pid>/fdinfo, where amdgpu says what each client of it holds.

The keys are the kernel's, "DRM client usage stats". A program may have one client open many times; only
what may be read is seen: with no privilege, this user's own programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["memory"]

_NODE = "/dev/dri/"
_MOST = 1 << 50  # bytes; more is no measurement
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}
# The newest kernels say what is resident; those before them only this one.
_KEYS = ("drm-resident-vram", "drm-memory-vram")


def memory(root: Path) -> dict[str, dict[int, int | None]]:
    """Bytes of VRAM by PCI address and process; None where a client does not say."""
    found: dict[str, dict[int, dict[str, int | None]]] = {}
    for pid, info in _open_nodes(root):
        facts = _facts(info)
        if facts.get("drm-driver") != "amdgpu" or "drm-pdev" not in facts:
            continue
        clients = found.setdefault(facts["drm-pdev"].lower(), {}).setdefault(pid, {})
        clients[facts.get("drm-client-id", info.name)] = _bytes(facts)
    return {bdf: {pid: _sum(list(c.values())) for pid, c in pids.items()} for bdf, pids in found.items()}


def _open_nodes(root: Path) -> Iterator[tuple[int, Path]]:
    """The fdinfo files of descriptors that are DRM's."""
    for process in root.glob("proc/[0-9]*"):
        if not (process.name.isascii() and process.name.isdigit()):
            continue
        try:
            descriptors = list((process / "fd").iterdir())
        except OSError:  # another user's, or it has ended
            continue
        for descriptor in descriptors:
            try:
                if str(descriptor.readlink()).startswith(_NODE):
                    yield int(process.name), process / "fdinfo" / descriptor.name
            except OSError:
                continue


def _facts(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _bytes(facts: dict[str, str]) -> int | None:
    for key in _KEYS:
        number, _, unit = facts.get(key, "").partition(" ")
        if number.isascii() and number.isdigit() and len(number) < 20 and unit in _UNITS:
            value = int(number) * _UNITS[unit]
            return value if value <= _MOST else None
    return None


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
