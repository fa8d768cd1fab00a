"""The compiled parts of hal: the ledger's binding, the guard, the stand-in drivers."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from hal_native._native import ffi, lib

__all__ = ["drivers_directory", "ffi", "guard_library", "lib", "program"]


def _installed(*parts: str) -> Path:
    # An editable install keeps compiled files elsewhere than this one: only the loader knows where.
    found = files("hal_native").joinpath(*parts)
    return Path(str(found))


@cache
def guard_library() -> Path:
    """The shared object that is preloaded into a slice's programs."""
    return _installed("libhalguard.so")


def drivers_directory() -> Path:
    """The folder of stand-in drivers."""
    return _installed("drivers", "libcuda.so.1").parent


def program(name: str) -> Path:
    """A small compiled program that comes with hal: ``hal-allocate``."""
    return _installed("programs", name)
