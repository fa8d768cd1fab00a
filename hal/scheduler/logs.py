"""What a daemon tells its operator, a line each: sentences for people, or JSON for programs.

Writing never keeps the daemon waiting: who does not read its log loses lines, and is told how many.
"""

from __future__ import annotations

import os
import select
from datetime import UTC, datetime
from typing import Any

import msgspec

__all__ = ["LEVELS", "Log"]

# With the numbers that systemd's journal has for them (sd-daemon(3)).
LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_AT_ONCE = 4096  # bytes that a pipe which can be written to takes without waiting (pipe(7), PIPE_BUF)
_MOST_PENDING = 1 << 20


class Log:
    """Calling it logs a sentence as ``info`` and writes all; ``add`` leaves that to ``flush``."""

    def __init__(self, *, json: bool = False, level: str = "info", to: int = 2) -> None:
        self.level = level  # the least that is logged; may be changed
        self.lost = 0  # lines, since the last that was written
        self._json = json
        self._to = to
        self._journal = "JOURNAL_STREAM" in os.environ
        self._pending: list[bytes] = []
        self._size = 0

    def __call__(self, sentence: str) -> None:
        self.add("info", sentence)
        self.flush()

    def warn(self, sentence: str) -> None:
        self.add("warning", sentence)
        self.flush()

    def wants(self, level: str) -> bool:
        return LEVELS[level] <= LEVELS[self.level]

    def add(self, level: str, sentence: str, **facts: Any) -> None:
        """``facts`` that are None or empty are left out."""
        if not self.wants(level):
            return
        told = {name: value for name, value in facts.items() if value not in (None, "", ())}
        line = self._line(level, sentence, told)
        if self._size + len(line) > _MOST_PENDING:
            self.lost += 1
            return
        self._pending.append(line)
        self._size += len(line)

    def flush(self) -> None:
        """Write as much as is taken at once."""
        if self.lost and self._can_write():
            gap, self.lost = self.lost, 0
            self._pending.append(
                self._line("warning", f"{gap} lines of this log are lost: it was not read", {})
            )
        while self._pending and self._can_write():
            line = self._pending[0]
            try:
                written = os.write(self._to, line[:_AT_ONCE])
            except OSError:  # closed, or a full disk: there is nobody to tell
                self._pending.clear()
                self._size = 0
                return
            self._size -= written
            if written < len(line):
                self._pending[0] = line[written:]
            else:
                del self._pending[0]

    def _can_write(self) -> bool:
        poll = select.poll()
        poll.register(self._to, select.POLLOUT)
        return bool(poll.poll(0))

    def _line(self, level: str, sentence: str, facts: dict[str, Any]) -> bytes:
        return (self._as_json if self._json else self._as_text)(level, sentence, facts)

    def _as_json(self, level: str, sentence: str, facts: dict[str, Any]) -> bytes:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "level": level, "message": sentence, **facts}
        return msgspec.json.encode(line) + b"\n"

    def _as_text(self, level: str, sentence: str, facts: dict[str, Any]) -> bytes:
        prefix = f"<{LEVELS[level]}>" if self._journal else ""
        stress = f"{level}: " if level in ("warning", "error") else ""
        said = " ".join(f"{name}={_word(value)}" for name, value in facts.items())
        text = f"{prefix}hal: {stress}{sentence}{f' ({said})' if said else ''}"
        return text.replace("\n", " ").encode(errors="replace") + b"\n"


def _word(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)
