"""The kernel's texts and units in the model's."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Jiffies", "cpu_list", "energy_joules", "jiffies", "meminfo", "model_name"]


class Jiffies(NamedTuple):
    """Clock ticks of all CPUs since boot."""

    busy: int
    total: int


def meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes; the kernel writes kB and means KiB."""
    figures: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if number.isdigit():
            figures[name] = int(number) * (1024 if unit == "kB" else 1)
    return figures


def jiffies(text: str) -> Jiffies:
    """The first line of /proc/stat. Guest time is in user time already; waiting for I/O is not work.

    Raises ValueError when it is none.
    """
    words = text.partition("\n")[0].split()
    if words[:1] != ["cpu"] or len(words) < 5:
        raise ValueError("no line `cpu` at the head of /proc/stat")
    ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal
    idle = sum(ticks[3:5])
    return Jiffies(busy=sum(ticks) - idle, total=sum(ticks))


def cpu_list(text: str) -> int:
    """How many CPUs "0-3,8" names. Raises ValueError."""
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def model_name(cpuinfo: str) -> str | None:
    """The first "model name" of /proc/cpuinfo; ARM kernels write none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return None


def energy_joules(before: int, after: int, end: int) -> float:
    """Joules between two readings of a microjoule counter that starts again after `end`."""
    return (after - before if after >= before else after + end - before) / 1_000_000
