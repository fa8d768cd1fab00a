"""Where in a TOML text a key is written, and what may have been meant by one that there is not.

tomllib gives no places; this asks it for them, on the way to an error only.

What makes a scanner of TOML hard (strings over several lines, quoted and dotted keys) stays tomllib's: a
text cut after a statement is TOML, too, and the shortest that has the key ends with it.
"""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

__all__ = ["Place", "line_of", "line_of_fault", "nearest", "parse_toml", "read_text", "text_of"]

_LARGEST = 4 << 20  # bytes

Place = tuple[str | int, ...]  # "devices", 0, "pci"


def read_text(path: Path) -> str:
    """Of a file that a person has written. Raises as ``text_of`` does."""
    with path.open("rb") as file:
        return text_of(file)


def text_of(file: IO[bytes]) -> str:
    """Raises OSError, also where there is no end of it (/dev/zero), and UnicodeDecodeError."""
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), file.name)
    return content.decode()


def parse_toml(text: str) -> dict[str, Any]:
    """Raises ValueError for whatever is wrong: tomllib's own, and for that which it stumbles over."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def line_of(text: str, place: Place) -> int:
    """The line on which a key or table begins; that of what it would be in when it is not there at all.

    The text has to be TOML.
    """
    lines = text.split("\n")  # as TOML counts them, not as str.splitlines does
    while place and not _has(_parsed(lines), place):
        place = place[:-1]
    if not place:
        return 1
    # A number of lines that make a text with the key, and one that make a text without it.
    without, having = 0, len(lines)
    while having - without > 1:
        middle = (having + without) // 2
        end = next(n for n in range(middle, having + 1) if _parsed(lines[:n]) is not None)
        if end < having and not _has(_parsed(lines[:end]), place):
            without = end
        elif end < having:
            having = end
        else:  # the rest, from the last that is whole before the middle, is one statement
            begin = next(n for n in range(middle, without - 1, -1) if _parsed(lines[:n]) is not None)
            if _has(_parsed(lines[:begin]), place):
                having = begin
            elif begin == without:
                break
            else:
                without = begin
    return _in_statement(lines, without, having, place)


def _in_statement(lines: list[str], begin: int, end: int, place: Place) -> int:
    """The line of a key in a list of tables that is written over several lines."""
    last = begin
    for cut in range(begin + 1, end):
        found = _parsed([*lines[:cut], "]"])
        if found is not None:
            if _has(found, place):
                return last + 1
            last = cut
    return last + 1


def _parsed(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return None


def _has(found: Any, place: Place) -> bool:
    for step in place:
        if isinstance(step, int):
            if not isinstance(found, list) or step >= len(found):
                return False
        elif not isinstance(found, dict) or step not in found:
            return False
        found = found[step]
    return True


def line_of_fault(text: str, error: tomllib.TOMLDecodeError) -> tuple[int, str]:
    """Where the text stops being TOML, and tomllib's words for it without the place."""
    words = re.sub(r" \(at .*\)$", "", str(error))
    at = re.search(r"\(at line (\d+), column \d+\)$", str(error))
    return (int(at[1]) if at else len(text.rstrip().split("\n"))), words


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the known one that is most like it, if any is."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
