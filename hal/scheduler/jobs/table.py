"""The runs of one node: started, signalled, taken over by the next agent, and swept up.

Each has a directory: ``LEASE.EPOCH.MEMBER``. A run lives for as long as its supervisor holds the lock of
``lock`` there, whoever asks; how it ended is in ``exit.json``, and ``told`` is there once the scheduler
has it. What is kept of the output goes with the directory, when there are too many that were told.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from hal.backend import GoneError, StateError
from hal.enforce.cgroup import Tree
from hal.scheduler.jobs import output, supervisor
from hal.scheduler.jobs.marks import MARK, marked, strays
from hal.scheduler.jobs.spec import LAST_SIGNAL, Ended, Launch

__all__ = ["Jobs", "RunId"]

_LOOK = 0.5  # seconds between looks at runs that cannot be watched
_ERROR = 400  # characters of a reason
_KEPT = 256  # runs that have ended and were told
# What the supervisor takes for "kill at once", "pass SIGTERM on", and with N added for "pass N on".
_KILL, _PASS_TERM = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
_PASSED_AS_THEY_ARE = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

RunId = tuple[str, int, int]  # lease, epoch, member


class _Run(msgspec.Struct, eq=False):
    path: Path
    pidfd: int | None = None
    process: subprocess.Popen[bytes] | None = None  # of one that this agent has started


class Jobs:
    """For one thread. ``descriptor`` is ready to be read when a supervisor has ended: call ``turn`` then."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._living: dict[RunId, _Run] = {}
        self._untold: dict[RunId, Ended] = {}
        self._orphaned: set[RunId] = set()  # whose supervisor was killed: what is left is swept
        self._epoll = select.epoll()
        self._groups = Tree()
        self._looked = float("-inf")

    @property
    def descriptor(self) -> int:
        return self._epoll.fileno()

    @property
    def busy(self) -> bool:
        """Something is being swept up: ``turn`` is wanted soon."""
        return bool(self._orphaned)

    def open(self) -> None:
        """Take over what an earlier agent of this node has started. Raises StateError."""
        if not self._directory.is_dir():
            return
        try:
            for path in sorted(self._directory.iterdir()):
                run = _run_of(path)
                if run is None:
                    continue
                if (path / "exit.json").exists():
                    if not (path / "told").exists():
                        self._untold[run] = _ended(run, path)
                        self._remove_group(path)
                elif not (path / "alive").exists() and not _is_held(path / "lock"):
                    # Its supervisor says so before it begins: this one is as if it was not ordered yet.
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    self._living[run] = _Run(path)
                    self._watch(self._living[run])
        except OSError as error:
            raise StateError(f"cannot read {self._directory}: {error.strerror}") from None
        self._sweep_unknown()
        self.turn()

    def close(self) -> None:
        """Leave everything running."""
        for run in self._living.values():
            self._unwatch(run)
        self._epoll.close()

    # ---- orders -----------------------------------------------------------------------------

    def start(self, run: RunId, launch: Launch) -> None:
        """Start it; one that was started already is no error. Raises StateError."""
        path = self._path(run)
        if self.was_started(run):
            return
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            new = path.with_name(f".{path.name}")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            environment = {**launch.environment, MARK: str(path)}
            launch = msgspec.structs.replace(launch, environment=environment, cgroup=self._group(path))
            file = os.open(new / "spec.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "wb") as spec:
                spec.write(msgspec.json.encode(launch))
            lock = os.open(new / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                new.rename(path)
                process = _supervise(path, lock)
            finally:
                os.close(lock)
        except (OSError, ValueError) as error:
            shutil.rmtree(path, ignore_errors=True)
            raise StateError(f"the job cannot be started here: {error}") from None
        self._living[run] = _Run(path, process=process)
        self._watch(self._living[run])

    def was_started(self, run: RunId) -> bool:
        return run in self._living or self._path(run).exists()

    def signal(self, run: RunId, number: int) -> None:
        """Send it to the program, if that lives. Raises GoneError for a run that there never was, and
        StateError for what is no signal that can be passed on."""
        if not 1 <= number <= LAST_SIGNAL:
            raise StateError(f"signal is between 1 and {LAST_SIGNAL}")
        if run in self._living:
            passed: dict[int, int] = {signal.SIGTERM: _PASS_TERM, signal.SIGKILL: _KILL}
            passed |= {one: one for one in _PASSED_AS_THEY_ARE}
            _send(self._living[run].path, passed.get(number, _PASS_TERM + number))
        elif not self._path(run).exists():
            raise GoneError("there is no such run on this node")

    def end(self, lease: str, number: int, *, lost: bool = False) -> bool:
        """SIGTERM: with some seconds of grace; SIGKILL: now; 0: only look. True when none is left.

        ``lost``: it is not the programs' own end (see ``Ended``).
        """
        runs = [run for run in self._living if run[0] == lease]
        for run in runs:
            path = self._living[run].path
            if number == 0 or run in self._orphaned:
                continue
            if lost:
                with contextlib.suppress(OSError):
                    (path / "lost").touch()
            if not _send(path, _KILL if number == signal.SIGKILL else signal.SIGTERM):
                with contextlib.suppress(OSError):
                    (path / "killed").touch()  # it has not begun, and is not to
        self.turn()
        return not any(run[0] == lease for run in self._living)

    def output(self, run: RunId, stream: str, offset: int, limit: int) -> output.Piece:
        """Raises GoneError when nothing of it is kept here."""
        path = self._path(run)
        if not path.is_dir():
            raise GoneError("nothing of its output is kept on its node")
        # Looked at before: what is read after it has ended is all that there is.
        ended = run not in self._living
        return output.read(path, stream, offset, limit, ended=ended)

    # ---- what has ended ---------------------------------------------------------------------

    def turn(self) -> None:
        """Notice who has ended, and sweep up after killed supervisors. Often it costs next to nothing."""
        now = time.monotonic()
        gone = {file for file, _ in self._epoll.poll(0)} if self._living else set()
        if not self._living or not (self.busy or gone or now - self._looked >= _LOOK):
            return
        self._looked = now
        for run, one in list(self._living.items()):
            if one.process is not None:
                one.process.poll()  # else it stays a zombie
            if _is_held(one.path / "lock"):
                if one.pidfd in gone:  # one of the supervisor's two processes: the other goes on
                    self._unwatch(one)
                    self._watch(one)
                continue
            if not (one.path / "exit.json").exists() and self._is_left(run, one.path):
                continue
            self._unwatch(one)
            del self._living[run]
            self._orphaned.discard(run)
            if one.process is not None:
                one.process.wait()
            self._remove_group(one.path)
            self._untold[run] = _ended(run, one.path)

    def living(self) -> set[RunId]:
        return set(self._living)

    def ended(self) -> list[Ended]:
        """What has ended, until ``told``."""
        return list(self._untold.values())

    def told(self, ended: list[Ended]) -> None:
        """The scheduler has written it down."""
        for one in ended:
            run = (one.lease, one.epoch, one.member)
            if self._untold.pop(run, None) is not None:
                with contextlib.suppress(OSError):
                    (self._path(run) / "told").touch()
        if ended:
            self._forget_old()

    # ---- inside -----------------------------------------------------------------------------

    def _path(self, run: RunId) -> Path:
        lease, epoch, member = run
        return self._directory / f"{lease}.{epoch}.{member}"

    def _watch(self, run: _Run) -> None:
        """One that has gone, or has not said yet who it is, is looked at by turns."""
        outer = run.process
        pid = outer.pid if outer is not None and outer.poll() is None else _alive(run.path)
        if pid is None:
            return
        with contextlib.suppress(OSError):
            run.pidfd = os.pidfd_open(pid)
            self._epoll.register(run.pidfd, select.EPOLLIN)

    def _unwatch(self, run: _Run) -> None:
        if run.pidfd is not None:
            self._epoll.unregister(run.pidfd)
            os.close(run.pidfd)
            run.pidfd = None

    def _is_left(self, run: RunId, path: Path) -> bool:
        """Its supervisor was killed: kill what it has left behind, and when there is nothing, say so."""
        self._unwatch(self._living[run])
        self._orphaned.add(run)
        group = self._groups.group(f"run-{path.name}")
        group.kill()
        left = marked(path)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if left or group.has_processes():
            return True
        now = round(time.time() * 1000)
        lost = {"code": None, "signal": int(signal.SIGKILL), "error": "its supervisor was killed"}
        with contextlib.suppress(OSError):  # on a full disk: the next agent finds it out again
            _write(path / "exit.json", lost | {"begun_ms": now, "ended_ms": now, "cpu_seconds": None})
        return False

    def _sweep_unknown(self) -> None:
        """Kill what runs in this node's name and belongs to no run that lives."""
        known = {str(run.path).encode() for run in self._living.values()}
        for pid in strays(self._directory, known):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for path in self._directory.glob(".*"):  # never begun
            shutil.rmtree(path, ignore_errors=True)

    def _group(self, path: Path) -> str:
        """A control group where one may be made: nothing gets out of it by itself."""
        if os.geteuid() != 0 or self._groups.unusable() is not None:
            return ""
        try:
            return str(self._groups.make(f"run-{path.name}").path)
        except StateError:
            return ""

    def _remove_group(self, path: Path) -> None:
        with contextlib.suppress(StateError):
            self._groups.group(f"run-{path.name}").remove()

    def _forget_old(self) -> None:
        told = [path for path in self._directory.iterdir() if (path / "told").exists()]
        if len(told) > _KEPT:
            told.sort(key=lambda path: (path / "told").stat().st_mtime)
            for path in told[: len(told) - _KEPT]:
                shutil.rmtree(path, ignore_errors=True)


def _supervise(path: Path, lock: int) -> subprocess.Popen[bytes]:
    script = supervisor.__file__
    return subprocess.Popen(
        [sys.executable, "-I", "-S", script, str(path), str(lock)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={MARK: str(path)},
        pass_fds=[lock],
        start_new_session=True,
    )


def _run_of(path: Path) -> RunId | None:
    lease, _, rest = path.name.partition(".")
    epoch, _, member = rest.partition(".")
    return (lease, int(epoch), int(member)) if lease and epoch.isdigit() and member.isdigit() else None


def _is_held(lock: Path) -> bool:
    try:
        file = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _alive(path: Path) -> int | None:
    """The supervisor's pid, if it has said who it is and nobody else has that number by now."""
    try:
        told = json.loads((path / "alive").read_bytes())
        pid, start = int(told["pid"]), int(told["start"])
        return pid if supervisor._start_time(pid) == start else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _send(path: Path, number: int) -> bool:
    """False when there is no supervisor that can hear it (yet)."""
    pid = _alive(path)
    if pid is None:
        return False
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if _alive(path) == pid:  # still, and the descriptor is of it
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def _ended(run: RunId, path: Path) -> Ended:
    try:
        told = json.loads((path / "exit.json").read_bytes())
        if (path / "lost").exists():
            told |= {"lost": True, "error": supervisor.CUT_OFF}
        one = msgspec.convert({"lease": run[0], "epoch": run[1], "member": run[2], **told}, Ended)
        return msgspec.structs.replace(one, error=_shortened(one.error))
    except (OSError, ValueError) as wrong:
        killed = isinstance(wrong, FileNotFoundError)  # and nobody could write that down
        error = "its supervisor was killed" if killed else f"how it ended cannot be read: {wrong}"
        return Ended(*run, None, int(signal.SIGKILL), error, 0, 0, None)


def _shortened(text: str) -> str:
    """A path in it may be long, and an agent tells many of them at once."""
    return text if len(text) <= _ERROR else f"{text[: _ERROR // 2]}…{text[-_ERROR // 2 :]}"


def _write(path: Path, content: object) -> None:
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(json.dumps(content).encode())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
