"""Where the dynamic loader would look for a library, looked at without loading anything.

For a backend's ``glance``, which must not miss what its worker would find: "might be here" may be wrong,
"is not here" may not. The places are those of ld.so(8); their order plays no part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["may_load"]

_CACHE = "etc/ld.so.cache"
_DEFAULT = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib")
# Folders for some kinds of processors, which older loaders look into. They nest; nobody has them any more.
_BY_PROCESSOR = ("tls", "haswell", "xeon_phi", "avx512_1", "x86_64")


def may_load(library: str, root: Path) -> bool:
    """Whether ``dlopen(library)`` might find it. False is certain, unless Python was built with search
    paths of its own. System directories and the loader's cache are those below ``root``."""
    if os.environ.get("LD_PRELOAD") or os.environ.get("LD_AUDIT"):
        return True  # any of these may bring it along, under whatever name
    if _in_this_process(library) or _in_cache(library, root):
        return True
    return any(_holds(folder, library) for folder in _folders(root))


def _in_this_process(library: str) -> bool:
    """Loaded from wherever: dlopen goes by the name, and a version may follow it in the file's."""
    stem = library.partition(".so")[0] + ".so"
    try:
        return stem.encode() in Path("/proc/self/maps").read_bytes()
    except OSError:
        return True


def _in_cache(library: str, root: Path) -> bool:
    """Names in the cache end with a NUL."""
    try:
        return library.encode() + b"\0" in (root / _CACHE).read_bytes()
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _folders(root: Path) -> Iterator[str]:
    if path := os.environ.get("LD_LIBRARY_PATH"):
        yield from path.replace(";", ":").split(":")
    for prefix in {sys.prefix, sys.base_prefix, sys.base_exec_prefix}:  # the run path of conda's Python
        yield f"{prefix}/lib"
    for folder in _DEFAULT:
        yield str(root / folder)
    for folder in ("lib", "usr/lib"):  # Debian's: lib/x86_64-linux-gnu
        yield from map(str, (root / folder).glob("*-linux-*"))


def _holds(folder: str, library: str) -> bool:
    if "$" in folder:  # $ORIGIN and the like
        return True
    here = Path(folder or ".")
    if os.path.lexists(here / library) or any((here / word).is_dir() for word in _BY_PROCESSOR):
        return True
    return any(here.glob(f"glibc-hwcaps/*/{library}"))
