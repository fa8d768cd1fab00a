"""Runs a command as if the user had typed it: its signals, its streams, its exit code, its end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hal.cli.exits import CommandNotFound, CommandNotRunnable

__all__ = ["adopt_orphans", "end_orphans", "supervise"]

# prctl(2), sys/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# sigaction(2): sent by the kernel, as for a key pressed at the terminal
_SI_KERNEL = 128

_FORWARDED = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}

_libc = ctypes.CDLL(None)


def supervise(
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    directory: Path | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> int:
    """Run it once in each environment, to the end; returns its exit code, or 128 + the number of the signal
    that ended it. Of several, the first that fails gives the code, and the others are told to end.

    Signals sent to this process go on to the command. Those of the terminal reach it without our help.
    The command is killed if this process is. Raises CommandNotFound or CommandNotRunnable.
    """
    watched = _FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for env in environments:
            children.append(_begin(command, env, directory, before))
            started(children[-1])
        failed: int | None = None
        while alive := [child for child in children if child.poll() is None]:
            failed = _fail_together(children, alive, failed)
            info = signal.sigwaitinfo(watched)
            if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
                for child in alive:
                    child.send_signal(info.si_signo)
        failed = _fail_together(children, [], failed)
        return 0 if failed is None else failed
    finally:
        for child in children:  # none is left alone when another could not be started
            if child.poll() is None:
                child.kill()
                child.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(
    command: Sequence[str],
    env: Mapping[str, str],
    directory: Path | None,
    mask: set[int] | set[signal.Signals],
) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        return subprocess.Popen(command, env=dict(env), cwd=directory, preexec_fn=in_child)
    except OSError as error:
        if directory is not None and str(error.filename) == str(directory):
            why = f"the directory '{directory}' cannot be entered: {error.strerror}"
            raise CommandNotRunnable(why) from None
        raise _not_run(command[0], error) from None


def _not_run(program: str, error: OSError) -> CommandNotFound | CommandNotRunnable:
    if isinstance(error, FileNotFoundError):
        return CommandNotFound(f"there is no command '{program}'")
    why = "permission denied" if isinstance(error, PermissionError) else error.strerror
    return CommandNotRunnable(f"'{program}' cannot be run: {why}")


def _fail_together(
    children: Sequence[subprocess.Popen[bytes]], alive: Sequence[subprocess.Popen[bytes]], failed: int | None
) -> int | None:
    """The code of the first that has failed; once there is one, the others are told to end, each once."""
    if failed is not None:
        return failed
    for child in children:
        if child.returncode:
            for other in alive:
                other.send_signal(signal.SIGTERM)
            return child.returncode if child.returncode > 0 else 128 - child.returncode
    return None


def adopt_orphans() -> None:
    """From now on, processes whose parents end below this one become its children (prctl(2))."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(*, grace: float = 5.0) -> None:
    """End all children that are left: SIGTERM, after ``grace`` seconds SIGKILL."""
    deadline = time.monotonic() + grace
    told: set[int] = set()
    while children := _children():
        late = time.monotonic() > deadline
        for pid in children:
            if pid not in told or late:
                told.add(pid)
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        _collect()
        time.sleep(0.01)


def _collect() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


def _children() -> list[int]:
    me = os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == me:
            found.append(int(entry.name))
    return found
