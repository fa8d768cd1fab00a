"""The scheduler's core against a naive model: whatever happens in whatever order, no byte is lent twice."""

from __future__ import annotations

import re
import time
from collections import Counter

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from hal.scheduler.core import (
    Acquire,
    Decision,
    DeviceFacts,
    DevicesSeen,
    End,
    Ended,
    Event,
    Grant,
    HolderGone,
    Lease,
    LeaseState,
    Refusal,
    Refuse,
    Release,
    Renew,
    Renewed,
    Request,
    State,
    Tick,
)

ROOT = 0
USERS = (ROOT, 1000, 1001)
SIZES = st.sampled_from([1, 10, 33, 34, 49, 50, 51, 99, 100, 101, 1 << 60])
FACTS = {
    "amd:pci-0000:9b:00.0": ("amd", True),
    "cpu:host": ("cpu", False),
    "nvidia:GPU-1": ("nvidia", True),
    "nvidia:GPU-2": ("nvidia", True),
}

devices_seen = st.lists(
    st.builds(
        lambda id, memory, outside: DeviceFacts(id, FACTS[id][0], memory, outside, FACTS[id][1]),
        st.sampled_from(sorted(FACTS)),
        st.sampled_from([50, 100, 101]),
        st.sampled_from([0, 0, 1, 50, 100, 200]),
    ),
    unique_by=lambda device: device.id,
)
where = st.one_of(
    st.just({}),
    st.builds(lambda vendor: {"vendor": vendor}, st.sampled_from(["nvidia", "amd", "cpu", "tpu"])),
    st.builds(lambda device: {"device": device}, st.sampled_from([*FACTS, "nvidia:GPU-3"])),
)
requests = st.builds(
    lambda place, memory, ttl: Request(memory_bytes=memory, ttl_seconds=ttl, **place),
    where,
    st.one_of(st.none(), SIZES),
    st.sampled_from([1.0, 15.0]),
)


def describes(request: Request, device: DeviceFacts) -> bool:
    if request.device is not None:
        right = request.device == device.id
    elif request.vendor is not None:
        right = request.vendor == device.vendor
    else:
        right = device.holds_slices  # "any" is any accelerator
    return right and (device.holds_slices or request.memory_bytes is None)


class Core(RuleBasedStateMachine):
    """``leases`` is the model: what the core has granted and not yet been told is over."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.now = 1000.0
        self.devices: dict[str, DeviceFacts] = {}
        self.leases: dict[str, Lease] = {}
        self.ended: Counter[str] = Counter()
        self.epoch = 0
        self.number = 0

    def apply(self, event: Event) -> list[Decision]:
        decisions = self.state.apply(event, self.now)
        for decision in decisions:
            if isinstance(decision, Refuse):
                assert re.fullmatch(r"(?!.*\. )[^\n]+[^.\n]", decision.message), decision.message
            if isinstance(decision, End):
                self.ended[decision.lease.id] += 1
                assert self.leases[decision.lease.id].state is LeaseState.ACTIVE
                self.leases[decision.lease.id].state = LeaseState.ENDING
                assert decision.reason
        return decisions

    def on(self, device: str) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.device == device]

    def free(self, device: DeviceFacts) -> int:
        if any(lease.whole for lease in self.on(device.id)):
            return 0
        leased = sum(lease.memory_bytes for lease in self.on(device.id))
        return max(device.memory_bytes - device.outside_bytes - leased, 0)

    def expected(self, request: Request) -> Refusal | set[str]:
        """Why it is refused, or where it may go."""
        size = request.memory_bytes
        fits = [device for device in self.devices.values() if describes(request, device)]
        if not fits:
            return Refusal.NO_DEVICE
        if size is None:
            return {device.id for device in fits if not self.on(device.id)} or Refusal.NO_ROOM
        if all(size > device.memory_bytes for device in fits):
            return Refusal.TOO_LARGE
        room = {device.id: self.free(device) for device in fits if size <= self.free(device)}
        return {id for id, free in room.items() if free == min(room.values())} or Refusal.NO_ROOM

    @initialize(devices=devices_seen)
    def begin(self, devices: list[DeviceFacts]) -> None:
        self.see(devices)

    @rule(devices=devices_seen)
    def see(self, devices: list[DeviceFacts]) -> None:
        assert self.apply(DevicesSeen(tuple(devices))) == []
        self.devices = {device.id: device for device in devices}

    @precondition(lambda self: self.devices)
    @rule(data=st.data(), change=st.sampled_from([-1, 1, 50]), outside=st.sampled_from([0, 1, 100]))
    def one_changes(self, data: st.DataObject, change: int, outside: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.devices)))
        device = self.devices[id]
        memory = max(device.memory_bytes + change, 1)
        changed = msgspec.structs.replace(device, memory_bytes=memory, outside_bytes=outside)
        self.see([changed if other.id == id else other for other in self.devices.values()])

    @rule(target=ids, request=requests, uid=st.sampled_from(USERS))
    def acquire(self, request: Request, uid: int) -> str:
        self.number += 1
        id = f"{self.number:08x}"
        expected = self.expected(request)
        (decision,) = self.apply(Acquire(request, id, f"key-{id}", uid, holder_pid=4711))
        if isinstance(expected, Refusal):
            assert isinstance(decision, Refuse)
            assert decision.code is expected
            return multiple()
        assert isinstance(decision, Grant)
        lease = decision.lease
        assert not decision.again
        assert lease.device in expected
        device = self.devices[lease.device]
        beside = self.on(lease.device)
        if request.memory_bytes is None:
            assert (lease.whole, lease.memory_bytes) == (True, device.memory_bytes)
            assert not beside
        else:
            assert (lease.whole, lease.memory_bytes) == (False, request.memory_bytes)
            assert not any(other.whole for other in beside)
            leased = sum(other.memory_bytes for other in [*beside, lease])
            assert leased + device.outside_bytes <= device.memory_bytes
        assert lease.epoch > self.epoch
        self.epoch = lease.epoch
        assert (lease.id, lease.uid, lease.holder_pid, lease.name) == (id, uid, 4711, id)
        assert lease.expires == self.now + request.ttl_seconds
        self.leases[id] = msgspec.structs.replace(lease)
        return id

    @rule(id=ids, request=requests, uid=st.sampled_from(USERS))
    def retry(self, id: str, request: Request, uid: int) -> None:
        lease = self.leases.get(id)
        if lease is None or lease.uid != uid:
            return  # a fresh request: as in `acquire`
        (decision,) = self.apply(Acquire(request, "another", lease.key, uid, holder_pid=1))
        if lease.state is LeaseState.ACTIVE:
            assert isinstance(decision, Grant)
            assert decision.again
            assert decision.lease == lease
        else:
            assert isinstance(decision, Refuse)
            assert decision.code is Refusal.ENDED

    @rule(id=ids, uid=st.sampled_from(USERS), change=st.sampled_from([Renew, Release]))
    def renew_or_release(self, id: str, uid: int, change: type[Renew] | type[Release]) -> None:
        lease = self.leases.get(id)
        (decision,) = self.apply(change(id, uid))
        if lease is None or uid not in (lease.uid, ROOT):
            assert isinstance(decision, Refuse)
            assert decision.code is Refusal.NOT_FOUND
            assert id in decision.message
        elif self.ended[id] and isinstance(decision, Refuse):
            assert decision.code is Refusal.ENDED
        elif change is Release:
            assert isinstance(decision, End)
        else:
            assert isinstance(decision, Renewed)
            lease.expires = self.now + lease.ttl_seconds

    @rule(id=ids)
    def holder_gone(self, id: str) -> None:
        active = id in self.leases and self.leases[id].state is LeaseState.ACTIVE
        assert len(self.apply(HolderGone(id))) == active

    @rule(id=consumes(ids))
    def processes_gone(self, id: str) -> None:
        if id in self.leases and self.leases[id].state is LeaseState.ENDING:
            assert self.apply(Ended(id)) == []
            del self.leases[id]

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 14.5, 15.0, 1e6]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        due = {
            lease.id
            for lease in self.leases.values()
            if lease.state is LeaseState.ACTIVE and lease.expires <= self.now
        }
        ends = self.apply(Tick())
        assert {end.lease.id for end in ends if isinstance(end, End)} == due
        assert len(ends) == len(due)

    @precondition(lambda self: self.leases)
    @rule()
    def restart(self) -> None:
        """What a successor does with what was on disk: leases, with one more time to live."""
        self.now += 100
        self.state = State()
        for lease in self.leases.values():
            self.state.adopt(msgspec.structs.replace(lease), self.now)
            lease.expires = self.now + lease.ttl_seconds
        self.state.apply(DevicesSeen(tuple(self.devices.values())), self.now)
        self.epoch = max(lease.epoch for lease in self.leases.values())

    @invariant()
    def core_and_model_agree(self) -> None:
        assert self.state.leases == self.leases
        active = [x.expires for x in self.leases.values() if x.state is LeaseState.ACTIVE]
        assert self.state.next_deadline() == min(active, default=None)
        assert all(count == 1 for count in self.ended.values())


TestCore = Core.TestCase
TestCore.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


# ---- plain examples ---------------------------------------------------------------------------

H100 = 85_520_809_984
MI300X = 206_141_652_992


def node(count: int, memory: int = H100, *, outside: int = 0) -> State:
    state = State()
    facts = (DeviceFacts(f"nvidia:GPU-{n}", "nvidia", memory, outside) for n in range(count))
    state.apply(DevicesSeen(tuple(facts)), 0.0)
    return state


def ask(state: State, request: Request, now: float = 0.0, *, key: str = "", uid: int = 1000) -> Decision:
    id = f"lease-{len(state.leases)}-{state.epoch}"
    (decision,) = state.apply(Acquire(request, id, key or id, uid), now)
    return decision


def granted(state: State, request: Request, now: float = 0.0) -> Lease:
    decision = ask(state, request, now)
    assert isinstance(decision, Grant), decision
    return decision.lease


@pytest.mark.parametrize(
    ("requests", "share", "devices", "each"),
    [
        (16, (1, 2), 8, 2),
        (8, (2, 5), 4, 2),  # 0.4: never three on one
        (3, (33, 100), 1, 3),
        (10, (1, 10), 1, 10),
        (80, (1, 10), 8, 10),
        (7, (1, 7), 1, 7),
    ],
)
@pytest.mark.parametrize("memory", [H100, MI300X, 24 << 30, 1_000_003])
def test_shares_pack_exactly(
    requests: int, share: tuple[int, int], devices: int, each: int, memory: int
) -> None:
    state = node(devices, memory)
    size = memory * share[0] // share[1]
    leases = [granted(state, Request(memory_bytes=size)) for _ in range(requests)]
    assert set(Counter(lease.device for lease in leases).values()) == {each}
    assert len({lease.device for lease in leases}) == devices
    left = memory - each * size
    if left:
        assert granted(state, Request(memory_bytes=left)).memory_bytes == left  # to the last byte
    refused = ask(state, Request(memory_bytes=left + 1))
    assert isinstance(refused, Refuse)
    assert refused.code is Refusal.NO_ROOM


def test_a_tenth_rounded_up_fits_nine_times() -> None:
    state = node(1)
    size = H100 // 10 + 1
    for _ in range(9):
        granted(state, Request(memory_bytes=size))
    assert isinstance(ask(state, Request(memory_bytes=size)), Refuse)


def test_what_is_used_from_outside_is_not_lent() -> None:
    state = node(1, 100, outside=30)
    assert granted(state, Request(memory_bytes=70))
    assert isinstance(ask(state, Request(memory_bytes=1)), Refuse)


def test_an_ending_lease_counts_until_its_processes_are_gone() -> None:
    state = node(1, 100)
    first = granted(state, Request(memory_bytes=100))
    (end,) = state.apply(Release(first.id, 1000), 1.0)
    assert isinstance(end, End)
    assert isinstance(ask(state, Request(memory_bytes=1), 2.0), Refuse)
    state.apply(Ended(first.id), 3.0)
    assert granted(state, Request(memory_bytes=100), 3.0)


def test_nothing_is_put_beside_a_whole_device_that_has_grown() -> None:
    state = node(1, 100)
    granted(state, Request())
    state.apply(DevicesSeen((DeviceFacts("nvidia:GPU-0", "nvidia", 150),)), 1.0)
    refused = ask(state, Request(memory_bytes=10), 1.0)
    assert isinstance(refused, Refuse)
    assert refused.code is Refusal.NO_ROOM


def test_a_lease_on_a_device_that_comes_back_still_counts() -> None:
    state = node(1, 100)
    granted(state, Request(memory_bytes=60))
    state.apply(DevicesSeen(()), 1.0)
    refused = ask(state, Request(memory_bytes=50), 1.0)
    assert isinstance(refused, Refuse)
    assert refused.code is Refusal.NO_DEVICE
    state.apply(DevicesSeen((DeviceFacts("nvidia:GPU-0", "nvidia", 100),)), 2.0)
    assert isinstance(ask(state, Request(memory_bytes=50), 2.0), Refuse)


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (Request(memory_bytes=1, device="cpu:host"), Refusal.NO_DEVICE, "ask for the whole device"),
        (Request(memory_bytes=1, device="x:y"), Refusal.NO_DEVICE, "there is no device 'x:y'"),
        (Request(memory_bytes=1, vendor="tpu"), Refusal.NO_DEVICE, "of these some can: nvidia"),
        (Request(memory_bytes=H100 + 1), Refusal.TOO_LARGE, "nvidia:GPU-0 with 79.6 GiB"),
        (Request(memory_bytes=H100), Refusal.NO_ROOM, "no room for 79.6 GiB now"),
        (Request(), Refusal.NO_ROOM, "no room for a whole device now"),
    ],
)
def test_a_refusal_says_why(request_: Request, code: Refusal, words: str) -> None:
    state = State()
    facts = (
        DeviceFacts("nvidia:GPU-0", "nvidia", H100),
        DeviceFacts("cpu:host", "cpu", 1 << 50, holds_slices=False),
    )
    state.apply(DevicesSeen(facts), 0.0)
    granted(state, Request(memory_bytes=1))
    refused = ask(state, request_)
    assert isinstance(refused, Refuse)
    assert refused.code is code
    assert words in refused.message


def test_the_same_key_of_another_user_is_another_request() -> None:
    state = node(2)
    one = ask(state, Request(), key="k", uid=1000)
    other = ask(state, Request(), key="k", uid=1001)
    assert isinstance(one, Grant)
    assert isinstance(other, Grant)
    assert one.lease.id != other.lease.id


def test_time_is_an_argument_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock() -> float:
        raise AssertionError("the core has read a clock")

    for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns"):
        monkeypatch.setattr(time, name, clock)
    for start in (-1e9, 0.0, 1e12):
        state = node(1, 100)
        lease = granted(state, Request(memory_bytes=100, ttl_seconds=10), start)
        assert (lease.expires, state.next_deadline()) == (start + 10, start + 10)
        assert state.apply(Tick(), start + 9.5) == []
        assert isinstance(state.apply(Renew(lease.id, 1000), start + 9.5)[0], Renewed)
        assert state.apply(Tick(), start + 19) == []
        (end,) = state.apply(Tick(), start + 19.5)
        assert isinstance(end, End)
        assert state.apply(Tick(), start + 100) == []
        assert state.next_deadline() is None
