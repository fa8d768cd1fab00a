"""Where a user's daemon keeps its socket, its store and its slices."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hal.backend import StateError
from hal.scheduler.names import LONGEST_SOCKET_PATH

__all__ = ["Places"]


class Places:
    """The files below one runtime directory, which is the user's own (mode 0700).

    ``HAL_RUNTIME_DIR`` names it; else it is ``$XDG_RUNTIME_DIR/hal``, ``/run/hal`` for root, or
    ``/tmp/hal-UID``. An emulated machine has one of its own. What has to be there after the machine was
    started again is in ``state``: ``HAL_STATE_DIR``, else the same directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = _chosen() if directory is None else directory
        self.passable = False  # programs of other users, who know its name, get to their slice
        self.group: int | None = None  # of this machine, whose members may enter (see ``make``)
        self.socket = self.directory / "scheduler.sock"
        self.events = self.directory / "events.sock"
        self.lock = self.directory / "scheduler.lock"
        named = os.environ.get("HAL_STATE_DIR") if directory is None else None
        self.state = Path(named).absolute() if named else self.directory
        for path, variable in ((self.directory, "HAL_RUNTIME_DIR"), (self.state, "HAL_STATE_DIR")):
            if not _is_text(path):
                raise StateError(f"{str(path)!a} is not text in UTF-8: set {variable} to a directory that is")
        self.store = self.state / "leases.db"
        self.store_lock = self.state / "leases.lock"
        self.slices = self.directory / "slices"
        self.jobs = self.directory / "jobs"
        self.log = self.directory / "scheduler.log"
        self.clock = self.directory / "scheduler.clock"
        self.term = self.directory / "agent.term"
        self.until = self.directory / "agent.until"
        self.agent_lock = self.directory / "agent.lock"
        self.lender = self.directory / "lender"

    @property
    def address(self) -> str:
        return f"ipc://{self.socket}"

    @property
    def events_address(self) -> str:
        """Where the numbers of what happens are published."""
        return f"ipc://{self.events}"

    def environment(self) -> dict[str, str]:
        """The caller's environment, naming this directory to a process of hal's own."""
        own = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "HAL_SLICE")}
        return own | {"HAL_RUNTIME_DIR": str(self.directory)}

    def slice_file(self, lease_id: str) -> Path:
        return self.slices / f"{lease_id}.ledger"

    def binding_file(self, lease_id: str) -> Path:
        return self.slices / f"{lease_id}.binding"

    def make(self, *, passable: bool | None = None) -> None:
        """Create what is missing. Raises StateError when the directory is not the user's alone, and the
        group's if there is one: its members reach the socket, and by their names their own slices.
        ``passable``: from now on; else as it was."""
        passable = self.passable if passable is None else passable
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            raise StateError(
                f"the path {self.socket} is too long for a socket; set HAL_RUNTIME_DIR to a shorter one"
            )
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.directory.stat()
            mode, beyond = stat.S_IMODE(status.st_mode), 0o077 if self.group is None else 0o027
            as_left = mode in ((0o711,) if self.group is None else (0o711, 0o751))  # by one that was passable
            if status.st_uid != os.geteuid() or (mode & beyond and not as_left):
                raise StateError(
                    f"{self.directory} has to belong to you alone (mode 0700); "
                    "repair it, or set HAL_RUNTIME_DIR to another directory"
                )
            self.slices.mkdir(mode=0o700, exist_ok=True)
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            through = 0o011 if passable else 0
            if self.group is not None:
                os.chown(self.directory, -1, self.group)
                self.directory.chmod(0o750 | through)
                self.slices.chmod(0o711)
            elif mode & 0o011 != through:
                self.directory.chmod(0o700 | through)
                self.slices.chmod(0o700 | through)
        except OSError as error:
            raise StateError(
                f"cannot use the runtime directory {self.directory}: {error.strerror}"
            ) from error
        self.passable = passable

    def remove_empty(self) -> None:
        """Remove the directories if nothing is in them."""
        for directory in (self.slices, self.directory):
            try:
                directory.rmdir()
            except OSError:
                return


def _is_text(path: Path) -> bool:
    """What is told of it goes into sockets' addresses and messages."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _chosen() -> Path:
    if named := os.environ.get("HAL_RUNTIME_DIR"):
        return Path(named).absolute()
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "hal"
    user = os.geteuid()
    return Path("/run/hal") if user == 0 and os.access("/run", os.W_OK) else Path(f"/tmp/hal-{user}")  # noqa: S108
