"""The real ledger between real processes: exact at rest, never too low, whoever is killed and when."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hal.backend import StateError
from hal.enforce.ledger import Ledger
from hal_native import ffi, lib

SLOTS = lib.HAL_LEDGER_SLOTS
HIGHEST = 2**64 - 1
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slice.ledger"


@pytest.fixture
def mapped(path: Path) -> Iterator[Any]:
    """A ledger of one device with room for 1000 bytes."""
    with_limit(path, 1000)
    ledger = opened(path)
    yield ledger
    lib.hal_ledger_close(ledger)


def with_limit(path: Path, *limits: int) -> None:
    Ledger.create(path, "test", [(f"null:{n}", limit) for n, limit in enumerate(limits)]).close()


def opened(path: Path) -> Any:
    ledger = lib.hal_ledger_open(os.fsencode(path), ffi.new("enum hal_ledger_error *"))
    assert ledger != ffi.NULL
    return ledger


def child(work: Callable[[], None]) -> int:
    """Fork: a real process of its own, without the price of starting Python anew."""
    pid = os.fork()
    if pid == 0:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is left over when a test fails
        with suppress(BaseException):
            work()
        os._exit(0)
    return pid


def kill(pid: int, *, collect: bool = True) -> None:
    os.kill(pid, signal.SIGKILL)
    if collect:
        os.waitpid(pid, 0)
    else:  # a zombie holds nothing either
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def held(ledger: Any, device: int = 0) -> int:
    """What the slots of all processes add up to."""
    return sum(ledger.slot[n].mine[device] for n in range(SLOTS) if ledger.slot[n].owner)


# ---- one thing at a time, in any order ---------------------------------------------------------


class Worker:
    """A process that does with the ledger what it is told, one command at a time."""

    COMMAND = struct.Struct("=cIQ")

    def __init__(self, path: Path) -> None:
        (theirs, self._send), (self._receive, mine) = os.pipe(), os.pipe()
        self.holds = [0, 0]

        def serve() -> None:
            os.close(self._send)
            ledger = opened(path)
            slot = lib.hal_ledger_join(ledger)
            os.write(mine, bytes([slot >= 0]))
            while command := os.read(theirs, self.COMMAND.size):
                what, device, size = self.COMMAND.unpack(command)
                answer = True
                if what == b"+":
                    answer = lib.hal_ledger_reserve(ledger, slot, device, size)
                elif what == b"-":
                    lib.hal_ledger_release(ledger, slot, device, size)
                else:
                    lib.hal_ledger_leave(ledger, slot)
                    slot = lib.hal_ledger_join(ledger)
                os.write(mine, bytes([answer]))

        self.pid = child(serve)
        os.close(theirs)
        os.close(mine)
        assert os.read(self._receive, 1) == b"\1"

    def tell(self, what: bytes, device: int = 0, size: int = 0) -> bool:
        os.write(self._send, self.COMMAND.pack(what, device, size))
        return os.read(self._receive, 1) == b"\1"

    def kill(self, *, collect: bool = True) -> None:
        kill(self.pid, collect=collect)
        os.close(self._send)
        os.close(self._receive)


class InAnyOrder(RuleBasedStateMachine):
    """Processes come, reserve on two devices, give back, are resized around, and are killed."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(f"/tmp/hal-ledger-{os.getpid()}-{time.monotonic_ns()}")
        self.workers: list[Worker] = []
        self.dead_hold = [0, 0]
        self.zombies: list[int] = []
        self.limits = [1000, 1000]
        with_limit(self.path, *self.limits)
        self.ledger = opened(self.path)

    def teardown(self) -> None:
        for worker in self.workers:
            worker.kill()
        for pid in self.zombies:
            os.waitpid(pid, 0)
        lib.hal_ledger_close(self.ledger)
        self.path.unlink()

    @initialize()
    def two(self) -> None:
        self.workers = [Worker(self.path), Worker(self.path)]

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def join(self) -> None:
        self.workers.append(Worker(self.path))

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(),
        device=st.integers(0, 2),
        size=st.one_of(st.integers(0, 1100), st.sampled_from([HIGHEST, HIGHEST - 500, 2**63])),
    )
    def reserve(self, data: st.DataObject, device: int, size: int) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        granted = worker.tell(b"+", device, size)
        if device == 2:
            assert not granted  # not in the slice
            return
        # What the dead held is given back before the answer is no, and only then.
        alive = sum(other.holds[device] for other in self.workers)
        assert granted == (alive + size <= self.limits[device])
        if alive + self.dead_hold[device] + size > self.limits[device]:
            self.dead_hold = [0, 0]
        if granted:
            worker.holds[device] += size

    @precondition(lambda self: any(any(worker.holds) for worker in self.workers))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        pairs = [(w, d) for w in self.workers for d in (0, 1) if w.holds[d]]
        worker, device = data.draw(st.sampled_from(pairs))
        size = data.draw(st.integers(1, worker.holds[device]))
        worker.tell(b"-", device, size)
        worker.holds[device] -= size

    @rule(device=st.integers(0, 1), limit=st.integers(0, 2000))
    def resize(self, device: int, limit: int) -> None:
        self.ledger.device[device].limit = self.limits[device] = limit

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def leave_and_come_back(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        worker.tell(b"=")
        worker.holds = [0, 0]

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), collect=st.booleans())
    def die(self, data: st.DataObject, collect: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        worker.kill(collect=collect)
        if not collect:
            self.zombies.append(worker.pid)
        self.dead_hold = [dead + held for dead, held in zip(self.dead_hold, worker.holds, strict=True)]

    @rule()
    def reap(self) -> None:
        lib.hal_ledger_reap(self.ledger)
        self.dead_hold = [0, 0]
        assert lib.hal_ledger_reap(self.ledger) == 0

    @invariant()
    def exact(self) -> None:
        for device in (0, 1):
            alive = sum(worker.holds[device] for worker in self.workers)
            assert self.ledger.device[device].used == alive + self.dead_hold[device]


TestInAnyOrder = InAnyOrder.TestCase
TestInAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


# ---- everything at once ------------------------------------------------------------------------


def test_many_processes_killed_at_any_time(path: Path) -> None:
    """Workers keep a floor and churn above it in a tight loop; 120 of them are killed somewhere inside."""
    limit, floor, kills = 100_000, 1000, 120
    with_limit(path, limit)
    ledger = opened(path)
    shared = mmap.mmap(-1, mmap.PAGESIZE)  # [0]: stop; [1 + n]: worker n has its floor
    chance = random.Random(4711)

    def churn(number: int) -> None:
        own = opened(path)
        slot = lib.hal_ledger_join(own)
        sizes = random.Random(number)
        while not lib.hal_ledger_reserve(own, slot, 0, floor):
            time.sleep(0.0005)  # the others may hold all of it just now
        shared[number % 1000 + 1] = 1
        live: list[int] = []
        while not shared[0]:
            size = sizes.randrange(1, 60_000)
            if len(live) < 4 and lib.hal_ledger_reserve(own, slot, 0, size):
                live.append(size)
            elif live:
                lib.hal_ledger_release(own, slot, 0, live.pop(sizes.randrange(len(live))))
        for size in live[1:]:
            lib.hal_ledger_release(own, slot, 0, size)
        own.slot[slot].mine[1] = 1  # a device that the slice has not: "I am at rest"
        signal.pause()

    def sound(floors: int) -> bool:
        used = ledger.device[0].used
        if used > limit:  # a freed slot that is being claimed may count for a moment; it never lasts
            wait_for(lambda: ledger.device[0].used <= limit)
        return bool(used >= floors * floor)

    def begin(number: int) -> tuple[int, int]:
        pid = child(lambda: churn(number))
        while not shared[number % 1000 + 1]:
            time.sleep(0.0005)
        return number, pid

    workers = [begin(number) for number in range(4)]
    try:
        for number in range(4, 4 + kills):
            until = time.monotonic() + chance.uniform(0.0005, 0.01)
            while time.monotonic() < until:
                assert sound(4)
            victim = chance.randrange(4)
            _, pid = workers.pop(victim)
            kill(pid)
            assert sound(3)
            if chance.random() < 0.5:
                lib.hal_ledger_reap(ledger)
                assert sound(3)
            workers.append(begin(number))
        refused = ledger.device[0].refused
        shared[0] = 1
        pids = {pid for _, pid in workers}
        slots = [n for n in range(SLOTS) if lib.hal_ledger_owner_pid(ledger.slot[n].owner) in pids]
        assert len(slots) == 4
        wait_for(lambda: all(ledger.slot[slot].mine[1] for slot in slots))
        lib.hal_ledger_reap(ledger)
        assert [n for n in range(SLOTS) if ledger.slot[n].owner] == slots
        assert limit >= ledger.device[0].used == held(ledger) >= 4 * floor
        assert refused > 0  # the limit was met all the time
        for expected in (1, 1, 1, 1):
            kill(workers.pop()[1])
            assert lib.hal_ledger_reap(ledger) == expected
            assert ledger.device[0].used == held(ledger)
        assert ledger.device[0].used == 0
    finally:
        for _, pid in workers:
            kill(pid)
        lib.hal_ledger_close(ledger)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_resized_live_while_others_reserve(path: Path, mapped: Any) -> None:
    ledger = Ledger.open(path)
    stop = mmap.mmap(-1, mmap.PAGESIZE)

    def churn() -> None:
        own = opened(path)
        slot = lib.hal_ledger_join(own)
        while not stop[0]:
            if lib.hal_ledger_reserve(own, slot, 0, 7):
                lib.hal_ledger_release(own, slot, 0, 7)

    pids = [child(churn) for _ in range(2)]
    try:
        slot = lib.hal_ledger_join(mapped)
        assert lib.hal_ledger_reserve(mapped, slot, 0, 500)
        for limit in (2000, 600, 100, 0, 500, 1500, 514) * 20:
            ledger.set_limit(0, limit)
            room = limit - 500 - 2 * 7
            if room >= 0:
                assert lib.hal_ledger_reserve(mapped, slot, 0, room)
                assert mapped.device[0].used <= limit
                lib.hal_ledger_release(mapped, slot, 0, room)
            assert not lib.hal_ledger_reserve(mapped, slot, 0, max(limit - 500 + 1, 1))
            assert mapped.device[0].used >= 500  # nothing is taken away
    finally:
        stop[0] = 1
        for pid in pids:
            os.waitpid(pid, 0)
        lib.hal_ledger_reap(mapped)
        assert ledger.devices()[0].used_bytes == 500
        ledger.close()


def test_each_slot_is_taken_and_after_the_deaths_free_again(mapped: Any, path: Path) -> None:
    shared = mmap.mmap(-1, mmap.PAGESIZE)

    def take(number: int) -> None:
        own = opened(path)
        taken = 0
        while (slot := lib.hal_ledger_join(own)) >= 0 and taken < SLOTS // 2:
            taken += 1
            assert lib.hal_ledger_reserve(own, slot, 0, 3)
        shared[number] = 1
        signal.pause()

    first = child(lambda: take(0))
    wait_for(lambda: shared[0] == 1)
    second = child(lambda: take(1))
    wait_for(lambda: shared[1] == 1)
    try:
        assert all(mapped.slot[n].owner for n in range(SLOTS))
        assert lib.hal_ledger_join(mapped) == -1
        assert lib.hal_ledger_reap(mapped) == 0
        kill(first, collect=False)
        slot = lib.hal_ledger_join(mapped)
        assert slot >= 0
        assert mapped.device[0].used == held(mapped) < SLOTS * 3
        assert lib.hal_ledger_reserve(mapped, slot, 0, 5)
    finally:
        kill(second)
        os.waitpid(first, 0)
    assert lib.hal_ledger_reap(mapped) > 0
    assert mapped.device[0].used == 5


# ---- the file ----------------------------------------------------------------------------------


def corrupted(path: Path, offset: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(raw)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "not a slice file, or is cut short"),
        (lambda path: path.write_bytes(b"HALSLICE"), "not a slice file, or is cut short"),
        (lambda path: path.write_bytes(b"x" * 1_000_000), "not a slice file, or is cut short"),
        (lambda path: os.truncate(path, 100), "not a slice file, or is cut short"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "not a slice file, or is cut short"),
        (lambda path: os.truncate(path, path.stat().st_size + 1), "not a slice file, or is cut short"),
        (lambda path: corrupted(path, 0, b"X"), "not a slice file, or is cut short"),
        (lambda path: corrupted(path, 8, struct.pack("=I", 2)), "made by another version of hal"),
        (lambda path: corrupted(path, 12, struct.pack("=I", 1)), "not a slice file, or is cut short"),
        (lambda path: corrupted(path, 16, struct.pack("=I", 65)), "not a slice file, or is cut short"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: (path.rename(f"{path}.real"), path.symlink_to(f"{path}.real")), "Too many levels"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "not a slice file, or is cut short"),
    ],
)
def test_what_is_no_ledger_of_ours_is_refused(
    path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    with_limit(path, 1000)
    damage(path)
    with pytest.raises(StateError, match=f"cannot use the slice file {path}: .*{reason}"):
        Ledger.open(path)


def test_a_ledger_is_never_made_over_another(path: Path) -> None:
    with_limit(path, 1000)
    before = path.read_bytes()
    with pytest.raises(StateError, match="File exists"):
        Ledger.create(path, "again", [("null:0", 1)])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_ledger_is_the_users_alone_and_names_its_devices(path: Path) -> None:
    ledger = Ledger.create(path, "x" * 200, [("amd:pci-0000:9b:00.0", 10), ("nvidia:GPU-1", HIGHEST)])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(use.device, use.limit_bytes, use.used_bytes, use.refused) for use in ledger.devices()] == [
        ("amd:pci-0000:9b:00.0", 10, 0, 0),
        ("nvidia:GPU-1", HIGHEST, 0, 0),
    ]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            ledger.set_limit(index, 1)
    ledger.close()
    ledger.close()
    with pytest.raises(StateError, match="64 devices, not on 65"):
        Ledger.create(path, "many", [(f"null:{n}", 1) for n in range(65)])


def test_the_living_of_a_slice_are_named_and_the_dead_are_not(path: Path) -> None:
    with_limit(path, 1000)
    ledger = Ledger.open(path)
    worker, other = Worker(path), Worker(path)
    try:
        assert set(ledger.pids()) == {worker.pid, other.pid}
        assert worker.tell(b"+", 0, 600)
        assert not other.tell(b"+", 0, 600)
        assert ledger.devices()[0].refused == 1
        worker.kill(collect=False)
        assert ledger.pids() == [other.pid]
        assert ledger.devices()[0].used_bytes == 0
        os.waitpid(worker.pid, 0)
    finally:
        other.kill()
        ledger.close()
