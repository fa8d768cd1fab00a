"""One node, as the scheduler sees it."""

from __future__ import annotations

from hal.enforce.ledger import DeviceUse
from hal.scheduler.answers import Address
from hal.scheduler.core.facts import NodeFacts

__all__ = ["Node"]


class Node:
    """``address`` None: the scheduler's own, or one that has not joined."""

    def __init__(self, id: str, since: float) -> None:
        self.id = id
        self.address: Address | None = None
        self.facts: NodeFacts | None = None
        self.heard = since  # seconds on the monotonic clock
        self.lost_since: float | None = None
        self.told = 0.0  # seconds after it was heard by which it has stopped: the most that it may go by
        self.tells = 0.0  # the same, as it was last answered: it goes by it once it beats again
        self.joined = float("-inf")  # when its last join was sent, on its own clock
        self.boot = ""
        self.version = ""
        self.labels: dict[str, str] = {}
        self.use: dict[str, list[DeviceUse]] = {}
        self.leases: set[str] = set()

    @property
    def prefix(self) -> str:
        """What stands before the ids of its devices, which may be the same as those of other nodes."""
        return f"{self.id}/"
