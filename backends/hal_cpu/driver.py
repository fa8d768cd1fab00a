"""Finding the kernel's files. Every path is below `root`."""

from __future__ import annotations

from pathlib import Path

from hal.model import Probe, ProbeState

__all__ = ["probe", "sensors", "zones"]


def probe(root: Path) -> Probe:
    try:
        (root / "proc/meminfo").read_bytes()
        (root / "proc/stat").read_bytes()
    except FileNotFoundError as failure:
        return Probe(ProbeState.BLOCKED, f"no {failure.filename}", "mount /proc")
    except OSError as failure:
        return Probe(ProbeState.BROKEN, str(failure))
    return Probe(ProbeState.READY)


def zones(root: Path) -> list[Path]:
    """RAPL's folders, one per package; the zones inside a package (core, dram) are left out."""
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))  # AMD's CPUs have the same name
    return [folder for folder in folders if _text(folder / "name").startswith("package")]


def sensors(root: Path) -> list[Path]:
    """The temperature files of the CPU packages: the first of each chip is the package's."""
    names = sorted((root / "sys/class/hwmon").glob("hwmon*/name"))
    return [name.with_name("temp1_input") for name in names if _text(name) in ("coretemp", "k10temp")]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
