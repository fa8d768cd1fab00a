"""What a program has said, as far as it is kept: pieces named by their offsets (see supervisor.py)."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from hal.backend import StateError

__all__ = ["STREAMS", "Piece", "read"]

STREAMS = ("stdout", "stderr")


class Piece(Struct, frozen=True):
    """Bytes of a stream from ``offset``, which is later than what was asked for when that is dropped."""

    offset: int
    data: bytes
    end: bool  # the program has ended, and there is no more


def read(directory: Path, stream: str, offset: int, limit: int, *, ended: bool) -> Piece:
    """At most ``limit`` bytes of a stream. A piece that is dropped meanwhile counts as dropped before.

    Raises StateError when it cannot be read.
    """
    for _ in range(8):
        bases = sorted(
            int(path.name.partition(".")[2])
            for path in directory.glob(f"{stream}.*")
            if path.name.partition(".")[2].isdigit()
        )
        if not bases:
            break
        at = max(offset, bases[0])
        base = max(one for one in bases if one <= at)
        try:
            with (directory / f"{stream}.{base}").open("rb") as file:
                file.seek(at - base)
                data = file.read(limit)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"the output cannot be read: {error.strerror}") from None
        if not data and base != bases[-1]:  # it ends where the next begins
            offset = min(one for one in bases if one > base)
            continue
        return Piece(at, data, end=ended and base == bases[-1] and not data)
    return Piece(offset, b"", end=ended and not bases)
