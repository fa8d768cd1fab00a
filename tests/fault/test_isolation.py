"""A vendor library that aborts, hangs, corrupts or babbles takes nobody with it, and comes back."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hal.backend import Cost, GoneError, Group
from hal.inventory import Machine
from hal.isolation import VendorLost
from hal.isolation.vendor import Vendor
from hal.model import Device, DeviceKind, Heap, Inventory, Probe, ProbeState, Reading, Status, whole
from hal.registry import Source


class Steady:
    """A backend of one device whose memory in use is the number of samples taken."""

    def __init__(self, name: str, misbehave: Callable[[str], None] = lambda call: None) -> None:
        self.name = name
        self._misbehave = misbehave
        self._samples = 0

    def probe(self) -> Probe:
        self._misbehave("probe")
        return Probe(ProbeState.READY)

    def enumerate(self) -> Inventory:
        self._misbehave("enumerate")
        device = Device(f"{self.name}:one", self.name, DeviceKind.GPU, "Steady", (Heap("vram", 1 << 30),))
        return Inventory((device,), (whole(device),))

    def sample(
        self, groups: Sequence[Group], ids: Sequence[str], deadline: float, costs: frozenset[Cost]
    ) -> list[Reading]:
        self._misbehave("sample")
        self._samples += 1
        return [
            Reading(i, "memory_used_bytes", self._samples, "bytes", labels={"heap": "vram"}, source="count")
            for i in ids
        ]

    def close(self) -> None:
        pass


def abort(call: str) -> None:
    os.abort()


def crash(call: str) -> None:
    ctypes.string_at(0)


def corrupt_heap(call: str) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(24) for _ in range(64)]
    for block in blocks:
        ctypes.memset(block - 16, 0x41, 256)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))


def hang(call: str) -> None:
    threading.Event().wait()


def babble(call: str) -> None:
    os.write(3, b"\xff" * 4096)  # the worker's end of the socket


def leave(call: str) -> None:
    os._exit(0)


WAYS = {
    "abort": abort,
    "crash": crash,
    "corrupt": corrupt_heap,
    "hang": hang,
    "babble": babble,
    "exit": leave,
}


@pytest.fixture
def once(tmp_path: Path) -> Callable[[Callable[[str], None], str], Callable[[str], None]]:
    """A way of misbehaving at one call, while a file is there: also across restarts of the worker."""
    flag = tmp_path / "misbehave"

    def at(way: Callable[[str], None], call: str) -> Callable[[str], None]:
        def misbehave(now: str) -> None:
            if now == call and flag.exists():
                way(now)

        return misbehave

    return at


@pytest.fixture
def machine_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def make(*backends: Callable[[], Steady]) -> Machine:
        sources = [Source(make().name, lambda make=make: Vendor(make().name, make)) for make in backends]
        machines.append(Machine(sources))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def by_subject(readings: list[Reading]) -> dict[str, Reading]:
    return {reading.subject: reading for reading in readings}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_others_stay_whole_and_fresh(
    way: Callable[[str], None],
    once: Callable[..., Callable[[str], None]],
    machine_of: Callable[..., Machine],
    tmp_path: Path,
) -> None:
    misbehave = once(way, "sample")
    machine = machine_of(lambda: Steady("bad", misbehave), lambda: Steady("good"))
    assert {reading.value for reading in machine.sample([Group.MEMORY])} == {1}
    (tmp_path / "misbehave").touch()
    start = time.monotonic()
    readings = by_subject(machine.sample([Group.MEMORY], timeout=1.0))
    assert time.monotonic() - start < 3.0
    assert (readings["good:one"].value, readings["good:one"].status) == (2, Status.OK)
    assert (readings["bad:one"].value, readings["bad:one"].status) == (1, Status.STALE)
    assert "lost" in readings["bad:one"].detail
    assert machine.probes()["bad"].state is ProbeState.BROKEN
    assert machine.probes()["good"].state is ProbeState.READY
    assert {device.id for device in machine.inventory(refresh=True).devices} == {"bad:one", "good:one"}

    (tmp_path / "misbehave").unlink()
    deadline = time.monotonic() + 20
    while by_subject(machine.sample([Group.MEMORY]))["bad:one"].status is not Status.OK:
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.05)
    assert machine.probes()["bad"].state is ProbeState.READY


@pytest.mark.parametrize("call", ["probe", "enumerate"])
def test_a_bad_start_hides_nobody(
    call: str, once: Callable[..., Callable[[str], None]], machine_of: Callable[..., Machine], tmp_path: Path
) -> None:
    (tmp_path / "misbehave").touch()
    misbehave = once(abort, call)
    machine = machine_of(lambda: Steady("bad", misbehave), lambda: Steady("good"))
    assert [device.id for device in machine.inventory().devices] == ["good:one"]
    assert machine.probes()["bad"].state is ProbeState.BROKEN
    assert "SIGABRT" in machine.probes()["bad"].reason


class Punctual(Steady):
    """One that needs no process of its own, and holds to its deadline."""

    def sample(
        self, groups: Sequence[Group], ids: Sequence[str], deadline: float, costs: frozenset[Cost]
    ) -> list[Reading]:
        if time.monotonic() >= deadline:
            return [Reading(i, "memory_used_bytes", None, "bytes", Status.STALE) for i in ids]
        return super().sample(groups, ids, deadline, costs)


def test_a_hang_does_not_use_up_the_time_of_a_backend_in_this_process() -> None:
    def hangs(call: str) -> None:
        if call == "sample":
            hang(call)

    sources = [
        Source("bad", lambda: Vendor("bad", lambda: Steady("bad", hangs))),
        Source("good", lambda: Punctual("good")),
    ]
    with Machine(sources) as machine:
        machine.inventory()
        readings = by_subject(machine.sample([Group.MEMORY], timeout=0.5))
    assert (readings["good:one"].value, readings["good:one"].status) == (1, Status.OK)
    assert "bad:one" not in readings


def test_pauses_double_until_it_answers(once: Callable[..., Callable[[str], None]], tmp_path: Path) -> None:
    (tmp_path / "misbehave").touch()
    vendor = Vendor("bad", lambda: Steady("bad", once(abort, "enumerate")))
    vendor.probe()
    with pytest.raises(VendorLost, match="SIGABRT"):
        vendor.enumerate()
    with pytest.raises(VendorLost, match="next try in 0"):
        vendor.enumerate()
    time.sleep(0.6)
    with pytest.raises(VendorLost, match="SIGABRT"):
        vendor.enumerate()
    time.sleep(0.6)
    with pytest.raises(VendorLost, match="next try in 0"):
        vendor.enumerate()
    vendor.close()


def test_errors_keep_their_class_and_code() -> None:
    def lose(call: str) -> None:
        raise GoneError("it fell off the bus", vendor_code=15)

    vendor = Vendor("bad", lambda: Steady("bad", lambda call: lose(call) if call == "enumerate" else None))
    with pytest.raises(GoneError, match="fell off") as caught:
        vendor.enumerate()
    assert caught.value.vendor_code == 15
    vendor.close()


def test_a_worker_goes_with_its_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        vendor = Vendor("good", lambda: Steady("good"))
        vendor.probe()
        os.write(write, str(vendor._pid).encode())
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    worker = int(os.read(read, 16))
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
