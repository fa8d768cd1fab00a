"""The journal as JSON lines, for ``hal simulate replay`` and whoever wants to read it.

The first line has the schema and the base; each other one an event with its time, and the last of those that
were committed together the number and the sum of the commit. Rows are as they were encoded, in JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from hal.backend import StateError
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.store import journal
from hal.scheduler.store.journal import Base, Batch, Entry

__all__ = ["SCHEMA", "Commit", "ExportError", "Line", "read", "write"]

SCHEMA = "hal.journal/1"
_LONGEST = 1 << 28  # bytes of a line: what has no end (/dev/zero) is not read for ever


class ExportError(StateError):
    """An exported journal cannot be read; the text names the file, the line and the field."""


class Commit(Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    sum: int


class Line(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    at: int | None = None
    event: Entry | None = None
    commit: Commit | None = None

    def __post_init__(self) -> None:
        if (self.at is None) != (self.event is None):
            raise ValueError("an event has its time, `at`, in milliseconds")
        if self.at is not None and not 0 <= self.at < 1 << 53:
            raise ValueError("`at` is milliseconds since 1970")


class _Row(Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    id: str
    value: dict[str, Any]


class _Head(Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    grace_ms: int
    nodes: tuple[NodeFacts | None, ...]
    rows: tuple[_Row, ...]


def write(base: Base, batches: Iterable[Batch], to: IO[bytes]) -> None:
    encode = msgspec.json.Encoder().encode
    rows = tuple(_Row(kind, id, msgspec.msgpack.decode(value)) for kind, id, value in base.rows)
    to.write(encode(_Head(SCHEMA, base.grace_ms, base.nodes, rows)) + b"\n")
    for batch in batches:
        commit = Commit(batch.number, batch.sum)
        for number, (at, entry) in enumerate(batch.entries, 1):
            to.write(encode(Line(at, entry, commit if number == len(batch.entries) else None)) + b"\n")
        if not batch.entries:
            to.write(encode(Line(commit=commit)) + b"\n")


def read(path: Path) -> Iterator[Base | Line]:
    """The base, and then each line. Raises ExportError."""
    try:
        with path.open("rb") as file:
            yield _base(path, file.readline(_LONGEST))
            lines = msgspec.json.Decoder(Line)
            for number, text in enumerate(iter(lambda: file.readline(_LONGEST), b""), 2):
                yield _decoded(lines, text, path, number)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error


def _base(path: Path, text: bytes) -> Base:
    head = _decoded(msgspec.json.Decoder(_Head), text, path, 1)
    if head.schema != SCHEMA:
        raise ExportError(f"{path}, line 1: `schema` is '{head.schema:.40}', where '{SCHEMA}' is read")
    rows = tuple((row.kind, row.id, journal.encode(row.value)) for row in head.rows)
    return Base(rows, head.nodes, head.grace_ms)


def _decoded(decoder: msgspec.json.Decoder[Any], text: bytes, path: Path, number: int) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ExportError(f"{path}, line {number}: {error}") from None
