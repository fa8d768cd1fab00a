"""What the bench's daemon stands on: devices that are not there, of which a grant makes nothing.

python -m hal.scheduler.bench.ground DIRECTORY DEVICES
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from hal.enforce.ledger import DeviceUse
from hal.model import Enforcement, Rung
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.binding import Binding, BindOrder, Bound, Order, Unbound
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.daemon import Daemon
from hal.scheduler.jobs.spec import Ended
from hal.scheduler.places import Places

__all__ = ["NoAgent", "node_facts"]

_GIB = 1 << 30
_MADE = Bound([(0, {})], Enforcement(Rung.NONE, Rung.NONE))


def node_facts(node: str, devices: int, gib: int = 192) -> NodeFacts:
    """A node of that many devices, each with so much memory, and every second with less than half of it."""
    there = tuple(
        DeviceFacts(
            id=f"simulated:{number}",
            vendor="simulated",
            model="simulated",
            memory_bytes=(gib, gib * 5 // 12)[number % 2] * _GIB,
            attributes={"memory_held_by": "guard", "compute_held_by": "guard"},
        )
        for number in range(devices)
    )
    return NodeFacts(node, 64_000, 512 * _GIB, there)


class NoAgent(Agent):
    """A node that has every slice as soon as it is asked for it."""

    def __init__(self, devices: int) -> None:
        self.node = "local"
        self.term = 0
        self.launcher = None
        self._descriptor = os.eventfd(0)  # no job ever ends
        self._facts = node_facts(self.node, devices)

    def start(self) -> None: ...
    def forget(self) -> None: ...
    def close(self) -> None:
        os.close(self._descriptor)

    def allow(self, until: float) -> None: ...
    def turn(self, now: float) -> None: ...
    def acknowledge(self, ended: list[tuple[str, int]]) -> None: ...
    def keep(self, term: int, wanted: Mapping[str, int], now: float) -> list[str]:
        return []

    def take_over(self, binding: Binding) -> bool:
        return True

    def perform(self, order: Order, now: float) -> Bound | Unbound:
        return _MADE if isinstance(order, BindOrder) else Unbound(True)

    @property
    def busy(self) -> bool:
        return False

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def ended_runs(self) -> list[Ended]:
        return []

    def acknowledge_runs(self, ended: list[Ended]) -> None: ...

    def ended(self) -> list[tuple[str, int]]:
        return []

    def facts(self) -> NodeFacts:
        return self._facts

    def use(self, lease: str) -> list[DeviceUse]:
        return []


def _end_with_parent() -> None:
    """The bench holds our standard input open for as long as it lives."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(directory: str, devices: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    daemon = Daemon(NoAgent(devices), Places(Path(directory)))
    if named := os.environ.get("HAL_BENCH_PROFILE"):
        import cProfile

        with cProfile.Profile() as profile:
            daemon.run(lambda: print("ready", flush=True))
        profile.dump_stats(named)
    else:
        daemon.run(lambda: print("ready", flush=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
