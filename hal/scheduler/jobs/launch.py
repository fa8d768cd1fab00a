"""As whom a job runs on a node, and with which environment.

* An agent that is not root's runs jobs as its own user.
* An agent that is root's runs those of users that ``[jobs] run_as`` names, as whom it says, and no others.
* The scheduler's own node runs the jobs of the scheduler's own user as that user; of others only those that
  ``run_as`` names: they could read its keys and its store.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hal.backend import StateError
from hal.scheduler.jobs.spec import Launch, User
from hal.scheduler.security.environment import job_environment

if TYPE_CHECKING:
    from hal.scheduler.agent.binding import RunOrder
    from hal.scheduler.sections import JobsSection

__all__ = ["Launcher", "missing_users", "owner_name"]

# What an emulated machine's programs need to find it (hal/emulation/run.py).
_EMULATED = ("HAL_EMULATED_MACHINE", "HAL_ROOT", "LD_LIBRARY_PATH", "ROCM_PATH", "ROCM_HOME")


class Launcher:
    """What a node's ``[jobs]`` section says. ``own``: this is the scheduler's own node."""

    def __init__(self, section: JobsSection, *, own: bool, inherited: Mapping[str, str] = os.environ) -> None:
        self.section = section
        self._own = own
        self._inherited = inherited

    def check(self, owner: str, uid: int) -> None:
        """Raises StateError when this owner runs no jobs here."""
        self._user(owner, uid)

    def launch(self, order: RunOrder, slice: Mapping[str, str]) -> Launch:
        """Raises StateError when its owner runs no jobs here."""
        user = self._user(order.owner, order.uid)
        environment = job_environment(self._inherited, self.section.keep_environment)
        if "HAL_EMULATED_MACHINE" in self._inherited:
            environment |= {name: self._inherited[name] for name in _EMULATED if name in self._inherited}
        home = environment.get("HOME", "/")
        if user is not None:
            home = user.home
            environment |= {"HOME": home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}
        brought = order.spec.environment
        environment |= {**order.variables, **brought, **slice, "HAL_JOB": order.job}
        preloads = [source.get("LD_PRELOAD", "") for source in (slice, brought)]
        if any(preloads):
            environment["LD_PRELOAD"] = ":".join(path for path in preloads if path)
        return Launch(
            command=order.spec.command,
            environment=environment,
            directory=order.spec.directory or home,
            output_bytes=order.spec.output_bytes,
            umask=order.spec.umask,
            user=user,
        )

    def _user(self, owner: str, uid: int) -> User | None:
        """None: whoever the agent is itself."""
        me = os.geteuid()
        named = self.section.run_as.get(owner)
        if named is None:
            if (self._own and uid == me) or (not self._own and me != 0 and not self.section.run_as):
                return None
            raise StateError(
                f"this node runs no jobs of '{owner}': [jobs] run_as of its hal.toml names no user"
            )
        try:
            entry = pwd.getpwnam(named)
        except KeyError:
            raise StateError(f"jobs.run_as says '{named}', and there is no such user on this node") from None
        if me != 0:
            if entry.pw_uid != me:
                raise StateError(f"jobs of '{owner}' run as '{named}', which only an agent of root's can do")
            return None
        groups = os.getgrouplist(named, entry.pw_gid)
        return User(named, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell)


def missing_users(section: JobsSection) -> list[str]:
    """A sentence for each that ``run_as`` names and that is not known here now. It is no error: a directory
    of users may answer later, and one file may be for nodes that do not have all of them."""
    there = []
    for owner, name in section.run_as.items():
        try:
            pwd.getpwnam(name)
        except KeyError:
            there.append(
                f"jobs.run_as: there is no user '{name}' here; until there is, '{owner}' runs no jobs"
            )
    return there


def owner_name(name: str, uid: int) -> str:
    """Of whoever asks: the key's name, or the local user's."""
    if not name.startswith("uid:"):
        return name
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return name
