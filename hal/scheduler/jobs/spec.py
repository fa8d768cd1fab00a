"""What is run, as what, and how it ended: the values that scheduler, agent and supervisor share."""

from __future__ import annotations

from msgspec import Struct

from hal.scheduler.security.environment import checked_environment

__all__ = ["LAST_SIGNAL", "Ended", "JobSpec", "Launch", "User"]

LAST_SIGNAL = 28  # that can be passed on to a program: so many real-time signals has a supervisor for them
_MOST_OUTPUT = 1 << 40
_LONGEST_DIRECTORY = 4096  # bytes, as of any path (PATH_MAX)
_LONGEST_COMMAND = 32 * 1024  # bytes; with its variables it has to fit into one request


class JobSpec(Struct, frozen=True, omit_defaults=True):
    """A program, and what it is given. Raises ValueError for what cannot be run."""

    command: list[str]
    environment: dict[str, str] = {}  # what is to be set beside what the node and hal set
    directory: str = ""  # on the node; "": the home of the user that it runs as
    output_bytes: int = 16 << 20  # of each stream that are kept: the first are dropped for the last
    umask: int = 0o022

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise ValueError("command names no program")
        if any("\0" in word for word in (*self.command, self.directory)):
            raise ValueError("there is a NUL character in the command or the directory")
        if sum(len(word.encode(errors="surrogateescape")) + 1 for word in self.command) > _LONGEST_COMMAND:
            raise ValueError(f"the command has more than {_LONGEST_COMMAND} bytes")
        if self.directory and not self.directory.startswith("/"):
            raise ValueError("directory is an absolute path")
        if len(self.directory.encode(errors="surrogateescape")) > _LONGEST_DIRECTORY:
            raise ValueError(f"directory has more than {_LONGEST_DIRECTORY} bytes")
        if not 8192 <= self.output_bytes <= _MOST_OUTPUT:
            raise ValueError(f"output_bytes is between 8192 and {_MOST_OUTPUT}")
        if not 0 <= self.umask <= 0o777:
            raise ValueError("umask is between 0 and 0o777")
        checked_environment(self.environment)


class User(Struct, frozen=True):
    """As whom a job runs."""

    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str
    shell: str


class Launch(Struct, frozen=True):
    """What the supervisor is told (``spec.json``)."""

    command: list[str]
    environment: dict[str, str]
    directory: str
    output_bytes: int
    umask: int
    user: User | None  # None: as the agent's own
    grace_seconds: float = 5.0
    cgroup: str = ""
    until: str = ""  # a file: when it says that its node is cut off, the program is killed (agent/until.py)


class Ended(Struct, frozen=True):
    """One run has ended: exactly one of ``code`` and ``signal`` is set. Times are the node's."""

    lease: str
    epoch: int
    member: int
    code: int | None
    signal: int | None
    error: str  # why it could not be started; "": it was
    begun_ms: int
    ended_ms: int
    cpu_seconds: float | None  # None: nobody was there to count
    lost: bool = False  # its node has stopped it, being cut off: that is no failure of the program's

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 128 and more for a signal."""
        return 128 + (self.signal or 0) if self.code is None else self.code
