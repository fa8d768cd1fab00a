"""The first look, at files only: whether it is worth a process to load the library in.

It is optional, runs in the caller's own process, and must be cheap to import: it loads no library. Here
you look for your library's file (``hal.backend.loader.may_load``) and for your devices below ``root``, and
say what is absent only where `probe` would say it, too.
"""

from __future__ import annotations

import os

from hal.model import Probe, ProbeState

__all__ = ["absent", "enabled", "glance"]


def glance() -> Probe | None:
    """That there is nothing here; None where there might be."""
    return None if enabled() else absent()


def enabled() -> bool:
    return os.environ.get("HAL_NULL") == "1"


def absent() -> Probe:
    return Probe(ProbeState.ABSENT, "the imaginary accelerator is switched off", "set HAL_NULL=1")
