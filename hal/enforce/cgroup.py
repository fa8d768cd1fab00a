"""A slice's control group: where the driver or the kernel itself holds its programs to a limit (cgroups(7),
version 2).

``dmem`` is the kernel's controller of device memory (Linux 6.14; regions of amdgpu and xe, such as
``drm/0000:03:00.0/vram0``): ``dmem.capacity`` at the root, ``dmem.max`` and ``dmem.current`` in each group.
NVML 615 takes the path of a group as the name of whom it limits (nvmlDeviceSetMemoryLimits_v1).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hal.backend import StateError

__all__ = ["Group", "Tree"]

_CONTROLLER = "dmem"


class Tree:
    """The groups that hal makes, below ``<root>/hal``. ``HAL_CGROUP_ROOT`` names another root."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(os.environ.get("HAL_CGROUP_ROOT", "/sys/fs/cgroup"))

    def unusable(self) -> str | None:
        """Why no group can be made here, in a few words; None: it can be tried."""
        if not (self.root / "cgroup.controllers").is_file():
            return f"{self.root} is not a cgroup v2 hierarchy"
        if not os.access(self.root, os.W_OK):
            return f"{self.root} may not be written to"
        return None

    def regions(self) -> dict[str, int]:
        """The regions of device memory that the kernel can limit, with their sizes in bytes."""
        try:
            lines = (self.root / "dmem.capacity").read_text().splitlines()
        except OSError:
            return {}
        return dict(_pairs(lines))

    def region_of(self, pci_address: str) -> str | None:
        """The region of a device at ``0000:03:00.0``, if there is exactly one of its own memory."""
        found = [name for name in self.regions() if name.startswith(f"drm/{pci_address}/vram")]
        return found[0] if len(found) == 1 else None

    def group(self, name: str) -> Group:
        return Group(self.root / "hal" / name)

    def make(self, name: str) -> Group:
        """A new group. Raises StateError when it cannot be made."""
        if (reason := self.unusable()) is not None:
            raise StateError(f"no control group can be made: {reason}")
        group = self.group(name)
        try:
            group.path.parent.mkdir(exist_ok=True)
            group.path.mkdir()
        except OSError as error:
            raise StateError(f"cannot make the control group {group.path}: {error.strerror}") from None
        for parent in (self.root, group.path.parent):
            with contextlib.suppress(OSError):  # a kernel without the controller: limit_region says so
                _write(parent / "cgroup.subtree_control", f"+{_CONTROLLER}")
        return group


class Group:
    """One group, whether it is there or not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def limit_region(self, region: str, limit_bytes: int) -> None:
        """Hold the group to so much of a region. Raises StateError when the kernel does not take it."""
        try:
            _write(self.path / "dmem.max", f"{region} {limit_bytes}\n")
        except OSError as error:
            raise StateError(f"the kernel did not take a limit for {region}: {error.strerror}") from None

    def used(self, region: str) -> int | None:
        """Bytes of a region that the group has now; None when the kernel does not say."""
        try:
            return dict(_pairs((self.path / "dmem.current").read_text().splitlines())).get(region)
        except OSError:
            return None

    def enter(self, pid: int) -> None:
        """Move a process in; what it starts from then on is in it, too. Raises StateError when it may not."""
        try:
            _write(self.path / "cgroup.procs", f"{pid}\n")
        except OSError as error:
            raise StateError(f"cannot move into the control group {self.path}: {error.strerror}") from None

    def kill(self) -> None:
        """Kill every process in it (Linux 5.14); one that is not there has none."""
        with contextlib.suppress(FileNotFoundError):
            _write(self.path / "cgroup.kill", "1")

    def has_processes(self) -> bool:
        """Whether any is in it that is not dead yet."""
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text().splitlines()
        except OSError:
            return False

    def remove(self) -> None:
        """Raises StateError while there are processes in it."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"cannot remove the control group {self.path}: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _pairs(lines: list[str]) -> list[tuple[str, int]]:
    """Lines of ``name number``; one with ``max`` or anything else in it has no number to tell."""
    found = []
    for line in lines:
        name, _, number = line.strip().rpartition(" ")
        if name and number.isascii() and number.isdigit():
            found.append((name, int(number)))
    return found
