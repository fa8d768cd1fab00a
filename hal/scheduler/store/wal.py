"""Damage in the middle of SQLite's write-ahead log, which SQLite itself takes for its end.

A crash can leave the last transaction torn: it was never acknowledged, and is cut. But each is synced before
the next is begun, so a bad frame after which a whole transaction and more follow was good once, and what it
said was acknowledged. The format is of https://sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import struct
import sys
from array import array
from pathlib import Path

__all__ = ["damage_at"]

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, two salts, two checksums
_FRAME = struct.Struct(">6I")  # page, pages after a commit or 0, two salts, two checksums
_LITTLE, _BIG = 0x377F0682, 0x377F0683
_MASK = 0xFFFFFFFF


def damage_at(path: Path) -> int | None:
    """The offset of the first damage in this log that is no torn end. None: there is none, or no log.

    Raises OSError.
    """
    try:
        log = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(log) <= _HEADER.size:
        return None
    magic, _, page, _, *salts, one, two = _HEADER.unpack_from(log)
    big = magic == _BIG
    if magic not in (_LITTLE, _BIG) or _sum(log[:24], (0, 0), big) != (one, two):
        return 0
    size = _FRAME.size + page
    bad: int | None = None
    whole = False  # it was a commit, or one has followed it
    ended = False  # the frame before, from whose checksum this one goes on, was a commit
    before = (one, two)
    for at in range(_HEADER.size, len(log) - size + 1, size):
        _, commit, *mine, one, two = _FRAME.unpack_from(log, at)
        good = mine == salts and _sum(log[at : at + 8] + log[at + 24 : at + size], before, big) == (one, two)
        if good and bad is not None and (whole or ended):
            return bad
        if not good and bad is None:
            bad = at
        ended = commit != 0
        whole = whole or (bad is not None and ended and mine == salts)
        before = (one, two)
    return None


def _sum(data: bytes, seed: tuple[int, int], big: bool) -> tuple[int, int]:
    words = array("I", data)
    if big != (sys.byteorder == "big"):
        words.byteswap()
    one, two = seed
    pairs = iter(words)
    for first, second in zip(pairs, pairs, strict=True):
        one = (one + first + two) & _MASK
        two = (two + second + one) & _MASK
    return one, two
