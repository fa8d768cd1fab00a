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
    env: Mapping[str, str],
    *,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> int:
    """Run to the end; returns its exit code, or 128 + the number of the signal that ended it.

    Signals sent to this process go on to the command. Those of the terminal reach it without our help.
    The command is killed if this process is. Raises CommandNotFound or CommandNotRunnable.
    """
    watched = _FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    parent = os.getpid()

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        try:
            child = subprocess.Popen(command, env=dict(env), preexec_fn=in_child)
        except FileNotFoundError:
            raise CommandNotFound(f"there is no command '{command[0]}'") from None
        except PermissionError:
            raise CommandNotRunnable(f"'{command[0]}' cannot be run: permission denied") from None
        except OSError as error:
            raise CommandNotRunnable(f"'{command[0]}' cannot be run: {error.strerror}") from None
        started(child)
        while child.poll() is None:
            info = signal.sigwaitinfo(watched)
            if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
                child.send_signal(info.si_signo)
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
