"""Runs a command on an emulated machine, which ends with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hal.emulation.description import Description
from hal.emulation.state import write_state
from hal.emulation.tree import write_tree
from hal_native import drivers_directory

__all__ = ["emulated"]

_PREFIX = "hal-emulate-"


@contextlib.contextmanager
def emulated(description: Description, inherited: Mapping[str, str] = os.environ) -> Iterator[dict[str, str]]:
    """The environment in which programs find this machine, for as long as the ``with`` lasts.

    Everything about the machine is in one new directory, hal's own runtime directory included, so that
    it never meets a real one or another emulated one.
    """
    base = Path(tempfile.gettempdir())
    _sweep(base)
    directory = Path(tempfile.mkdtemp(prefix=".hal-", dir=base))
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Visible to the sweep of others only once it is locked.
        directory = directory.rename(base / f"{_PREFIX}{directory.name.removeprefix('.hal-')}")
        write_state(description, directory / "machine")
        write_tree(description, directory / "root")
        yield _environment(directory, inherited)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        lock.close()


def _environment(directory: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    libraries = [str(drivers_directory()), inherited.get("LD_LIBRARY_PATH", "")]
    return {
        **inherited,
        "HAL_EMULATED_MACHINE": str(directory / "machine"),
        "HAL_RUNTIME_DIR": str(directory / "run"),
        "HAL_STATE_DIR": str(directory / "run"),
        "HAL_NODE_DIR": str(directory / "node"),
        "HAL_ROOT": str(directory / "root"),
        "LD_LIBRARY_PATH": ":".join(path for path in libraries if path),
        # A real machine's own tools, were there any, are not those of this one.
        "ROCM_PATH": str(directory / "rocm"),
        "ROCM_HOME": str(directory / "rocm"),
    }


def _sweep(base: Path) -> None:
    """Remove machines whose command was killed before it could."""
    for directory in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if directory.stat().st_uid != os.geteuid():
                continue
            # Without its lock it is what an earlier sweep left, when a daemon on it was still ending.
            with (directory / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
