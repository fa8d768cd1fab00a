"""Finding, loading and starting AMD SMI, and saying what is in the way.

amdsmi loads its library when it is imported; where that fails it prints to stdout and raises KeyError,
AttributeError or OSError. So the library is looked for first, and nothing said on the way is shown.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hal.backend import StateError
from hal.model import Probe, ProbeState
from hal_amd import errors
from hal_amd.device import Cards
from hal_amd.glance import LIBRARY, absent, on_bus, places
from hal_amd.sysfs import Sysfs
from hal_amd.version import loaded_library, versions

__all__ = ["Driver"]

_log = logging.getLogger(__name__)


class _UnusableError(Exception):
    """AMD SMI cannot be used, and `probe` says why. Stays in this file."""

    def __init__(
        self,
        state: ProbeState,
        reason: str,
        fix: str = "",
        *,
        code: int | None = None,
        missing: bool = False,
    ) -> None:
        super().__init__(f"{reason}; {fix}" if fix else reason)
        self.probe = Probe(state, reason, fix)
        self.code = code
        self.missing = missing  # AMD SMI is: the kernel may be well


class Driver:
    """AMD SMI, loaded at first need and initialised between `open` and `close`."""

    def __init__(self, root: Path, library: str | None) -> None:
        self._root = root
        self._library = library
        self._sysfs = Sysfs(root)
        self._without = False  # AMD SMI is missing, and the kernel's files are used until `close`
        self._cards: Cards | None = None
        self._files: dict[Path, tuple[int, int] | None] = {}  # where the library in use was found

    def open(self) -> Cards | Sysfs:
        """AMD SMI, initialised, and its cards; the kernel's files where AMD SMI is missing and they show
        any. Raises StateError with what to do."""
        if self._without:
            return self._sysfs
        if self._cards is None:
            try:
                self._cards = Cards(self._start())
            except _UnusableError as unusable:
                self._without = unusable.missing and self._sysfs.present()
                if self._without:
                    return self._sysfs
                raise StateError(str(unusable), vendor_code=unusable.code) from unusable
        return self._cards

    def close(self) -> None:
        cards, self._cards, self._without = self._cards, None, False
        if cards is not None:
            _shut_down(cards.smi)

    def lost(self) -> None:
        """Somebody else in this process has shut AMD SMI down: the next `open` starts it again."""
        self._cards = None

    def outdated(self) -> str:
        """Why a new process has to take over; empty while the library in use is the one on disk.

        A driver's upgrade puts another file in its place. The old one stays loaded, and its answers go
        wrong once the kernel driver is the new one; no process can load the new one beside it.
        """
        changed = [str(path) for path, file in self._files.items() if _file(path) not in (file, None)]
        return f"{changed[0]} was replaced while it was in use" if changed else ""

    def probe(self) -> Probe:
        smi = None
        try:
            smi = self._start() if self._cards is None else self._cards.smi.module
            count = len(smi.amdsmi_get_processor_handles())
            note = versions(smi).mismatch
        except _UnusableError as unusable:
            return self._reduced(unusable) if unusable.missing else unusable.probe
        except Exception as failure:  # probe never raises
            return Probe(ProbeState.BROKEN, f"amdsmi_get_processor_handles: {failure}")
        finally:
            if smi is not None and self._cards is None:
                _shut_down(smi)
        if count == 0:
            return Probe(ProbeState.ABSENT, "the AMD driver is loaded and shows no GPU")
        return Probe(ProbeState.READY, note, "install the amdsmi that came with ROCm" if note else "")

    def _reduced(self, unusable: _UnusableError) -> Probe:
        """Less than AMD SMI would say is more than nothing."""
        if not self._sysfs.present():
            return unusable.probe
        reason = f"reduced to what the kernel's files say: {unusable.probe.reason}"
        return Probe(ProbeState.READY, reason, unusable.probe.fix or "install amd-smi-lib (ROCm)")

    def _start(self) -> Any:
        library = self._find()
        smi = _wrapper(library)
        if not self._files and (loaded := loaded_library()) is not None:
            files = (Path(library).absolute(), loaded, loaded.with_name(LIBRARY),
                     self._root / "opt/rocm/lib" / LIBRARY)  # fmt: skip
            self._files = {path: _file(path) for path in files}
        try:
            with _quiet():
                smi.amdsmi_init()
        except Exception as failure:
            raise self._init_failed(failure) from failure
        return smi

    def _find(self) -> str:
        """The name under which the library loads."""
        names = [self._library or LIBRARY]
        if self._library is None:
            names += places(self._root)
        for name in names:
            try:
                with _quiet():
                    ctypes.CDLL(name)
                return name
            except OSError as failure:
                # A missing library the file itself needs is named first instead: that one is broken.
                if not str(failure).startswith(f"{name}: cannot open shared object file"):
                    raise _UnusableError(ProbeState.BROKEN, f"{name} does not load: {failure}") from failure
        if on_bus(self._root):
            reason = f"an AMD GPU is on the PCI bus but {names[0]} cannot be loaded"
            raise _UnusableError(ProbeState.BLOCKED, reason, "install amd-smi-lib (ROCm)", missing=True)
        nothing = absent(names[0])
        raise _UnusableError(nothing.state, nothing.reason, nothing.fix, missing=True)

    def _init_failed(self, failure: Exception) -> _UnusableError:
        code = errors.code_of(failure)
        state, reason, fix = ProbeState.BROKEN, str(errors.error(failure, "amdsmi_init")), ""
        if code == errors.DRIVER_NOT_LOADED and not on_bus(self._root):
            state, reason = ProbeState.ABSENT, "the AMD driver is not loaded, and no GPU is on the PCI bus"
        elif code == errors.DRIVER_NOT_LOADED:
            state, fix = ProbeState.BLOCKED, "load the kernel driver: modprobe amdgpu"
        elif code == errors.NO_PERMISSION:
            state, fix = ProbeState.BLOCKED, "add this user to the groups render and video"
        return _UnusableError(state, reason, fix, code=code)


def _wrapper(library: str) -> Any:
    """The module amdsmi, bound to this library: the one installed beside it, else the one on sys.path."""
    if "amdsmi" in sys.modules:
        return sys.modules["amdsmi"]
    failure: Exception | None = None
    for folder in (_beside(), None):
        try:
            with _quiet(), _found(library), _first_on_path(folder):
                return importlib.import_module("amdsmi")
        except Exception as raised:
            for name in [name for name in sys.modules if name.partition(".")[0] == "amdsmi"]:
                del sys.modules[name]
            failure = raised
    fix = "pip install 'gpu-hal[amd]'"
    if isinstance(failure, ModuleNotFoundError):
        reason = "the Python module amdsmi is missing"
        raise _UnusableError(ProbeState.BLOCKED, reason, fix, missing=True) from failure
    reason = f"the Python module amdsmi does not fit {library}: {type(failure).__name__}: {failure}"
    fix = "install the amdsmi that came with ROCm"
    raise _UnusableError(ProbeState.BLOCKED, reason, fix, missing=True) from failure


def _beside() -> str | None:
    """Where ROCm keeps the wrapper that belongs to the library that is now loaded."""
    loaded = loaded_library()
    if loaded is None:
        return None
    folder = loaded.parent.parent / "share" / "amd_smi"
    return str(folder) if (folder / "amdsmi" / "__init__.py").exists() else None


def _file(path: Path) -> tuple[int, int] | None:
    """Which file is there now; none in the middle of an upgrade."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _shut_down(smi: Any) -> None:
    try:
        with _quiet():
            smi.amdsmi_shut_down()
    except Exception as failure:  # the driver may be gone by now; there is nothing to give back
        _log.debug("amdsmi_shut_down: %s", failure)


@contextmanager
def _first_on_path(folder: str | None) -> Iterator[None]:
    saved = list(sys.path)
    if folder is not None:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = saved


@contextmanager
def _found(library: str) -> Iterator[None]:
    """Makes amdsmi load `library`; it has an order of its own, and no way to be told."""
    real = ctypes.CDLL

    def load(name: Any, *arguments: Any, **options: Any) -> ctypes.CDLL:
        return real(library if LIBRARY in str(name) else name, *arguments, **options)

    ctypes.CDLL = load  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        ctypes.CDLL = real  # type: ignore[misc]


@contextmanager
def _quiet() -> Iterator[None]:
    """Sends what Python and C write to stdout and stderr to /dev/null."""
    libc = ctypes.CDLL(None)
    saved: list[tuple[int, int]] = []
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None in a process without a console
        stream.flush()
    libc.fflush(None)
    with open(os.devnull, "w") as null:  # noqa: PTH123
        for fd in (1, 2):
            try:
                saved.append((fd, os.dup(fd)))
            except OSError:  # closed: nothing can be written there
                continue
            os.dup2(null.fileno(), fd)
        streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = null
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            libc.fflush(None)
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)
