"""Curves of allocation against arrived load, as a picture. Needs matplotlib: the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hal.backend import UnsupportedError
from hal.scheduler.simulator.series import Series

__all__ = ["check", "draw"]


def check(path: Path) -> None:
    """Whether the picture can be made, before anything is run. UnsupportedError says what is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UnsupportedError("--plot needs matplotlib; type: pip install 'gpu-hal[plot]'") from None
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UnsupportedError(f"'{path}' is no picture's name: it has to end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UnsupportedError(f"there is no folder '{path.parent}' to write the picture to")


def draw(path: Path, title: str, series: Sequence[Series]) -> None:
    """Write the curves to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for one in series:
        label = f"{one.policy}: {one.allocation_mean:.2f} %"
        axes.plot(
            [p.arrived for p in one.curve], [p.allocation for p in one.curve], label=label, linewidth=1.6
        )
    end = max(one.curve[-1].arrived for one in series)
    axes.plot(
        [0, 100, max(end, 100)], [0, 100, 100], color="0.7", linestyle=":", label="all that arrives", zorder=0
    )
    start = 70 if end > 90 else 0
    axes.set(xlim=(start, end), ylim=(start, 101), title=title)
    axes.set(xlabel="arrived load, % of the cluster's GPUs", ylabel="allocated, % of the cluster's GPUs")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
