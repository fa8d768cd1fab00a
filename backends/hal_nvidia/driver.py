"""Finding, loading and starting NVML, and saying what is in the way."""

from __future__ import annotations

import ctypes
import importlib
import logging
import warnings
from pathlib import Path
from typing import Any

from hal.backend import StateError
from hal.model import Probe, ProbeState
from hal_nvidia import errors
from hal_nvidia.glance import LIBRARY, absent, on_bus

__all__ = ["Driver"]

_log = logging.getLogger(__name__)


class _UnusableError(Exception):
    """NVML cannot be used, and `probe` says why. Stays in this file."""

    def __init__(self, state: ProbeState, reason: str, fix: str = "", code: int | None = None) -> None:
        super().__init__(f"{reason}; {fix}" if fix else reason)
        self.probe = Probe(state, reason, fix)
        self.code = code


class Driver:
    """NVML, loaded at first need and initialised between `open` and `close`."""

    def __init__(self, root: Path, library: str | None) -> None:
        self._root = root
        self._library = library
        self._nvml: Any = None  # untyped, and absent on most machines

    def open(self) -> Any:
        """The pynvml module with NVML initialised. Raises StateError with what to do."""
        if self._nvml is None:
            try:
                self._nvml = self._start()
            except _UnusableError as unusable:
                raise StateError(str(unusable), vendor_code=unusable.code) from unusable
        return self._nvml

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is None:
            return
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError as failure:  # the driver may be gone by now; there is nothing to give back
            _log.debug("nvmlShutdown: %s", failure)

    def probe(self) -> Probe:
        was_open = self._nvml is not None
        try:
            if not was_open:
                self._nvml = self._start()
            count = self._nvml.nvmlDeviceGetCount()
        except _UnusableError as unusable:
            return unusable.probe
        except Exception as failure:  # probe never raises
            return Probe(ProbeState.BROKEN, f"nvmlDeviceGetCount: {failure}")
        finally:
            if not was_open:
                self.close()
        if count == 0:
            return Probe(ProbeState.ABSENT, "the NVIDIA driver is loaded and shows no GPU")
        return Probe(ProbeState.READY)

    def _start(self) -> Any:
        library = self._load()
        nvml = _wrapper()
        if self._library is not None:
            nvml.nvmlLib = library  # pynvml knows one name only, and keeps a library that is there
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as failure:
            raise self._init_failed(failure) from failure
        return nvml

    def _load(self) -> ctypes.CDLL:
        name = self._library or LIBRARY
        try:
            return ctypes.CDLL(name)
        except OSError as failure:
            # A missing library the file itself needs is named first instead: that one is broken.
            if not str(failure).startswith(f"{name}: cannot open shared object file"):
                raise _UnusableError(ProbeState.BROKEN, f"{name} does not load: {failure}") from failure
        if on_bus(self._root):
            raise _UnusableError(
                ProbeState.BLOCKED,
                f"an NVIDIA GPU is on the PCI bus but {name} cannot be loaded",
                "install the NVIDIA driver; in a container, use the NVIDIA container toolkit",
            )
        nothing = absent(name)
        raise _UnusableError(nothing.state, nothing.reason, nothing.fix)

    def _init_failed(self, failure: Exception) -> _UnusableError:
        code = errors.code_of(failure)
        state, reason, fix = ProbeState.BROKEN, f"nvmlInit: {failure}", ""
        if code == errors.DRIVER_NOT_LOADED and not on_bus(self._root):
            state, reason = ProbeState.ABSENT, "the NVIDIA driver is not loaded, and no GPU is on the PCI bus"
        elif code == errors.DRIVER_NOT_LOADED:
            state, fix = ProbeState.BLOCKED, "load the kernel driver: modprobe nvidia"
        elif code == errors.LIB_RM_VERSION_MISMATCH:
            state, fix = (
                ProbeState.BLOCKED,
                "reload the kernel driver, or reboot: it is older than the library",
            )
        elif code == errors.NO_PERMISSION:
            state, fix = ProbeState.BLOCKED, "give this user access to /dev/nvidia*"
        return _UnusableError(state, reason, fix, code)


def _wrapper() -> Any:
    """The module pynvml, when it is nvidia-ml-py's."""
    fix = "pip install nvidia-ml-py"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nvml = importlib.import_module("pynvml")
    except ImportError as failure:
        raise _UnusableError(ProbeState.BLOCKED, "the Python module pynvml is missing", fix) from failure
    except Exception as failure:
        raise _UnusableError(ProbeState.BLOCKED, f"import pynvml: {failure}", fix) from failure
    # nvidia-ml-py is one file; the abandoned distribution "pynvml" is a package.
    if hasattr(nvml, "__path__") or not hasattr(nvml, "NVMLError"):
        fix = "pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py"
        raise _UnusableError(ProbeState.BLOCKED, "the Python module pynvml is not NVIDIA's", fix)
    return nvml
