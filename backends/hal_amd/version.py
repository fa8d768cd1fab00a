"""Which library the wrapper was written for, which one it got, and what must not be asked when they differ.

A library of another major version has other structures. One that writes more than the wrapper made room for
ends the process; one that writes its fields elsewhere gives figures that nobody measured.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hal_amd import conv
from hal_amd.ask import ask

__all__ = ["Versions", "versions"]

_WRITTEN_FOR = {"6.2": 24, "6.3": 24, "6.4": 25, "7.0": 26}  # the wrapper's release: the library's major
_CHANGED = ("amdsmi_get_gpu_metrics_info",)  # by every major version
_CHANGED_AFTER_24 = ("amdsmi_get_power_info",)
_SWAPPED = 26  # from here on PCIE is 1 and XGMI 2, before it was the other way round


class Versions(NamedTuple):
    """Major versions; None where nothing says so."""

    wrapper: int | None
    library: int | None
    release: str  # of the wrapper

    @property
    def differ(self) -> bool:
        return None not in (self.wrapper, self.library) and self.wrapper != self.library

    @property
    def mismatch(self) -> str:
        """What to say when they were not made for one another; empty when they were, or nobody knows."""
        if not self.differ:
            return ""
        wants = f"amdsmi {self.release} is for major version {self.wrapper} of the library"
        return f"{wants}; this one is {self.library}"

    @property
    def refused(self) -> Mapping[str, str]:
        """The calls that must not be made, each with the reason. Not knowing is no reason to risk it."""
        if self.wrapper is not None and self.wrapper == self.library:
            return {}
        reason = self.mismatch or f"whether amdsmi {self.release} fits the library is not known"
        calls = _CHANGED + (_CHANGED_AFTER_24 if self.differ and 24 in self else ())
        return dict.fromkeys(calls, reason)

    def link(self, smi: Any, number: object) -> str:
        """A link type in the wrapper's words, "XGMI"; read as this library numbers them."""
        try:
            name = str(smi.AmdSmiLinkType(number).name).removeprefix("AMDSMI_LINK_TYPE_")
        except (AttributeError, ValueError):
            return "UNKNOWN"
        if self.wrapper is None or self.library is None:
            return name
        if (self.wrapper < _SWAPPED) != (self.library < _SWAPPED):
            return {"XGMI": "PCIE", "PCIE": "XGMI"}.get(name, name)
        return name


def versions(smi: Any) -> Versions:
    said = ask(smi, "amdsmi_get_lib_version") or {}
    library = conv.number(said.get("year", said.get("major")))  # up to 25 `major` is ROCm's own
    release = _release(smi)
    wrapper = _WRITTEN_FOR.get(".".join(release.split(".")[:2]))
    major = None if library is None else int(library)
    if wrapper is None and _came_together(smi):
        wrapper = major
    return Versions(wrapper, major, release)


def _release(smi: Any) -> str:
    said = getattr(smi, "__version__", None)
    if isinstance(said, str) and said:
        return said
    try:
        return importlib.metadata.version("amdsmi")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _came_together(smi: Any) -> bool:
    """Whether the wrapper is the one that ROCm put beside its library."""
    return Path(str(getattr(smi, "__file__", ""))).parts[-4:-1] == ("share", "amd_smi", "amdsmi")
