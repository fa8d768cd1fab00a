"""Which library the wrapper was written for, which one it got, and what must not be asked when they differ.

A library of another major version has other structures. One that writes more than the wrapper made room for
ends the process; one that writes its fields elsewhere gives figures that nobody measured. So what a call
would write is known before it is made.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hal_amd import conv
from hal_amd.ask import ask
from hal_amd.glance import LIBRARY

__all__ = ["Versions", "loaded_library", "versions"]


_WRITTEN_FOR = {
    "6.2": 24,
    "6.3": 24,
    "6.4": 25,
    "7.0": 26,
    "7.1": 26,
}  # the wrapper's release: the library's major
_NEWEST = 27  # what comes after it is not known here
_SWAPPED = 26  # from here on PCIE is 1 and XGMI 2, before it was the other way round

# By call: the structure that it writes, and its size in bytes from a major version on. As the ctypes of
# amdsmi 6.3.3, 6.4.3 and 7.0.2 have them, and for 27 as seen (27.1 writes past the end of 7.0.2's).
_WRITES: dict[str, tuple[str, dict[int, int]]] = {
    "amdsmi_get_gpu_asic_info": ("amdsmi_asic_info_t", {24: 456, 25: 896}),
    "amdsmi_get_gpu_driver_info": ("amdsmi_driver_info_t", {24: 192, 25: 768}),
    "amdsmi_get_gpu_metrics_info": ("amdsmi_gpu_metrics_t", {24: 1832, 25: 2368, 26: 4544, 27: 4720}),
    "amdsmi_get_gpu_process_list": ("amdsmi_proc_info_t", {24: 224, 25: 704}),
    "amdsmi_get_power_info": ("amdsmi_power_info_t", {24: 68, 25: 40, 26: 192}),
    "AmdSmiEventReader": ("amdsmi_evt_notification_data_t", {24: 112, 26: 272}),
}


class Versions(NamedTuple):
    """Major versions; None where nothing says so."""

    wrapper: int | None
    library: int | None
    release: str  # of the wrapper
    rooms: Mapping[str, int] = {}  # sizes of the wrapper's structures, as far as it shows them

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
        return {call: reason for call in _WRITES if not self._fits(call)}

    def _fits(self, call: str) -> bool:
        """Whether the wrapper has made room for just what the library writes."""
        structure, sizes = _WRITES[call]
        room = self.rooms.get(structure, _size(sizes, self.wrapper))
        return room is not None and room == _size(sizes, self.library)

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


def _size(sizes: dict[int, int], major: int | None) -> int | None:
    """What a library of this major version writes; None where that is not known."""
    if major is None or not min(sizes) <= major <= _NEWEST:
        return None
    return sizes[sorted(sizes)[bisect_right(sorted(sizes), major) - 1]]


def versions(smi: Any) -> Versions:
    major = _major(smi)
    release = _release(smi)
    rooms = dict(_rooms(smi))
    # One that lies beside its library belongs to it, whatever PyPI's copy says of itself.
    wrapper = major if _came_together(smi) else _WRITTEN_FOR.get(".".join(release.split(".")[:2]))
    return Versions(_by_size(rooms) if wrapper is None else wrapper, major, release, rooms)


def _major(smi: Any) -> int | None:
    """The library's: the first of the numbers that it writes, which 24 and 25 call the year.

    The wrappers name those numbers differently, and one of 25 takes the second of library 26 for the major.
    """
    wrapper = getattr(smi, "amdsmi_wrapper", None)
    try:
        said = wrapper.amdsmi_version_t()  # type: ignore[union-attr]
        if wrapper.amdsmi_get_lib_version(ctypes.byref(said)) == 0:  # type: ignore[union-attr]
            return int.from_bytes(bytes(said)[:4], "little")
    except (AttributeError, TypeError, ctypes.ArgumentError):  # not the wrapper as it is known
        pass
    words = ask(smi, "amdsmi_get_lib_version") or {}
    first = conv.number(words.get("year", words.get("major")))
    return None if first is None else int(first)


def _rooms(smi: Any) -> Mapping[str, int]:
    wrapper = getattr(smi, "amdsmi_wrapper", None)
    kinds = {structure: getattr(wrapper, structure, None) for structure, _ in _WRITES.values()}
    return {
        structure: ctypes.sizeof(kind)
        for structure, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure)
    }


def _by_size(rooms: Mapping[str, int]) -> int | None:
    """gpu_metrics grows with each major version."""
    structure, sizes = _WRITES["amdsmi_get_gpu_metrics_info"]
    return {size: major for major, size in sizes.items()}.get(rooms.get(structure, 0))


def _release(smi: Any) -> str:
    said = getattr(smi, "__version__", None)
    if isinstance(said, str) and said:
        return said
    import importlib.metadata  # takes 12 ms to import

    try:
        return importlib.metadata.version("amdsmi")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _came_together(smi: Any) -> bool:
    """Whether the wrapper is the one that ROCm put beside the library that is in use."""
    file = Path(str(getattr(smi, "__file__", "")))
    if file.parts[-4:-1] != ("share", "amd_smi", "amdsmi"):
        return False
    library = loaded_library()
    return library is not None and library.parent.parent.resolve() == file.parents[3].resolve()


def loaded_library() -> Path | None:
    """The file of the library that is in this process."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in maps:
        path = Path(line.split(maxsplit=5)[-1].removesuffix(" (deleted)"))
        if path.name.startswith(LIBRARY):
            return path
    return None
