"""What installed packages have registered: their entry points, read without importlib.metadata.

That module takes 40 ms to import, most of it for parsing mail headers; `hal list` has 60 ms in all.
A test compares the two.
"""

from __future__ import annotations

import configparser
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["installed", "load"]


def installed(group: str) -> dict[str, str]:
    """Of one group: each name with its "module:attribute"; the first on ``sys.path`` counts.

    A damaged file of some other package is passed over.
    """
    found: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path):
        for info in sorted(Path(folder or ".").glob("*.dist-info/entry_points.txt")):
            try:
                text = info.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if f"[{group}]" not in text:
                continue
            parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
            parser.optionxform = str  # type: ignore[assignment, method-assign]
            try:
                parser.read_string(text)
            except configparser.Error:
                continue
            for name, place in parser[group].items():
                found.setdefault(name, place.partition("[")[0].strip())
    return found


def load(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
