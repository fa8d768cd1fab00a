"""The real ledger between real processes: exact at rest, never too low, whoever is killed and when."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import mmap
import os
import random
import re
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hal.backend import StateError
from hal.enforce.ledger import Ledger, RunState
from hal.model import Enforcement, Rung
from hal_native import ffi, lib

SLOTS = lib.HAL_LEDGER_SLOTS
HIGHEST = 2**64 - 1
MOST = 2**60  # HAL_LEDGER_MOST
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
    return sum(
        lib.hal_ledger_mine(ffi.addressof(ledger.slot, n), device) for n in range(SLOTS) if claimed(ledger, n)
    )


def claimed(ledger: Any, slot: int) -> int:
    """The pid of whom a slot belongs to, or 0."""
    return int(lib.hal_ledger_owner_pid(ledger.slot[slot].owner))


# ---- one thing at a time, in any order ---------------------------------------------------------


class Worker:
    """A process that does with the ledger what it is told, one command at a time."""

    COMMAND = struct.Struct("=cIQ")

    def __init__(self, path: Path, uid: int | None = None) -> None:
        (theirs, self._send), (self._receive, mine) = os.pipe(), os.pipe()
        self.holds = [0, 0]

        def serve() -> None:
            os.close(self._send)
            ledger = opened(path)
            if uid is not None:
                os.setuid(uid)
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
        own.slot[slot].lane[0].mine[1] = 1  # a device that the slice has not: "I am at rest"
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
        slots = [n for n in range(SLOTS) if claimed(ledger, n) in pids]
        assert len(slots) == 4
        wait_for(lambda: all(ledger.slot[slot].lane[0].mine[1] for slot in slots))
        lib.hal_ledger_reap(ledger)
        assert [n for n in range(SLOTS) if claimed(ledger, n)] == slots
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


def test_200_000_random_operations_and_kills_end_exact_to_the_byte(path: Path) -> None:
    """Four workers reserve and release on three devices without a pause; one after the other is killed."""
    operations, devices, kills = 200_000, 3, 0
    with_limit(path, *(50_000 for _ in range(devices)))
    ledger = opened(path)
    chance = random.Random()
    row = struct.Struct(f"={1 + devices}Qd")  # done, what it holds on each device, 1.0: at rest
    shared = mmap.mmap(-1, 1 << 20)
    stop = len(shared) - 1

    def work(number: int) -> None:
        own = opened(path)
        slot = lib.hal_ledger_join(own)
        sizes = random.Random(number)
        live: list[tuple[int, int]] = []
        done = 0
        while not shared[stop]:
            device, size = sizes.randrange(devices), sizes.randrange(1, 20_000)
            if sizes.random() < 0.6 and lib.hal_ledger_reserve(own, slot, device, size):
                live.append((device, size))
            elif live:
                lib.hal_ledger_release(own, slot, *live.pop(sizes.randrange(len(live))))
            done += 1
            row.pack_into(shared, number * row.size, done, *([0] * devices), 0.0)
        held = [sum(size for where, size in live if where == device) for device in range(devices)]
        row.pack_into(shared, number * row.size, done, *held, 1.0)
        signal.pause()

    def rows(numbers: Iterable[int]) -> list[tuple[Any, ...]]:
        return [row.unpack_from(shared, number * row.size) for number in numbers]

    workers = {number: child(lambda number=number: work(number)) for number in range(4)}
    try:
        number = 4
        while sum(done[0] for done in rows(range(number))) < operations or kills < 100:
            time.sleep(chance.uniform(0, 0.01))
            kill(workers.pop(chance.choice(list(workers))), collect=True)
            kills += 1
            if chance.random() < 0.3:
                lib.hal_ledger_reap(ledger)
            workers[number] = child(lambda number=number: work(number))
            number += 1
        shared[stop] = 1
        wait_for(lambda: all(done[-1] for done in rows(workers)))
        lib.hal_ledger_reap(ledger)
        assert {pid for n in range(SLOTS) if (pid := claimed(ledger, n))} <= set(workers.values())
        for device in range(devices):
            expected = sum(done[1 + device] for done in rows(workers))
            assert ledger.device[device].used == held(ledger, device) == expected
        for pid in workers.values():
            kill(pid)
        workers.clear()
        assert lib.hal_ledger_reap(ledger) <= 4
        assert [ledger.device[n].used for n in range(devices)] == [0] * devices
    finally:
        for pid in workers.values():
            kill(pid)
        lib.hal_ledger_close(ledger)


def test_the_dead_are_reclaimed_at_once_while_others_allocate_without_a_pause(path: Path) -> None:
    """Also those that died inside an operation, where all others have to be met at rest."""
    with_limit(path, 100_000)
    ledger = opened(path)
    ready = mmap.mmap(-1, mmap.PAGESIZE)

    def churn(number: int) -> None:
        own = opened(path)
        slot = lib.hal_ledger_join(own)
        while True:
            if lib.hal_ledger_reserve(own, slot, 0, 7):
                lib.hal_ledger_release(own, slot, 0, 7)
            ready[number] = 1

    def die_inside() -> None:
        own = opened(path)
        slot = lib.hal_ledger_join(own)
        assert lib.hal_ledger_reserve(own, slot, 0, 1000)
        lane = own.slot[slot].lane[0]  # a reserve that got as far as `used`
        lane.bytes = 500
        lane.op = 1 << 8 | 1
        assert lib.hal_ledger_reserve(own, slot, 0, 500)
        lane.mine[0] = (lane.mine[0] - 500) % 2**64  # whichever lane it went by
        ready[10] = 1
        signal.pause()

    pids = [child(lambda n=n: churn(n)) for n in range(3)]
    try:
        wait_for(lambda: all(ready[n] for n in range(3)))
        for _ in range(20):
            ready[10] = 0
            pid = child(die_inside)
            wait_for(lambda: ready[10] == 1)
            assert ledger.device[0].used >= 1500
            kill(pid)
            # Without a pause of the others it takes hundreds of tries to meet them all at rest.
            assert any(lib.hal_ledger_reap(ledger) == 1 for _ in range(30))
            assert ledger.device[0].used <= 3 * 7
    finally:
        for pid in pids:
            kill(pid)
        lib.hal_ledger_reap(ledger)
        assert ledger.device[0].used == 0
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
        assert all(claimed(mapped, n) for n in range(SLOTS))
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
        (lambda path: corrupted(path, 8, struct.pack("=I", 1)), "made by another version of hal"),
        (lambda path: corrupted(path, 12, struct.pack("=I", 1)), "not a slice file, or is cut short"),
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


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ("devices", 0, "the number of devices is impossible"),
        ("devices", 65, "the number of devices is impossible"),
        ("state", 9, "its state is unknown"),
        ("priority", 101, "its priority is out of range"),
        ("weight", 0, "its weight is out of range"),
        ("elastic", 2, "its elastic flag is neither 0 nor 1"),
        ("compute_by", 6, "who enforces it is unknown"),
        ("device.0.limit", MOST + 1, "a limit is past all reason"),
        ("device.0.used", HIGHEST, "a use is past all reason"),
        ("device.0.compute_milli", 1001, "a compute share is past the whole"),
        ("slot.7.owner", 1 << 29, "a pid is out of range"),
        ("slot.7.lane.1.op", 3, "an operation is on no device of the slice"),
        ("slot.7.lane.1.mine.0", MOST + 1, "a process holds more than can be"),
        ("slot.7.lane.1.mine.0", 5, "memory is held by nobody"),
    ],
)
def test_a_field_that_none_of_ours_writes_is_named(path: Path, where: str, value: int, reason: str) -> None:
    with_limit(path, 1000)
    place: Any = opened(path)
    ledger, *steps, last = [place, *where.split(".")]
    for step in steps:
        place = place[int(step)] if step.isdigit() else getattr(place, step)
    if last.isdigit():
        place[int(last)] = value
    else:
        setattr(place, last, value)
    lib.hal_ledger_close(ledger)
    with pytest.raises(StateError, match=f"cannot use the slice file {path}: it is damaged: {reason}"):
        Ledger.open(path)


def test_a_ledger_is_never_made_over_another(path: Path) -> None:
    with_limit(path, 1000)
    before = path.read_bytes()
    with pytest.raises(StateError, match="File exists"):
        Ledger.create(path, "again", [("null:0", 1)])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_ledger_is_the_users_alone_and_names_its_devices(path: Path) -> None:
    ledger = Ledger.create(path, "x" * 200, [("amd:pci-0000:9b:00.0", 10), ("nvidia:GPU-1", MOST)])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(use.device, use.limit_bytes, use.used_bytes, use.refused) for use in ledger.devices()] == [
        ("amd:pci-0000:9b:00.0", 10, 0, 0),
        ("nvidia:GPU-1", MOST, 0, 0),
    ]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            ledger.set_limit(index, 1)
    for limit in (-1, MOST + 1):
        with pytest.raises(ValueError, match="a limit is between 0 and 1 EiB"):
            ledger.set_limit(0, limit)
    ledger.close()
    ledger.close()
    for count in (0, 65):
        with pytest.raises(StateError, match=f"64 devices, not on {count}"):
            Ledger.create(path, "many", [(f"null:{n}", 1) for n in range(count)])


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


def test_what_is_set_for_a_slice_is_told(path: Path) -> None:
    with_limit(path, 1000, 2000)
    ledger, other = Ledger.open(path), Ledger.open(path)
    control = other.control()
    assert (control.state, control.priority, control.weight, control.elastic) == (RunState.RUN, 0, 100, False)
    assert control.enforcement == Enforcement(Rung.NONE, Rung.NONE)
    assert [use.compute_ratio for use in other.devices()] == [None, None]
    ledger.set_compute(1, 0.25)
    ledger.set_priority(-100)
    ledger.set_weight(10_000)
    ledger.set_elastic(True)
    ledger.set_enforcement(Enforcement(Rung.DRIVER, Rung.GUARD))
    ledger.set_state(RunState.PAUSE)
    assert other.wait_running(0.01) is RunState.PAUSE
    ledger.set_state(RunState.STOP)
    assert other.wait_running(30) is RunState.STOP
    after = other.control()
    assert (after.state, after.priority, after.weight, after.elastic) == (RunState.STOP, -100, 10_000, True)
    assert after.enforcement == Enforcement(Rung.DRIVER, Rung.GUARD)
    assert after.epoch == control.epoch + 7
    assert [use.compute_ratio for use in other.devices()] == [None, 0.25]
    for change in (
        lambda: ledger.set_priority(101),
        lambda: ledger.set_weight(0),
        lambda: ledger.set_compute(0, 1.01),
        lambda: ledger.set_compute(0, float("nan")),
    ):
        with pytest.raises(ValueError, match="between"):
            change()
    with pytest.raises(IndexError):
        ledger.set_compute(2, 1)
    assert other.control() == after


def test_a_slice_made_smaller_than_its_use_says_by_how_much_it_is_over(path: Path) -> None:
    with_limit(path, 1000)
    ledger, worker = Ledger.open(path), Worker(path)
    try:
        assert worker.tell(b"+", 0, 800)
        ledger.set_limit(0, 300)
        use = ledger.use()
        assert use.over_limit
        assert (use.devices[0].over_bytes, use.devices[0].used_bytes, use.devices[0].peak_bytes) == (
            500,
            800,
            800,
        )
        shape = msgspec.to_builtins(use)
        assert shape["control"]["state"] == "run"
        assert shape["devices"][0]["over_bytes"] == 500
        assert not worker.tell(b"+", 0, 1)  # it does not grow, and nothing is taken away
        worker.tell(b"-", 0, 499)
        assert ledger.devices()[0].over_bytes == 1
        worker.tell(b"-", 0, 1)
        assert not ledger.use().over_limit
        assert ledger.use().devices[0].peak_bytes == 800
        ledger.set_limit(0, 1000)
        assert worker.tell(b"+", 0, 700)
    finally:
        worker.kill()
        ledger.close()


# ---- a job that writes what it likes ------------------------------------------------------------

SIZE = ffi.sizeof("struct hal_ledger")


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 8192), st.integers(0, SIZE - 8)),
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8])),
        ),
        max_size=12,
    )
)
def test_a_file_of_any_content_is_used_or_refused_and_harms_nobody(changes: list[tuple[int, bytes]]) -> None:
    path = Path(f"/tmp/hal-fuzz-{os.getpid()}-{time.monotonic_ns()}")
    with_limit(path, 1000, 500)
    try:
        open_before = Ledger.open(path)
        for offset, raw in changes:
            corrupted(path, min(offset, SIZE - len(raw)), raw)
        for ledger in (open_before, None):
            try:
                ledger = ledger or Ledger.open(path)
            except StateError as error:
                assert re.search("not a slice file|another version|damaged: ", str(error))
                continue
            ledger.use()
            ledger.pids()
            ledger.reap()
            slot = lib.hal_ledger_join(ledger._ledger)
            if slot >= 0:
                lib.hal_ledger_reserve(ledger._ledger, slot, 0, 10)
                lib.hal_ledger_leave(ledger._ledger, slot)
            ledger.close()
    finally:
        path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has others' processes")
def test_nobody_has_others_processes_signalled_by_naming_them(path: Path) -> None:
    """A program may write into its ledger what it likes, and the agent that reads it may be root's."""
    with_limit(path, 1000)
    os.chown(path, 65534, -1)
    ledger = Ledger.open(path)
    mine, theirs, others = Worker(path), Worker(path, 65534), Worker(path, 65533)
    try:
        assert ledger.pids() == [theirs.pid]
        assert ledger.signal(signal.SIGKILL) == [theirs.pid]
        assert os.waitpid(theirs.pid, 0)[1] == signal.SIGKILL
        assert ledger.signal(signal.SIGKILL) == []
        assert mine.tell(b"+", 0, 10)
        assert others.tell(b"+", 0, 10)
        os.chown(path, 0, -1)  # into which nobody but root can have written
        assert sorted(ledger.signal(0)) == sorted([mine.pid, others.pid])
    finally:
        mine.kill()
        others.kill()
        ledger.close()


def test_a_file_cut_short_under_its_readers_ends_none_of_them(path: Path) -> None:
    """A program may cut its own ledger: whoever looks after it is told, and goes on with the others."""
    with_limit(path, 1000)
    neighbour = Ledger.create(path.with_name("other"), "other", [("null:0", 10)])
    for length in (0, 100, 4096, SIZE // 2):
        path.unlink()
        with_limit(path, 1000)
        ledger, worker = Ledger.open(path), Worker(path)
        try:
            assert ledger.pids() == [worker.pid]
            os.truncate(path, length)
            shrink = functools.partial(ledger.set_limit, 0, 5)
            for ask in (ledger.devices, ledger.reap, shrink, ledger.use):
                try:
                    ask()
                except StateError as error:
                    assert "was cut short while it was in use" in str(error)
            assert ledger.pids() == [worker.pid]
            assert ledger.is_lost
            assert not neighbour.is_lost
            assert neighbour.devices()[0].limit_bytes == 10
            worker.kill()
            assert ledger.pids() == []
            with pytest.raises(StateError, match="not a slice file, or is cut short"):
                Ledger.open(path)
        finally:
            ledger.close()


def test_another_bus_error_still_ends_the_process(tmp_path: Path, path: Path) -> None:
    with_limit(path, 1000)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8192)

    def work() -> None:
        faulthandler.disable()
        Ledger.open(path)
        with file.open("r+b") as opened_file:
            view = mmap.mmap(opened_file.fileno(), 8192)
            os.truncate(file, 0)
            view[5000]

    _, status = os.waitpid(child(work), 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGBUS
