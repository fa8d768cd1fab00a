"""What the bench's daemon stands on: a daemon over a simulated cluster, which has nothing to bind.

    python -m hal.scheduler.bench.ground DIRECTORY NODES DEVICES
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from hal.enforce.ledger import DeviceUse
from hal.model import Enforcement, Rung
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.lease import Lease
from hal.scheduler.daemon import Daemon
from hal.scheduler.places import Places

_GIB = 1 << 30


class NoSlices:
    """Takes the place of Slices: everything is granted, and nothing is made."""

    def __init__(self, devices: int) -> None:
        self._facts = NodeFacts(
            "local",
            64_000,
            512 * _GIB,
            tuple(
                DeviceFacts(
                    f"{vendor}:{n}", vendor, "simulated", (80 if n % 2 else 192) * _GIB,
                    attributes={"memory_held_by": "guard", "compute_held_by": "guard"},
                )
                for n in range(devices)
                for vendor in ("nvidia" if n % 2 else "amd",)
            ),
        )

    def create(self, lease: Lease) -> None: ...
    def remove(self, lease: Lease) -> None: ...
    def sweep(self) -> None: ...
    def reap(self) -> None: ...
    def close(self) -> None: ...
    def correct_shares(self, now: float) -> None: ...
    def adopt(self, lease: Lease) -> bool:
        return True
    def stop(self, lease: Lease, with_signal: int) -> bool:
        return True
    def environments(self, lease: Lease) -> list[dict[str, str]]:
        return [{} for _ in lease.parts]
    def enforcement(self, lease: Lease) -> Enforcement:
        return Enforcement(Rung.NONE, Rung.NONE)
    def use(self, lease: Lease) -> list[DeviceUse]:
        return []
    def facts(self) -> NodeFacts:
        return self._facts


def _end_with_parent() -> None:
    """The bench holds our standard input open for as long as it lives."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    places = Places(Path(sys.argv[1]))
    daemon = Daemon(NoSlices(int(sys.argv[3])), places)
    if len(sys.argv) > 4:
        import cProfile
        profile = cProfile.Profile()
        profile.enable()
        daemon.run(lambda: print("ready", flush=True))
        profile.disable()
        profile.dump_stats(sys.argv[4])
    else:
        daemon.run(lambda: print("ready", flush=True))
