"""Who did what, and who was refused: one JSON object a line, appended and never changed.

Lines of one turn of the daemon are written together, before its replies. They are not forced to the disk:
what was decided is in the store's journal, which is; this says who asked. When the file has reached its
size it becomes ``NAME.1``, that one ``NAME.2``, and so on. What cannot be written (a full disk) is
counted, and the count is the first line that can be.
"""

from __future__ import annotations

import errno
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from hal.backend import StateError
from hal.scheduler.answers import Peer

__all__ = ["Audit"]

_MOST_PENDING = 10_000  # lines of one turn


class Audit:
    """The log of one daemon. ``largest`` bytes a file, ``kept`` older ones."""

    def __init__(self, path: Path, *, largest: int = 16 << 20, kept: int = 8) -> None:
        self.path = path
        self.largest, self.kept = largest, kept  # may be changed while it runs
        self.lost = 0  # lines not written since the last that was
        self.complaint: str | None = None  # why the last try failed
        self._lines: list[dict[str, Any]] = []
        self._file: int | None = None
        self._size = 0

    def note(self, peer: Peer | None, op: str, outcome: str, **what: Any) -> None:
        """``outcome`` is "ok" or the error's code; ``what`` says to what it was done, and None is left out.

        Without a peer it is the daemon itself.
        """
        if len(self._lines) >= _MOST_PENDING:
            self.lost += 1
            return
        who = {"who": "scheduler"} if peer is None else _told(peer)
        line = {"time": _now(), **who, "op": op[:64], "outcome": outcome}
        line |= {name: _short(value) for name, value in what.items() if value is not None}
        self._lines.append(line)

    def check(self) -> None:
        """Whether lines can be written there; what is missing is made. Raises StateError.

        A disk that is full is no reason: it is waited for, and lines are counted meanwhile.
        """
        try:
            file = self._open()
            is_file = stat.S_ISREG(os.fstat(file).st_mode)
            os.close(file)
            if not is_file:
                raise StateError(f"security.audit: {self.path} is no file")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise StateError(f"security.audit: cannot write {self.path}: {error.strerror}") from None

    def flush(self, *, durable: bool = True) -> None:
        """Write what was noted. Raises nothing: a log that cannot be written does not stop the scheduler;
        ``lost`` and ``complaint`` say so.

        Not ``durable``: what was done for clients could not be written, and they are told that it failed.
        """
        if not self._lines and not self.lost:  # what was lost is told once it can be, by itself
            return
        told, self._lines = self._lines, []
        for line in () if durable else told:
            if line["outcome"] in ("ok", "later") and "role" in line:
                line |= {"outcome": "failed", "durable": False}
        lines = [msgspec.json.encode(line) + b"\n" for line in told]
        if self.lost:
            gap = {"time": _now(), "who": "scheduler", "op": "audit", "outcome": "lost", "lines": self.lost}
            lines.insert(0, msgspec.json.encode(gap) + b"\n")
        noted = len(lines) - (self.lost > 0)
        try:
            self._write(b"".join(lines))
            self.lost, self.complaint = 0, None
        except OSError as error:
            self.lost += noted
            self.complaint = f"cannot write the audit log {self.path}: {error.strerror}"

    def reopen(self) -> None:
        """Begin again with the file of this name: another program may have moved it away."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        self.flush()
        self.reopen()

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self._file = self._open()
            self._size = os.fstat(self._file).st_size
        if self._size and self._size + len(content) > self.largest:
            self._rotate()
            self._write(content)
            return
        start = self._size
        while content:
            try:
                written = os.write(self._file, content)
            except OSError:
                os.ftruncate(self._file, start)  # no half lines
                self._size = start
                raise
            self._size += written
            content = content[written:]

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path, flags | os.O_NONBLOCK, 0o600)  # a FIFO keeps nobody waiting

    def _rotate(self) -> None:
        self.reopen()
        self._numbered(self.kept).unlink(missing_ok=True)
        for number in range(self.kept - 1, 0, -1):
            if self._numbered(number).exists():
                self._numbered(number).rename(self._numbered(number + 1))
        if self.kept > 0:
            self.path.rename(self._numbered(1))
        else:
            self.path.unlink()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _told(peer: Peer) -> dict[str, Any]:
    told: dict[str, Any] = {"who": peer.name, "uid": peer.uid, "role": peer.role.value}
    return told | ({"pid": peer.pid} if peer.pid >= 0 else {"from": peer.host})


def _short(value: Any) -> Any:
    return value[:256] if isinstance(value, str) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
