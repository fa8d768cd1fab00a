"""hal.Client and hal.AsyncClient against real daemons: leases kept alive, answers lost, restarts, keys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

import hal
from hal.backend import HalError, StateError, TemporaryError, UnsupportedError
from hal.scheduler import core, wire
from hal.scheduler.bench.rows import simulated
from hal.scheduler.errors import Unreachable
from hal.scheduler.told import Event
from tests.conftest import HAL, wait_until
from tests.integration.support import line, start

GIB = 1 << 30


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler of 64 devices of which nothing is made."""
    with simulated() as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[hal.Client]:
    with hal.Client(address) as found:
        yield found
        for lease in found.leases():
            found.release(lease.id)


def waiting(memory: int | None = None) -> core.Request:
    return core.Request(members=(core.Member((core.Alternative(memory_bytes=memory),)),), wait=True)


# ---- leases ----------------------------------------------------------------------------------


def test_a_lease_ends_with_its_with(client: hal.Client) -> None:
    with client.acquire(memory_bytes=GIB, vendor="simulated", name="x") as lease:
        (told,) = client.leases()
        assert (told.id, told.name, told.state, told.memory_bytes) == (lease.id, "x", "active", GIB)
        assert told.devices == lease.devices == lease.told.devices
        assert lease.lost is None
    assert client.leases() == []
    lease.release()


def test_it_is_kept_alive_beyond_its_time(client: hal.Client) -> None:
    lost: list[str] = []
    with client.acquire(memory_bytes=GIB, ttl_seconds=1.0, on_lost=lost.append) as lease:
        other = client.acquire(memory_bytes=GIB, ttl_seconds=1.0)
        other._lease._stop()  # as if it were renewed no more
        wait_until(lambda: [one.id for one in client.leases()] == [lease.id], what="the other to expire")
        assert lost == []
        assert lease.lost is None


def test_one_that_is_ended_by_another_is_told(client: hal.Client, address: str) -> None:
    lost: list[str] = []
    lease = client.acquire(memory_bytes=GIB, ttl_seconds=1.0, on_lost=lost.append)
    with hal.Client(address) as other:
        other.release(lease.id)
    wait_until(lambda: bool(lost), what="the holder to hear of it")
    assert "ended" in lost[0]
    assert lease.lost == lost[0]
    lease.release()


def test_refusals_are_hals_errors(client: hal.Client) -> None:
    with pytest.raises(UnsupportedError, match="largest"):
        client.acquire(memory_bytes=1 << 50)
    with pytest.raises(HalError, match="members"):
        client.call("acquire", key="k", request={"members": [{"alternatives": []}]})
    with pytest.raises(HalError, match="no operation 'frobnicate'"):
        client.call("frobnicate")


def test_one_that_waits_is_served_when_there_is_room(client: hal.Client, address: str) -> None:
    held = client.acquire_many([core.Request()] * 64)
    assert all(isinstance(one, hal.Lease) for one in held)
    with pytest.raises(TemporaryError):
        client.acquire()
    served: list[hal.Lease] = []
    with hal.Client(address) as other:
        thread = threading.Thread(target=lambda: served.append(other.acquire(request=waiting())))
        thread.start()
        wait_until(lambda: len(client.waiting()) == 1)
        (one,) = client.waiting()
        assert client.explain(one.id).state == "waiting"
        assert isinstance(held[0], hal.Lease)
        held[0].release()
        thread.join(30)
        assert [lease.id for lease in served] == [one.id]
    client.release_many([lease.id for lease in held if isinstance(lease, hal.Lease)])


def test_many_leases_are_listed_by_pages(client: hal.Client) -> None:
    many = [core.Request(members=(core.Member((core.Alternative(memory_bytes=GIB),)),))] * 130
    leases = client.acquire_many(many)
    ids = [lease.id for lease in leases if isinstance(lease, hal.Lease)]
    assert len(set(ids)) == 130
    first = client.call("list", limit=100)
    second = client.call("list", limit=100, after=first["next"])
    assert [len(first["leases"]), len(second["leases"]), second["next"]] == [100, 30, None]
    assert [one["id"] for one in [*first["leases"], *second["leases"]]] == ids
    client.release_many([*ids, "nobody", ids[0]])
    assert client.leases() == []


def test_of_many_each_has_its_own_answer(client: hal.Client) -> None:
    one = core.Request(members=(core.Member((core.Alternative(memory_bytes=GIB),)),))
    wrong = core.Request(members=(core.Member((core.Alternative(memory_bytes=1 << 59),)),))
    found = client.acquire_many([one, wrong, one])
    assert [type(answer) for answer in found] == [hal.Lease, UnsupportedError, hal.Lease]
    with pytest.raises(HalError, match="1 to 256"):
        client.call("acquire_many", requests=[])


def test_of_many_that_wait_each_is_kept_from_its_grant_on(client: hal.Client, address: str) -> None:
    """Not only from the moment at which those before it are granted, too."""

    async def main() -> None:
        async with hal.AsyncClient(address) as other:
            held = [
                one.id
                for one in await other.acquire_many([core.Request()] * 64)
                if not isinstance(one, HalError)
            ]
            last = msgspec.structs.replace(waiting(), priority=-1)
            first = msgspec.structs.replace(waiting(), priority=1, ttl_ms=1000)
            asking = asyncio.create_task(other.acquire_many([last, first]))
            while len(await other.waiting()) < 2:
                await asyncio.sleep(0.01)
            await other.release(held.pop())
            await asyncio.sleep(3.0)
            await other.release(held.pop())
            found = await asking
            assert [type(one) for one in found] == [hal.AsyncLease] * 2
            assert [one.lost for one in found if isinstance(one, hal.AsyncLease)] == [None] * 2

    asyncio.run(main())


# ---- leases that are taken away ----------------------------------------------------------------


HOLDER = """
import sys, threading
import hal
from hal.scheduler import core

lost, request = threading.Event(), core.Request(requeue=True, ttl_ms=1500)
take = hal.lease if sys.argv[1] == "lease" else hal.Client().acquire
held = take(request=request, on_lost=lambda _: lost.set())
print(held.id, flush=True)
lost.wait(20)
print(held.lost, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def drained(client: hal.Client) -> Iterator[Callable[[str], None]]:
    devices: list[str] = []

    def drain(device: str) -> None:
        devices.append(device)
        client.call("drain", target=device)

    yield drain
    for device in devices:
        client.call("uncordon", target=device)


def holder(address: str, kind: str) -> tuple[subprocess.Popen[str], str]:
    """A process that has a whole device, with `requeue`, and says when it has lost it; and its lease."""
    process = start(os.environ | {"HAL_SCHEDULER": address}, HAL[0], "-c", HOLDER, kind)
    return process, line(process)


def device_of(client: hal.Client, id: str) -> str:
    (device,) = (one.device for one in client.leases() if one.id == id)
    return device


@pytest.mark.parametrize("kind", ["client", "lease"])
@pytest.mark.parametrize("full", [False, True])
def test_what_was_granted_anew_meanwhile_is_not_taken_for_ones_own(
    client: hal.Client, address: str, drained: Callable[[str], None], kind: str, full: bool
) -> None:
    process, id = holder(address, kind)
    (told,) = client.leases()
    if full:
        client.acquire_many([core.Request()] * 63)
    process.send_signal(signal.SIGSTOP)
    drained(told.device)
    if full:
        wait_until(lambda: bool(client.waiting()))
    else:
        wait_until(lambda: any(one.epoch > told.epoch for one in client.leases()))
        assert device_of(client, id) != told.device
    process.send_signal(signal.SIGCONT)
    assert line(process) == f"the lease '{id}' was taken away meanwhile"
    wait_until(lambda: client.waiting() == [] and id not in [one.id for one in client.leases()])
    assert process.poll() is None


@pytest.mark.parametrize("kind", ["client", "lease"])
def test_what_its_holder_has_lost_is_not_granted_anew(
    client: hal.Client, address: str, drained: Callable[[str], None], kind: str
) -> None:
    number = client.scheduler().event
    process, id = holder(address, kind)
    drained(device_of(client, id))
    assert "is drained" in line(process)
    wait_until(lambda: client.leases() == [])
    events = client.call("watch", after=number, timeout_seconds=0)["events"]
    seen = [one for one in msgspec.convert(events, list[Event]) if one.lease == id]
    assert [one.kind for one in seen] == ["granted", "ending", "ended"]
    assert seen[2].at_ms - seen[1].at_ms >= 1500, "it has its whole time to stop what runs there"
    assert process.poll() is None


def test_any_call_may_be_made_in_on_lost(client: hal.Client, address: str) -> None:
    heard: list[str] = []
    other = hal.Client(address)

    def on_lost(reason: str) -> None:
        heard.append(reason)
        heard.extend(one.id for one in other.leases())
        kept.release()
        other.close()
        heard.append("closed")

    kept = other.acquire(memory_bytes=GIB)
    lease = other.acquire(memory_bytes=GIB, ttl_seconds=1.0, on_lost=on_lost)
    client.release(lease.id)
    wait_until(lambda: heard[-1:] == ["closed"], seconds=20)
    assert heard == [lease.lost, kept.id, "closed"]
    assert client.leases() == []
    wait_until(lambda: "hal-on-lost" not in [thread.name for thread in threading.enumerate()])


def test_what_on_lost_raises_is_told_at_once(
    client: hal.Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("threading.excepthook", lambda args: told.append(str(args.exc_value)))

    def on_lost(_: str) -> None:
        raise ValueError("a mistake")

    lease = client.acquire(memory_bytes=GIB, ttl_seconds=1.0, on_lost=on_lost)
    client.call("release", lease=lease.id)
    wait_until(lambda: bool(told), seconds=20)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        async with hal.AsyncClient(address) as other:
            held = await other.acquire(memory_bytes=GIB, ttl_seconds=1.0, on_lost=on_lost)
            await other.call("release", lease=held.id)
            while len(told) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert told == ["a mistake"] * 2


# ---- answers that are lost -------------------------------------------------------------------


class Lossy:
    """Stands between a client and its scheduler, and loses answers."""

    def __init__(self, address: str, path: Path, lose: int) -> None:
        self.address = f"ipc://{path}"
        self.seen: list[wire.Request] = []
        self._context = zmq.Context()
        self._front, self._back = self._context.socket(zmq.ROUTER), self._context.socket(zmq.DEALER)
        for one in (self._front, self._back):
            one.set(zmq.LINGER, 0)
        self._front.bind(self.address)
        self._back.connect(address)
        self._lose = lose
        self._senders: dict[str, bytes] = {}
        self.deaf_to: set[bytes] = set()  # connections that nothing comes back from
        self.is_deaf = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for one in (self._front, self._back):
            poller.register(one, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(20))
            if self._front in ready:
                sender, frame = self._front.recv_multipart()
                request = wire.unpack_request(frame)
                self.seen.append(request)
                self._senders[request.id] = sender
                if not self.is_deaf and sender not in self.deaf_to:
                    self._back.send(frame)
            if self._back in ready:
                frame = self._back.recv()
                reply = wire.unpack_reply(frame)
                if reply.body.keys() & {"lease", "replies"} and self._lose:
                    self._lose -= 1
                else:
                    self._front.send_multipart([self._senders[reply.id], frame])

    def fall_silent(self) -> None:
        """To all connections that there are."""
        self.deaf_to.update(self._senders.values())

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(0)


def test_a_request_whose_answer_was_lost_has_one_effect(
    client: hal.Client, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.async_client._AGAIN", 0.2)
    between = Lossy(address, Path(f"/tmp/hal-lossy-{os.getpid()}"), lose=2)
    try:
        with hal.Client(between.address) as lossy, lossy.acquire(memory_bytes=GIB) as lease:
            asked = [request for request in between.seen if request.op == "acquire"]
            assert len(asked) >= 3
            assert len({request.body["key"] for request in asked}) == 1
            assert [one.id for one in client.leases()] == [lease.id]
        assert client.leases() == []
    finally:
        between.close()
        Path(f"/tmp/hal-lossy-{os.getpid()}").unlink(missing_ok=True)


@pytest.fixture
def between(address: str) -> Iterator[Callable[[int], Lossy]]:
    path, made = Path(f"/tmp/hal-lossy-{os.getpid()}"), []

    def make(lose: int) -> Lossy:
        made.append(Lossy(address, path, lose))
        return made[-1]

    yield make
    for one in made:
        one.close()
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("many", [False, True])
def test_who_is_cancelled_before_there_is_an_answer_has_nothing(
    client: hal.Client,
    between: Callable[[int], Lossy],
    many: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hal.async_client._AGAIN", 60.0)
    one = core.Request(members=(core.Member((core.Alternative(memory_bytes=GIB),)),))

    async def main() -> None:
        async with hal.AsyncClient(between(1).address) as lossy, hal.AsyncClient(client_address) as other:
            work = lossy.acquire_many([one, one]) if many else lossy.acquire(request=one)
            asking = asyncio.create_task(work)
            while not await other.leases():
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await other.leases() == []

    client_address = client._client._endpoint.address
    asyncio.run(main())


def test_a_connection_that_has_gone_silent_is_left_though_others_wait_on_it(
    between: Callable[[int], Lossy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.async_client._AGAIN", 0.3)

    async def main() -> None:
        proxy = between(0)
        async with hal.AsyncClient(proxy.address, timeout=10.0) as client:
            number = (await client.scheduler()).event
            waits = {"after": number, "timeout_seconds": 30.0, "timeout": 60.0}
            watching = asyncio.create_task(client.call("watch", **waits))
            while not any(request.op == "watch" for request in proxy.seen):
                await asyncio.sleep(0.01)
            proxy.fall_silent()
            assert (await client.scheduler()).event == number
            watching.cancel()

    asyncio.run(main())


def test_closing_asks_a_scheduler_that_says_nothing_once_for_all(
    between: Callable[[int], Lossy], client: hal.Client
) -> None:
    proxy = between(0)
    other = hal.Client(proxy.address, timeout=1.0)
    for _ in range(3):
        other.acquire(memory_bytes=GIB)
    seen = len(proxy.seen)
    proxy.is_deaf = True
    other.close()
    assert len({request.id for request in proxy.seen[seen:] if request.op.startswith("release")}) == 1


def test_clocks_that_are_set_make_no_request_late(
    client: hal.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, told = client.scheduler().pid, time.time
    for hours in (-24, 24):
        monkeypatch.setattr(time, "time", lambda hours=hours: told() + 3600 * hours)
        assert client.scheduler().pid == pid
    client._client._zero -= 3_600_000.0  # the scheduler's, by its restart
    assert client.scheduler().pid == pid


def test_what_is_read_too_late_is_not_begun(client: hal.Client, address: str) -> None:
    now = client.scheduler().now_ms
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.set(zmq.LINGER, 0)
        raw.connect(address)

        def asked(deadline: int) -> wire.Reply:
            body = {"key": f"late {deadline}", "memory_bytes": GIB}
            raw.send(wire.pack(wire.Request(wire.VERSION, "1", "acquire", body, deadline)))
            assert raw.poll(10_000)
            return wire.unpack_reply(raw.recv())

        late = asked(now - 1)
        assert late.error is not None
        assert late.error.code == "late"
        assert client.leases() == []
        assert asked(now + 60_000).ok


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with (
        hal.Client(f"ipc://{tmp_path}/nobody.sock") as client,
        pytest.raises(Unreachable, match="no scheduler answers"),
    ):
        client.leases()


def test_a_client_that_is_closed_says_so(address: str) -> None:
    client = hal.Client(address)
    client.close()
    client.close()
    with pytest.raises(StateError, match="closed"):
        client.leases()

    async def main() -> None:
        other = hal.AsyncClient(address)
        await other.scheduler()
        await other.close()
        await other.close()
        with pytest.raises(StateError, match="closed"):
            await other.leases()

    asyncio.run(main())


def test_who_waits_when_the_client_is_closed_is_told(client: hal.Client, address: str) -> None:
    held = client.acquire_many([core.Request()] * 64)
    other, told = hal.Client(address), []

    def ask() -> None:
        try:
            other.acquire(request=waiting())
        except HalError as error:
            told.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_until(lambda: bool(client.waiting()))
    other.close()
    thread.join(60)
    assert told == ["this client is closed"]
    assert client.waiting() == []
    client.release_many([one.id for one in held if isinstance(one, hal.Lease)])


FORKED = """
import os, signal, sys
import hal

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            work()
        except hal.StateError as error:
            print(error, flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

client = hal.Client()
lease = client.acquire(memory_bytes=1 << 30)
child(client.leases)
child(lease.release)
child(client.close)
with hal.lease(memory_bytes=1 << 30) as held:
    child(held.release)
    print(sorted(one.state for one in client.leases()))
client.close()
"""


def test_a_forked_process_has_neither_the_client_nor_its_leases(address: str) -> None:
    env = os.environ | {"HAL_SCHEDULER": address}
    said = subprocess.run(
        [HAL[0], "-W", "ignore", "-c", FORKED],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [
        "this client is another process's: make one after the fork",
        "['active', 'active']",
    ]


# ---- events ----------------------------------------------------------------------------------


def test_a_watcher_sees_a_lease_come_and_go(client: hal.Client, address: str) -> None:
    with hal.Client(address) as other:
        start_at = other.scheduler().event
        lease = client.acquire(memory_bytes=GIB, name="watched")
        lease.release()
        events = other.watch(after=start_at)
        seen = [next(events) for _ in range(3)]
        assert [(one.kind, one.lease, one.name) for one in seen] == [
            (kind, lease.id, "watched") for kind in ("granted", "ending", "ended")
        ]
        # From any number it goes on with the next.
        again = other.watch(after=seen[0].number)
        assert next(again) == seen[1]
        assert next(other.watch(after=5)).kind == "lost"


def test_the_numbers_are_published(client: hal.Client, address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as numbers:
        numbers.connect(address.replace("scheduler.sock", "events.sock"))
        numbers.subscribe(b"")

        def told() -> bool:
            client.acquire(memory_bytes=GIB).release()
            return bool(numbers.poll(50))

        wait_until(told, what="a number to be published")
        number = msgspec.msgpack.decode(numbers.recv())
        assert isinstance(number, int)
        assert number <= client.scheduler().event


# ---- asyncio ---------------------------------------------------------------------------------


def test_many_calls_at_once(address: str) -> None:
    async def one(client: hal.AsyncClient, number: int) -> str:
        async with await client.acquire(memory_bytes=GIB, name=str(number)) as lease:
            return lease.id

    async def main() -> None:
        async with hal.AsyncClient(address) as client:
            ids = await asyncio.gather(*(one(client, number) for number in range(50)))
            assert len(set(ids)) == 50
            assert await client.leases() == []

    asyncio.run(main())


def test_who_is_cancelled_waits_no_longer(client: hal.Client, address: str) -> None:
    async def main() -> None:
        async with hal.AsyncClient(address) as other:
            held = await other.acquire_many([core.Request()] * 64)
            asking = asyncio.create_task(other.acquire(request=waiting()))
            while not await other.waiting():
                await asyncio.sleep(0.01)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            assert await other.waiting() == []
            await other.release_many([one.id for one in held if isinstance(one, hal.AsyncLease)])

    asyncio.run(main())


def test_a_client_that_is_closed_gives_back_what_it_holds(client: hal.Client, address: str) -> None:
    other = hal.Client(address)
    other.acquire(memory_bytes=GIB)
    other.close()
    assert client.leases() == []


# ---- a real machine --------------------------------------------------------------------------


def serve(env: dict[str, str], *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A `hal serve`, and what it says of where it is reached."""
    daemon = start(env, *HAL, "serve", *arguments, stdin=subprocess.DEVNULL)
    assert daemon.stderr is not None
    said = daemon.stderr.readline()
    assert said.startswith("hal: serving leases at "), said
    return daemon, said.removeprefix("hal: serving leases at ").strip()


def test_a_lease_outlives_a_restart_of_the_scheduler(machine_env: dict[str, str]) -> None:
    daemon, where = serve(machine_env)
    lost: list[str] = []
    with hal.Client(f"ipc://{where}") as client:
        number = client.scheduler().event
        with client.acquire(memory_bytes=GIB, ttl_seconds=5.0, on_lost=lost.append) as lease:
            assert lease.environment()["HAL_SLICE"].endswith(".ledger")
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            serve(machine_env)
            (told,) = client.leases()
            assert told.id == lease.id
            assert next(client.watch(after=number)).kind == "lost"
        assert client.leases() == []
    assert lost == []


def test_over_tcp_with_a_key(
    machine_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, key = tmp_path / "hal.toml", tmp_path / "alice.key"
    config.write_text('[scheduler]\nlisten = ["tcp://127.0.0.1:*"]\n')
    for command in (["keys", "new", "alice", "--output", str(key)], ["keys", "new", "bob"]):
        made = [*HAL, *command, "--config", str(config)]
        subprocess.run(made, env=machine_env, cwd=tmp_path, check=True, capture_output=True)
    _, said = serve(machine_env, "--config", str(config))
    address = said.split(", ")[1]
    with hal.Client(address, key) as alice, alice.acquire(memory_bytes=GIB) as lease:
        (told,) = alice.leases()
        assert (told.id, told.holder_pid) == (lease.id, -1)
        monkeypatch.setenv("HAL_SCHEDULER", address)
        monkeypatch.setenv("HAL_KEY", str(tmp_path / "bob.key"))
        with hal.Client() as bob:
            assert bob.leases() == []
            with pytest.raises(HalError, match="there is no lease"):
                bob.call("release", lease=lease.id)
        monkeypatch.delenv("HAL_KEY")
        with pytest.raises(StateError, match="needs a key"):
            hal.Client()
    env = machine_env | {"HAL_SCHEDULER": address, "HAL_KEY": str(key)}
    listed = subprocess.run([*HAL, "lease", "list"], env=env, capture_output=True, text=True, check=False)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "There are no leases." in listed.stdout


def test_importing_hal_does_not_import_the_client() -> None:
    code = "import sys, hal; sys.exit('zmq' in sys.modules or 'asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
