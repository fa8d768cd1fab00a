"""What of the agent's own environment its jobs inherit, and what a job may bring with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

__all__ = ["KEPT", "checked_environment", "job_environment"]

KEPT = ("HOME", "LANG", "LC_*", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")

# The agent's, and no job's: its keys and places, and how systemd speaks to it.
_NEVER = (
    "HAL_*",
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_*",
    "MAINPID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "WATCHDOG_*",
)
# They decide what code a program loads: kept only when named in full, never by a pattern such as "*".
_LOADS_CODE = ("LD_*", "GLIBC_TUNABLES", "PYTHON*", "BASH_ENV", "ENV", "PERL5*", "NODE_OPTIONS", "IFS")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LARGEST = 48 * 1024  # bytes of all together; it has to fit into one request
_MOST = 1024  # variables


def job_environment(inherited: Mapping[str, str], keep: Sequence[str] = KEPT) -> dict[str, str]:
    """The part of the agent's environment that a job starts with: what matches one of ``keep``.

    Patterns are those of a shell ("LC_*"). hal's own variables and systemd's are never kept, and what makes
    a program load code (``LD_LIBRARY_PATH``) only when ``keep`` names it in full.
    """
    return {name: value for name, value in inherited.items() if _is_kept(name, keep)}


def _is_kept(name: str, keep: Sequence[str]) -> bool:
    if _matches(name, _NEVER):
        return False
    return name in keep or (_matches(name, keep) and not _matches(name, _LOADS_CODE))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def checked_environment(brought: Mapping[str, str]) -> dict[str, str]:
    """What the submitter wants set. Raises ValueError with a sentence when it cannot be, or is hal's own.

    ``LD_PRELOAD`` and its like are taken: the job runs as its submitter's user, and may do as they like.
    """
    if len(brought) > _MOST:
        raise ValueError(f"a job brings at most {_MOST} variables, not {len(brought)}")
    size = 0
    for name, value in brought.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name:.64}' is no name of a variable")
        if "\0" in value:
            raise ValueError(f"the variable {name} has a NUL character in it")
        if name.startswith("HAL_"):
            raise ValueError(f"{name} is set by hal itself")
        size += len(name) + len(value.encode(errors="surrogateescape")) + 2
    if size > _LARGEST:
        raise ValueError(f"a job brings at most {_LARGEST} bytes of variables, not {size}")
    return dict(brought)
