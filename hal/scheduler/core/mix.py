"""The typical mix of tasks, learned from what arrives."""

from __future__ import annotations

from collections.abc import Hashable

from hal.scheduler.core.fleet import Shape

__all__ = ["Mix"]


class Mix:
    """How often each class of task has arrived."""

    def __init__(self, classes: int = 192) -> None:
        self.limit = classes
        self.epoch = 0  # rises when what is expected has changed
        self.weights: dict[tuple[Shape, Hashable], float] = {}

    def arrived(self, shape: Shape, eligible: Hashable) -> None:
        """Count a task that wants ``shape`` where the mask of key ``eligible`` holds."""
        key = (shape, eligible)
        self.weights[key] = self.weights.get(key, 0.0) + 1.0
