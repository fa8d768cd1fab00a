"""Looks after one program: a process of its own that outlives the agent which started it.

Run as a script, without hal: it has to be small, and quick to start. Its arguments are the run's directory,
which has ``spec.json`` (see table.py) and gets ``alive`` (whom to signal), what the program says
(``stdout.0`` …) and at last ``exit.json``; and a descriptor, whose lock is held for as long as it lives.

* Everything that the program starts is its descendant: orphans become its children (prctl(2),
  PR_SET_CHILD_SUBREAPER), and when the program has ended, what is left of them is killed.
* It is two processes. The outer one only waits for the inner one, which does the work; if that is killed, all
  that it leaves become children of the outer one, which kills them and says so, whether there is an agent
  or not. If only the outer one is killed, the work goes on.
* The program is killed with the inner one (PR_SET_PDEATHSIG). What is left when both are killed is found
  by the agent, by the variable HAL_RUN of their environment, or by their control group where there is one.
* When its node is cut off (the file ``until``, see agent/until.py) it kills what runs, agent or no agent.
* SIGTERM ends it: the program gets SIGTERM and some seconds later what is left SIGKILL. SIGRTMIN+1 kills at
  once. SIGRTMIN+2 is SIGTERM for the program and no more; SIGHUP, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 go on,
  and so does any other signal N that is sent as SIGRTMIN+2+N: SIGSTOP itself would stop the supervisor.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys
import time
import warnings  # noqa: F401 - os.execvpe imports it, which whom the program runs as may not be able to
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL, _PASS_TERM = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
_PASSED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_SHIFTED = range(_PASS_TERM + 1, signal.SIGRTMAX + 1)
_HEARD = {signal.SIGTERM, signal.SIGCHLD, _KILL, _PASS_TERM, *_PASSED, *_SHIFTED}
_READ = 65536
_LOOK = 2.0  # seconds between looks at a clock that goes on while the machine sleeps
CUT_OFF = "its node was cut off from its scheduler, or had no agent, for too long"
_NOT_FOUND, _NOT_RUNNABLE = 127, 126  # as a shell says it

_libc = ctypes.CDLL(None, use_errno=True)


class Output:
    """A stream of the program's, kept in pieces whose names are their offsets; the last two are kept."""

    def __init__(self, directory: str, name: str, most: int) -> None:
        self._directory = directory
        self._name = name
        self._piece = max(most // 2, 4096)
        self._bases = [0]
        self._filled = 0
        self._file = self._open(0)

    def _open(self, base: int) -> int:
        path = os.path.join(self._directory, f"{self._name}.{base}")  # noqa: PTH118 - quick to start
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """What there is no room for on the disk is lost: the program goes on."""
        while data:
            try:
                if self._filled >= self._piece:
                    self._next()
                part = data[: self._piece - self._filled]
                written = os.write(self._file, part)
            except OSError:
                return
            self._filled += written
            data = data[written:]

    def _next(self) -> None:
        while len(self._bases) > 1:  # first: there may be no room for a third
            old = os.path.join(self._directory, f"{self._name}.{self._bases.pop(0)}")  # noqa: PTH118
            os.unlink(old)  # noqa: PTH108
        base = self._bases[-1] + self._filled
        file = self._open(base)
        os.close(self._file)
        self._file, self._filled = file, 0
        self._bases.append(base)


class Supervisor:
    def __init__(self, directory: str) -> None:
        self._directory = directory
        with open(os.path.join(directory, "spec.json"), "rb") as file:  # noqa: PTH118, PTH123
            self._spec = json.load(file)
        self._pid = 0
        self._failed = -1  # where it says why it could not be started
        self._status: int | None = None  # as waitpid tells it
        self._error = ""
        self._lost = False
        self._until: float | None = None
        self._begun = time.time()
        self._kill_at: float | None = None
        self._outputs: dict[int, Output] = {}

    def keep(self) -> None:
        """The outer process: the one that does the work is its child."""
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        worker = os.fork()
        if worker == 0:
            try:
                self.run()
            finally:
                os._exit(0)
        for number in _HEARD - {signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        _, status = os.waitpid(worker, 0)
        self._kill_rest()
        if self._spec["cgroup"]:  # no agent may be there to do so
            with suppress(OSError):
                os.rmdir(self._spec["cgroup"])  # noqa: PTH106
        if not os.path.exists(os.path.join(self._directory, "exit.json")):  # noqa: PTH110, PTH118
            self._error = f"its supervisor {'was killed' if os.WIFSIGNALED(status) else 'has failed'}"
            self._tell()

    def run(self) -> None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signals, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in _HEARD:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        self._write("alive", {"pid": os.getpid(), "start": _start_time(os.getpid())})
        self._begun = time.time()
        if not os.path.exists(os.path.join(self._directory, "killed")):  # noqa: PTH110, PTH118
            self._begin()
            self._watch(signals)
            with suppress(BlockingIOError):  # nothing, if it has run
                self._error = os.read(self._failed, 4000).decode(errors="replace") or self._error
        self._kill_rest()
        for pipe in list(self._outputs):
            self._drain(pipe)
        self._tell()

    def _tell(self) -> None:
        """How it has ended; a program of which nothing is known was killed."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = signal.SIGKILL if self._status is None else self._status
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        ended = {
            "code": code,
            "signal": os.WTERMSIG(status) if code is None else None,
            "error": self._error,
            "begun_ms": round(self._begun * 1000),
            "ended_ms": round(time.time() * 1000),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
            "lost": self._lost,
        }
        self._write("exit.json", ended)

    # ---- the program ------------------------------------------------------------------------

    def _begin(self) -> None:
        most = self._spec["output_bytes"]
        ends = []
        for name in ("stdout", "stderr"):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours, False)
            self._outputs[ours] = Output(self._directory, name, most)
            ends.append(theirs)
        self._failed, fails = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._failed, False)
        me = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            code = _NOT_RUNNABLE
            try:
                signal.set_wakeup_fd(-1)  # what it hears now is not for its supervisor
                self._become(me, *ends)
            except BaseException as wrong:
                code, sentence = _sentence(wrong, self._spec)
                os.write(fails, sentence.encode()[:4000])
            os._exit(code)
        os.close(fails)
        for end in ends:
            os.close(end)

    def _become(self, parent: int, stdout: int, stderr: int) -> None:
        spec = self._spec
        os.setsid()
        if spec["cgroup"]:
            try:
                with open(os.path.join(spec["cgroup"], "cgroup.procs"), "w") as file:  # noqa: PTH118, PTH123
                    file.write(f"{os.getpid()}\n")
            except OSError:  # it can still be killed by its descent
                pass
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *_HEARD):
            signal.signal(number, signal.SIG_DFL)
        for limit in (resource.RLIMIT_DATA, resource.RLIMIT_CORE):  # the scheduler's own are not the job's
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (hard, hard))
        # Nor is it spared, as they may be, when memory runs out.
        with suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123
            if int(file.read()) < 0:
                file.seek(0)
                file.write("0")
        user = spec["user"]
        if user is not None:
            os.setgroups(user["groups"])
            os.setresgid(user["gid"], user["gid"], user["gid"])
            os.setresuid(user["uid"], user["uid"], user["uid"])
        # After the change of user, which takes it back.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        os.umask(spec["umask"])
        os.chdir(spec["directory"])
        null = os.open(os.devnull, os.O_RDONLY)
        for there, number in ((null, 0), (stdout, 1), (stderr, 2)):
            os.dup2(there, number)
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])  # noqa: S606

    # ---- until it ends ----------------------------------------------------------------------

    def _watch(self, signals: int) -> None:
        poll = select.poll()
        for one in (signals, *self._outputs):
            poll.register(one, select.POLLIN)
        while self._status is None:
            left = self._left()
            if self._kill_at is not None:
                left = min(left, max(self._kill_at - time.monotonic(), 0))
            for one, _ in poll.poll(None if left == float("inf") else left * 1000 + 1):
                if one == signals:
                    self._hear(os.read(signals, 512))
                elif not self._copy(one):
                    poll.unregister(one)
            self._lost = self._status is None and self._left() <= 0
            if self._lost or (self._kill_at is not None and time.monotonic() >= self._kill_at):
                self._error = CUT_OFF if self._lost else self._error
                self._kill_rest()

    def _left(self) -> float:
        """Seconds for which it need not look again; 0: its node is cut off."""
        if not (path := self._spec.get("until")):
            return float("inf")
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._until is None or now >= self._until:
            with suppress(OSError):  # else what it has said last
                self._until = os.stat(path).st_mtime  # noqa: PTH116
        return _LOOK if self._until is None else min(max(self._until - now, 0), _LOOK)

    def _hear(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                self._reap()
            elif number == _KILL:
                self._kill_at = time.monotonic()
            elif number == signal.SIGTERM:
                self._pass_on(signal.SIGTERM)
                self._pass_on(signal.SIGCONT)  # one that was stopped hears it, too
                if self._kill_at is None:
                    self._kill_at = time.monotonic() + self._spec["grace_seconds"]
            elif number == _PASS_TERM:
                self._pass_on(signal.SIGTERM)
            else:
                self._pass_on(number - _PASS_TERM if number in _SHIFTED else number)

    def _pass_on(self, number: int) -> None:
        """To the program's group. It is not reaped yet, so that the number is still its own."""
        if self._pid and self._status is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)

    def _reap(self) -> bool:
        """Collect who has died; False when there is no child left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = status

    def _kill_rest(self) -> None:
        """Kill all descendants until there is none: orphans of those killed have become our children. The
        program first: else it may tell of a child that was killed."""
        self._pass_on(signal.SIGKILL)
        if self._spec["cgroup"]:
            try:
                with open(os.path.join(self._spec["cgroup"], "cgroup.kill"), "w") as file:  # noqa: PTH118, PTH123
                    file.write("1")
            except OSError:
                pass
        pause = 0.001
        while self._reap():
            for pid in _descendants(os.getpid()):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    # ---- what it says, and what is written down -------------------------------------------

    def _copy(self, pipe: int) -> bool:
        """False: there will be no more."""
        try:
            data = os.read(pipe, _READ)
        except BlockingIOError:
            return True
        self._outputs[pipe].write(data)
        return bool(data)

    def _drain(self, pipe: int) -> None:
        """What is in the pipe still; who else has it open now is none of ours."""
        try:
            while data := os.read(pipe, _READ):
                self._outputs[pipe].write(data)
        except BlockingIOError:
            pass

    def _write(self, name: str, content: object) -> None:
        path = os.path.join(self._directory, name)  # noqa: PTH118
        text = json.dumps(content).encode()
        while True:
            try:
                with open(f"{path}.new", "wb", buffering=0) as file:  # noqa: PTH123
                    if file.write(text) != len(text):
                        raise OSError(errno.ENOSPC, "it does not fit")
                    os.fsync(file)
                os.rename(f"{path}.new", path)  # noqa: PTH104
                directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
                return
            except OSError as wrong:
                if wrong.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                time.sleep(1.0)  # until there is room: how it ended is not to be lost


def _sentence(wrong: BaseException, spec: dict[str, object]) -> tuple[int, str]:
    """The code that a shell would give, and why it could not be started."""
    command = spec["command"]
    assert isinstance(command, list)
    if isinstance(wrong, OSError) and wrong.filename == spec["directory"]:
        return _NOT_RUNNABLE, f"the directory '{spec['directory']}' cannot be entered: {wrong.strerror}"
    if isinstance(wrong, FileNotFoundError):
        return _NOT_FOUND, f"there is no command '{command[0]}'"
    reason = wrong.strerror if isinstance(wrong, OSError) else wrong
    return _NOT_RUNNABLE, f"'{command[0]}' cannot be run: {reason}"


def _start_time(pid: int) -> int:
    """In clock ticks since the boot (proc_pid_stat(5)): with it, a pid is one process for good."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return int(file.read().rpartition(b")")[2].split()[19])


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = {root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return list(found - {root})


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[2]), False)
    Supervisor(sys.argv[1]).keep()
