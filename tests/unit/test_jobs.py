"""The runs of one node, with real programs: how they end, what is left, and who takes them over."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.backend import GoneError, StateError
from hal.enforce.cgroup import Group, Tree
from hal.scheduler.jobs import output, supervisor
from hal.scheduler.jobs.marks import MARK, strays
from hal.scheduler.jobs.spec import Ended, JobSpec, Launch
from hal.scheduler.jobs.table import Jobs, RunId, _alive
from tests.conftest import wait_until
from tests.disks import Disk

RUN = ("l", 1, 0)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "jobs"
    for pid in running(tmp_path / "jobs"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def jobs(directory: Path) -> Iterator[Jobs]:
    one = Jobs(directory)
    yield one
    one.close()


def running(directory: Path) -> list[int]:
    return strays(directory)


def launch(*command: str, **more: object) -> Launch:
    plain = {
        "environment": {"PATH": os.environ["PATH"]},
        "directory": "/",
        "output_bytes": 1 << 20,
        "umask": 0o022,
        "user": None,
    }
    return Launch(command=list(command), **(plain | more))  # type: ignore[arg-type]


def shell(script: str, **more: object) -> Launch:
    return launch("/bin/sh", "-c", script, **more)


def end_of(jobs: Jobs, run: RunId = RUN) -> Ended:
    found: list[Ended] = []

    def ended() -> bool:
        jobs.turn()
        found[:] = [one for one in jobs.ended() if (one.lease, one.epoch, one.member) == run]
        return bool(found)

    wait_until(ended)
    return found[0]


def said(jobs: Jobs, stream: str = "stdout", run: RunId = RUN) -> bytes:
    return jobs.output(run, stream, 0, 1 << 20).data


@pytest.mark.parametrize(
    ("program", "code", "number"),
    [("exit 0", 0, None), ("exit 42", 42, None), ("exit 255", 255, None), ("kill -SEGV $$", None, 11),
     ("kill -KILL $$", None, 9), ("kill -TERM $$", None, 15)],
)  # fmt: skip
def test_exit_codes_and_signals_are_exact(
    jobs: Jobs, program: str, code: int | None, number: int | None
) -> None:
    jobs.start(RUN, shell(program))
    ended = end_of(jobs)
    assert (ended.code, ended.signal, ended.error) == (code, number, "")


@pytest.mark.parametrize(
    ("one", "code", "error"),
    [
        (launch("no-such-program"), 127, "there is no command 'no-such-program'"),
        (launch("/etc"), 126, "'/etc' cannot be run: Permission denied"),
        (launch("true", directory="/no/where"), 126, "the directory '/no/where' cannot be entered"),
    ],
)
def test_what_cannot_be_started_says_why(jobs: Jobs, one: Launch, code: int, error: str) -> None:
    jobs.start(RUN, one)
    ended = end_of(jobs)
    assert ended.code == code
    assert ended.error.startswith(error)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_need_not_be_able_to_read_python(directory: Path, jobs: Jobs) -> None:
    """A Python below /root, for one: nothing is imported after the change of user."""
    from hal.scheduler.jobs.spec import User

    jobs.start(RUN, launch("sh", "-c", "exit 3", user=User("nobody", 65534, 65534, [65534], "/", "/bin/sh")))
    ended = end_of(jobs)
    assert (ended.code, ended.error) == (3, "")


def test_output_is_kept_apart_and_a_program_has_only_its_environment(jobs: Jobs) -> None:
    jobs.start(RUN, shell("echo out; echo err >&2; env; pwd", environment={"A": "b"}, directory="/tmp"))
    end_of(jobs)
    lines = said(jobs).decode().split()
    assert lines[0] == "out" and lines[-1] == "/tmp" and "A=b" in lines
    assert not any(line.startswith("HAL_") and not line.startswith("HAL_RUN=") for line in lines)
    assert said(jobs, "stderr") == b"err\n"


def test_of_much_output_the_last_is_kept_with_its_offsets(jobs: Jobs, directory: Path) -> None:
    count = 40_000
    jobs.start(RUN, shell(f"seq -f %09.0f 0 {count - 1}", output_bytes=65536))
    end_of(jobs)
    whole = b"".join(b"%09d\n" % number for number in range(count))
    offset, found = 0, b""
    first = None
    while not (piece := jobs.output(RUN, "stdout", offset, 5000)).end:
        first = piece.offset if first is None else first
        found += piece.data
        offset = piece.offset + len(piece.data)
    assert first is not None and first > 0
    assert found == whole[first:]
    assert 32768 <= len(found) <= 65536
    assert sum(path.stat().st_size for path in (directory / "l.1.0").glob("stdout.*")) <= 65536


def escapees(script: str) -> Launch:
    """A program that leaves a daemon behind, twice forked and in a session of its own, deaf to SIGTERM."""
    daemon = (
        "import os,signal,time,sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        print('away', flush=True)\n"
        "        time.sleep(1000)\n"
        "    os._exit(0)\n"
        "os.wait()\n" + script
    )
    return launch(sys.executable, "-S", "-c", daemon)


def test_what_a_program_leaves_behind_is_killed_with_its_end(jobs: Jobs, directory: Path) -> None:
    jobs.start(RUN, escapees("time.sleep(0.3); sys.exit(3)"))
    assert end_of(jobs).code == 3
    assert said(jobs) == b"away\n"
    assert running(directory) == []


def test_an_end_is_waited_for_and_then_forced(jobs: Jobs, directory: Path) -> None:
    script = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    jobs.start(RUN, shell(script))
    wait_until(lambda: said(jobs) == b"ready\n")
    wait_until(lambda: jobs.end("l", signal.SIGTERM))
    assert end_of(jobs).code == 7
    other = ("m", 1, 0)
    jobs.start(other, escapees("time.sleep(1000)"))
    wait_until(lambda: said(jobs, run=other) == b"away\n")
    assert not jobs.end("m", 0)
    wait_until(lambda: jobs.end("m", signal.SIGKILL))
    assert end_of(jobs, other).signal == signal.SIGKILL
    assert running(directory) == []


def test_what_is_ended_before_it_has_begun_never_begins(jobs: Jobs, directory: Path) -> None:
    jobs.start(RUN, shell("echo begun; sleep 1000"))
    wait_until(lambda: jobs.end("l", signal.SIGKILL))
    assert end_of(jobs).signal == signal.SIGKILL
    assert running(directory) == []


def test_one_that_hangs_before_it_runs_can_be_ended(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "cgroup.procs")  # the kernel, or a file system, that does not answer
    monkeypatch.setattr(jobs, "_group", lambda _: str(tmp_path))
    jobs.start(RUN, shell("echo never"))
    wait_until(lambda: _alive(jobs._living[RUN].path) is not None)
    wait_until(lambda: len(running(jobs._directory)) == 3)
    wait_until(lambda: jobs.end("l", signal.SIGKILL), seconds=20)
    assert end_of(jobs).signal == signal.SIGKILL and said(jobs) == b""


def test_signals_reach_the_program(jobs: Jobs) -> None:
    script = "for s in HUP INT QUIT USR1 USR2 TERM; do trap \"echo $s\" $s; done; echo ready; " \
        "while :; do sleep 0.01; done"  # fmt: skip
    jobs.start(RUN, shell(script))
    wait_until(lambda: said(jobs) == b"ready\n")
    heard = b"ready\n"
    for name in ("HUP", "QUIT", "USR1", "USR2", "TERM"):
        jobs.signal(RUN, signal.Signals[f"SIG{name}"])
        heard += name.encode() + b"\n"
        wait_until(lambda heard=heard: said(jobs) == heard)  # type: ignore[misc]
    jobs.signal(RUN, signal.SIGKILL)
    assert end_of(jobs).signal == signal.SIGKILL
    jobs.signal(RUN, signal.SIGTERM)  # it has ended: no error
    with pytest.raises(GoneError):
        jobs.signal(("x", 1, 0), signal.SIGTERM)


def test_no_signal_stops_or_kills_the_supervisor(jobs: Jobs, directory: Path) -> None:
    script = "for s in ALRM WINCH CONT; do trap \"echo $s\" $s; done; trap 'echo TERM; exit 3' TERM; " \
        "echo ready; while :; do sleep 0.01; done"  # fmt: skip
    jobs.start(RUN, shell(script))
    wait_until(lambda: said(jobs) == b"ready\n")
    heard = b"ready\n"
    for name in ("ALRM", "WINCH"):
        jobs.signal(RUN, signal.Signals[f"SIG{name}"])
        heard += name.encode() + b"\n"
        wait_until(lambda heard=heard: said(jobs) == heard)  # type: ignore[misc]
    jobs.signal(RUN, signal.SIGSTOP)
    pid = _alive(directory / "l.1.0")
    wait_until(lambda: any(state_of(one) == "T" for one in running(directory)))
    assert pid is not None and state_of(pid) == "S"
    wait_until(lambda: jobs.end("l", signal.SIGTERM))
    assert end_of(jobs).code == 3
    jobs.start(("m", 1, 0), shell("ulimit -c 0; echo ready; sleep 1000"))
    wait_until(lambda: said(jobs, run=("m", 1, 0)) == b"ready\n")
    jobs.signal(("m", 1, 0), signal.SIGSEGV)
    assert (end_of(jobs, ("m", 1, 0)).signal, end_of(jobs, ("m", 1, 0)).error) == (signal.SIGSEGV, "")
    for number in (0, 29, 99):
        with pytest.raises(StateError):
            jobs.signal(RUN, number)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_the_next_agent_takes_over_and_a_run_is_started_once(directory: Path) -> None:
    first = Jobs(directory)
    first.start(RUN, shell("echo once; while [ ! -e go ]; do sleep 0.01; done; exit 5",
                           directory=str(directory.parent)))  # fmt: skip
    first.start(("short", 1, 0), shell("exit 6"))
    wait_until(lambda: said(first) == b"once\n")
    first.close()
    second = Jobs(directory)
    second.open()
    assert RUN in second.living()
    second.start(RUN, shell("echo again"))
    (directory.parent / "go").touch()
    assert end_of(second).code == 5
    assert said(second) == b"once\n"
    assert end_of(second, ("short", 1, 0)).code == 6
    second.told(second.ended())
    second.close()
    third = Jobs(directory)
    third.open()
    assert (third.living(), third.ended()) == (set(), [])
    third.close()


def test_nothing_runs_on_when_a_supervisor_is_killed(jobs: Jobs, directory: Path) -> None:
    for number in range(12):
        run = ("l", number, 0)
        jobs.start(run, escapees("[os.fork() for _ in range(3)]; time.sleep(1000)"))
        path = directory / f"l.{number}.0"
        wait_until(lambda path=path: _alive(path) is not None)  # type: ignore[misc]
        time.sleep(random.random() * 0.08)
        pid = _alive(path)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ended = end_of(jobs, run)
        assert (ended.signal, ended.error) == (signal.SIGKILL, "its supervisor was killed")
        assert running(directory) == []


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "hidden"
    if (tmp_path / "hidden").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "hidden").read_text()), signal.SIGKILL)


def test_without_an_agent_and_without_a_mark_nothing_runs_on_either(directory: Path, hidden: Path) -> None:
    agent = Jobs(directory)
    hide = f"env -i setsid /bin/sh -c 'echo $$ >{hidden}.new; mv {hidden}.new {hidden}; exec sleep 1000'"
    agent.start(RUN, shell(f"{hide} & wait"))
    wait_until(hidden.exists)
    agent.close()
    pid = _alive(directory / "l.1.0")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until((directory / "l.1.0" / "exit.json").exists)
    with pytest.raises(ProcessLookupError):
        os.kill(int(hidden.read_text()), 0)
    later = Jobs(directory)
    later.open()
    assert (end_of(later).signal, end_of(later).error) == (signal.SIGKILL, "its supervisor was killed")
    later.close()


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of control groups, where one can be made and emptied here."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        with contextlib.suppress(StateError):
            one = Tree(root).make(f"test-{os.getpid()}")
            can_kill = (one.path / "cgroup.kill").exists()
            one.remove()
            if can_kill:
                monkeypatch.setenv("HAL_CGROUP_ROOT", str(root))
                return root / "hal"
    pytest.skip("no control group can be made here")


def test_in_a_control_group_nothing_can_hide(groups: Path, jobs: Jobs, hidden: Path) -> None:
    lease = f"test{os.getpid()}"  # the groups are the whole machine's
    run = (lease, 1, 0)
    hide = f"env -i setsid /bin/sh -c 'echo $$ >{hidden}.new; mv {hidden}.new {hidden}; exec sleep 1000'"
    jobs.start(run, shell(f"{hide} & wait"))
    wait_until(hidden.exists)
    outer, inner = jobs._living[run].process, _alive(jobs._living[run].path)
    assert outer is not None and inner is not None
    (group,) = (group for group in groups.glob(f"run-{lease}.1.0") if hidden.read_text().strip() in
                (group / "cgroup.procs").read_text().split())  # fmt: skip
    for pid in (outer.pid, inner):
        os.kill(pid, signal.SIGKILL)
    assert end_of(jobs, run).error == "its supervisor was killed"
    assert state_of(int(hidden.read_text())) in ("Z", "X", "gone") and not group.exists()
    jobs.start((lease, 2, 0), shell("exit 3"))
    assert end_of(jobs, (lease, 2, 0)).code == 3
    assert not list(groups.glob(f"run-{lease}.*"))


def test_its_control_group_goes_with_a_run_that_ends_without_an_agent(groups: Path, directory: Path) -> None:
    run = (f"test{os.getpid()}", 3, 0)
    agent = Jobs(directory)
    agent.start(run, shell("while [ ! -e go ]; do sleep 0.01; done", directory=str(directory.parent)))
    group = groups / f"run-{run[0]}.3.0"
    supervisor = agent._living[run].process
    agent.close()
    assert group.exists() and supervisor is not None
    (directory.parent / "go").touch()
    assert supervisor.wait(30) == 0
    assert not group.exists()


def test_while_something_in_its_control_group_lives_a_run_has_not_ended(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.start(RUN, shell("sleep 1000"))
    wait_until(lambda: _alive(jobs._living[RUN].path) is not None)
    outer, inner = jobs._living[RUN].process, _alive(jobs._living[RUN].path)
    assert outer is not None and inner is not None
    with monkeypatch.context() as patched:
        patched.setattr(Group, "has_processes", lambda _: True)
        for pid in (outer.pid, inner):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: jobs.turn() is None and jobs.busy)
        wait_until(lambda: jobs.turn() is None and not running(jobs._directory))
        jobs.turn()
        assert jobs.living() == {RUN}
    assert end_of(jobs).signal == 9


def test_when_only_the_outer_of_its_two_processes_is_killed_the_run_goes_on(
    jobs: Jobs, directory: Path
) -> None:
    jobs.start(RUN, shell("trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done"))
    wait_until(lambda: said(jobs) == b"ready\n")
    outer = jobs._living[RUN].process
    assert outer is not None and outer.pid != _alive(directory / "l.1.0")
    outer.kill()
    outer.wait()
    for _ in range(3):
        jobs.turn()
    assert not select.select([jobs.descriptor], [], [], 0)[0]  # it does not keep the agent busy
    assert jobs.living() == {RUN}
    jobs.signal(RUN, signal.SIGUSR1)
    assert end_of(jobs).code == 7


def test_what_nobody_knows_of_is_swept_at_the_start(directory: Path) -> None:
    first = Jobs(directory)
    first.start(RUN, escapees("time.sleep(1000)"))
    wait_until(lambda: said(first) == b"away\n")
    first.close()
    pid = _alive(directory / "l.1.0")
    assert pid is not None
    (directory / "l.1.0").rename(directory.parent / "elsewhere")  # a directory that somebody removed
    second = Jobs(directory)
    second.open()
    wait_until(lambda: running(directory) == [])
    second.close()


def test_nothing_is_swept_of_an_agent_in_another_container(directory: Path) -> None:
    name = directory / "l.1.0"
    with contextlib.ExitStack() as stack:
        disk = Disk(stack, directory)  # to who is in there, this is another directory
        there = disk.command("sh", "-c", "echo && exec sleep 1000")
        theirs, ours = (
            subprocess.Popen(words, env={MARK: str(name), "PATH": os.environ["PATH"]}, stdout=subprocess.PIPE)
            for words in (there, ["sh", "-c", "echo && exec sleep 1000"])
        )
        for one in theirs, ours:
            stack.enter_context(one)
            stack.callback(one.kill)
            assert one.stdout is not None and one.stdout.readline() == b"\n"
        jobs = Jobs(directory)
        jobs.open()
        jobs.close()
        assert ours.wait(10) == -signal.SIGKILL
        assert theirs.poll() is None


def test_a_run_that_no_supervisor_has_begun_is_begun_when_it_is_ordered_again(directory: Path) -> None:
    (directory / "l.1.0").mkdir(parents=True)  # the agent was killed just then
    (directory / "l.1.0" / "lock").touch()
    one = Jobs(directory)
    one.open()
    assert (one.living(), one.ended()) == (set(), [])
    one.start(RUN, shell("exit 3"))
    assert end_of(one).code == 3
    one.close()


def test_a_run_whose_supervisor_is_gone_has_ended(directory: Path) -> None:
    (directory / "l.1.0").mkdir(parents=True)
    (directory / "l.1.0" / "lock").touch()
    (directory / "l.1.0" / "alive").write_text('{"pid": 1, "start": 0}')
    one = Jobs(directory)
    one.open()
    assert end_of(one).signal == signal.SIGKILL
    one.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_runs_as_another_user_and_dies_with_its_supervisor(directory: Path, jobs: Jobs) -> None:
    from hal.scheduler.jobs.spec import User

    user = User("nobody", 65534, 65534, [65534], "/", "/bin/sh")
    jobs.start(RUN, shell("id -u; id -g; id -G; sleep 1000", user=user))
    wait_until(lambda: said(jobs) == b"65534\n65534\n65534\n")
    pid = _alive(directory / "l.1.0")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    end_of(jobs)
    assert running(directory) == []


def test_a_piece_that_is_dropped_while_it_is_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stdout.0").write_bytes(b"ab")
    (tmp_path / "stdout.4").write_bytes(b"ef")  # what should be between was lost on a full disk
    real = Path.open

    def dropped(path: Path, mode: str = "r", **more: Any) -> object:
        opened = real(path, mode, **more)
        if path.name == "stdout.0" and (tmp_path / "stdout.4").exists():
            (tmp_path / "stdout.4").rename(tmp_path / "stdout.6")
        return opened

    monkeypatch.setattr(Path, "open", dropped)
    assert output.read(tmp_path, "stdout", 2, 1, ended=False) == output.Piece(6, b"e", end=False)


def test_what_cannot_be_read_of_the_output_is_said(tmp_path: Path) -> None:
    (tmp_path / "stdout.0").mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        output.read(tmp_path, "stdout", 0, 1, ended=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a disk that is full")
def test_on_a_full_disk_a_program_goes_on_and_its_end_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=9", "hal", disk], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    one = Jobs(disk / "jobs")
    try:
        one.start(RUN, shell("echo up; read x < go; seq 4000; exit 5", output_bytes=8192,
                             directory=str(tmp_path)))  # fmt: skip
        os.mkfifo(tmp_path / "go")
        wait_until(lambda: said(one) == b"up\n")
        pid = _alive(disk / "jobs" / "l.1.0")
        assert pid is not None
        with contextlib.suppress(OSError):
            for number in range(9):
                (disk / f"filler{number}").touch()
        (tmp_path / "go").write_text("\n")
        children = Path(f"/proc/{pid}/task/{pid}/children")
        wait_until(lambda: not children.read_text())
        (disk / "filler0").unlink()
        assert (end_of(one).code, end_of(one).error) == (5, "")
    finally:
        one.end("l", signal.SIGKILL)
        one.close()
        subprocess.run(["umount", "-l", disk], check=True)


def test_how_it_ended_is_written_down_however_long_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.json").write_text("{}")
    files, full = [], iter([True] * 50)

    def fsync(_file: int) -> None:
        files.append(len(list(Path("/proc/self/fd").iterdir())))
        if next(full, False):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    supervisor.Supervisor(str(tmp_path))._write("exit.json", {"code": 3})
    assert (tmp_path / "exit.json").read_text() == '{"code": 3}'
    assert len(files) > 50 and max(files) - min(files) <= 1


def test_a_piece_of_output_is_read_from_where_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "stdout.10").write_bytes(b"abcde")
    (tmp_path / "stdout.15").write_bytes(b"fg")
    (tmp_path / "stdout.new").touch()
    assert output.read(tmp_path, "stdout", 0, 100, ended=True) == output.Piece(10, b"abcde", False)
    assert output.read(tmp_path, "stdout", 15, 100, ended=True) == output.Piece(15, b"fg", False)
    assert output.read(tmp_path, "stdout", 17, 100, ended=True) == output.Piece(17, b"", True)
    assert output.read(tmp_path, "stdout", 17, 100, ended=False) == output.Piece(17, b"", False)
    assert output.read(tmp_path, "stderr", 3, 100, ended=True) == output.Piece(3, b"", True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"command": []}, "names no program"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"command": ["x" * 40_000]}, "more than"),
        ({"command": ["a"], "directory": "tmp"}, "absolute"),
        ({"command": ["a"], "output_bytes": 1}, "output_bytes"),
        ({"command": ["a"], "environment": {"HAL_X": "1"}}, "set by hal itself"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JobSpec(**fields)  # type: ignore[arg-type]
