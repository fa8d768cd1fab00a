"""One scheduler and agents on several emulated nodes: leases, restarts, and nodes that are cut off."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hal.backend import GoneError, StateError, TemporaryError
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.enforce.ledger import Ledger
from hal.scheduler.client import Client
from hal.scheduler.core.request import Alternative, Member, Request
from hal.scheduler.places import Places
from hal.slices.claims import Book
from tests.conftest import ALLOCATE, HAL, wait_until
from tests.integration.support import GIB, MIB, Env, ask, kill, line, start

LOST, GRACE = 1.5, 4.0

# Connections to the second path, through the first: stopped, it is a network that is cut.
PASSING_ON = """
import select, socket, sys
near, far = sys.argv[1:]
door = socket.socket(socket.AF_UNIX)
door.bind(near)
door.listen()
print("ready", flush=True)
to = {}
while True:
    for one in select.select([door, *to], [], [])[0]:
        if one is door:
            here, there = door.accept()[0], socket.socket(socket.AF_UNIX)
            there.connect(far)
            to |= {here: there, there: here}
        elif one in to:
            try:
                data = one.recv(65536)
                to[one].sendall(data)
            except OSError:
                data = b""
            if not data:
                for end in (one, to.pop(one)):
                    end.close()
                    to.pop(end, None)
"""


class Cluster:
    """A scheduler on a machine without accelerators, and nodes by name, each an emulated machine.

    ``hal`` is the command of agents that are started from now on.
    """

    hal = HAL

    def __init__(self, stack: ExitStack, lost: float = LOST, grace: float = GRACE) -> None:
        self.lost, self.grace = lost, grace
        self.through: Path | None = None  # where agents find the scheduler, if not at its own socket
        self._stack = stack
        self.head = stack.enter_context(emulated(load("none")))
        self.envs: dict[str, Env] = {}
        self.agents: dict[str, subprocess.Popen[str]] = {}
        self.scheduler = self.serve()

    def serve(self) -> subprocess.Popen[str]:
        options = ["--lost-after", str(self.lost), "--grace", str(self.grace)]
        self.scheduler = start(self.head, *HAL, "serve", *options, stdin=subprocess.DEVNULL)
        assert self.scheduler.stderr is not None
        assert self.scheduler.stderr.readline().startswith("hal: serving")
        return self.scheduler

    def add(self, name: str, machine: str) -> None:
        self.envs[name] = self._stack.enter_context(emulated(load(machine)))
        self.agent(name)

    def agent(self, name: str, *, late: bool = False) -> None:
        """``late``: it may have been away for so long that it stops first what it held."""
        said = self.begun(name)
        while late and ("cut off" in said or "ended here" in said):
            said = self.says(name)
        assert "has joined" in said

    def begun(self, name: str) -> str:
        """The first that an agent says which is started now."""
        socket = Places(Path(self.head["HAL_RUNTIME_DIR"])).socket if self.through is None else self.through
        command = [*self.hal, "agent", "--scheduler", f"ipc://{socket}", "--node", name]
        self.agents[name] = start(self.envs[name], *command, stdin=subprocess.DEVNULL)
        return self.says(name)

    def says(self, name: str) -> str:
        stderr = self.agents[name].stderr
        assert stderr is not None
        return stderr.readline()

    def client(self) -> Client:
        return Client(Places(Path(self.head["HAL_RUNTIME_DIR"])), timeout=10.0)

    def call(self, op: str, **body: Any) -> dict[str, Any]:
        with self.client() as client:
            return client.call(op, **body)

    def acquire(self, key: str, *alternatives: Alternative, ttl: float = 60.0, **more: Any) -> dict[str, Any]:
        members = tuple(Member((alternative,)) for alternative in alternatives)
        request = Request(members=members, ttl_ms=round(ttl * 1000), **more)
        return self.call("acquire", key=key, request=msgspec.to_builtins(request))

    def ledgers(self, name: str) -> list[Path]:
        return sorted(Path(self.envs[name]["HAL_RUNTIME_DIR"], "slices").glob("*.ledger"))


@contextmanager
def running() -> Iterator[Cluster]:
    with ExitStack() as stack:
        one = Cluster(stack)
        stack.callback(lambda: [process.kill() for process in [one.scheduler, *one.agents.values()]])
        yield one


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running() as one:
        yield one


def allocating(env: Env, runtime: str) -> subprocess.Popen[str]:
    program = start(env, ALLOCATE, runtime)
    assert line(program).startswith("device")
    return program


def of(vendor: str, memory: int = 2 * GIB) -> Alternative:
    return Alternative(f'vendor == "{vendor}"', memory)


def node_of(body: dict[str, Any]) -> list[str]:
    return [part["node"] for part in body["lease"]["parts"]]


def test_a_gang_runs_on_two_nodes_and_each_holds_its_part(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    cluster.add("red", "mi210-4")
    body = cluster.acquire("gang", of("nvidia"), of("amd", 3 * GIB))
    assert node_of(body) == ["green", "red"]
    assert [device.split("/")[0] for device in body["lease"]["devices"]] == ["green", "red"]
    assert body["lease"]["enforcement"]["memory"] == "guard"
    for (name, runtime, size), number in zip((("green", "cuda", 2), ("red", "hip", 3)), (0, 1), strict=True):
        program = allocating({**cluster.envs[name], **body["environments"][number]}, runtime)
        assert ask(program, f"alloc {size * 1024 - 64}").startswith("allocated")
        assert ask(program, "alloc 128").startswith("refused")  # past its slice
        held = (size * 1024 - 64) * MIB
        wait_until(lambda held=held: (cluster.call("list")["leases"][0]["used_bytes"] or 0) >= held)
        program.kill()
    cluster.call("release", lease=body["lease"]["id"])
    wait_until(lambda: not cluster.ledgers("green") and not cluster.ledgers("red"))
    wait_until(lambda: cluster.call("list")["leases"] == [])


def test_what_a_node_could_not_make_is_free_at_once(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    slices = Path(cluster.envs["green"]["HAL_RUNTIME_DIR"], "slices")
    slices.rename(slices.with_name("elsewhere"))
    with pytest.raises(StateError, match=r"cannot write .*/slices/"):
        cluster.acquire("k", of("nvidia"), ttl=600)
    wait_until(lambda: cluster.call("list")["leases"] == [])


def test_an_agent_that_begins_with_nothing_lent_is_not_cut_off(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    cluster.call("release", lease=cluster.acquire("a", of("nvidia"))["lease"]["id"])
    wait_until(lambda: not cluster.ledgers("green"))
    kill(cluster.agents["green"].pid)
    promised = Path(cluster.envs["green"]["HAL_RUNTIME_DIR"], "agent.until")
    os.utime(promised, (1, 1))  # for what was lent long ago
    cluster.agent("green")  # the first that it says is that it has joined


def test_an_agent_says_once_that_nobody_answers_and_once_that_somebody_does(cluster: Cluster) -> None:
    kill(cluster.scheduler.pid)
    cluster.envs["green"] = cluster._stack.enter_context(emulated(load("l40s-4")))
    address = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).address
    command = [*HAL, "agent", "--scheduler", address, "--node", "green"]
    agent = cluster.agents["green"] = start(cluster.envs["green"], *command, stdin=subprocess.DEVNULL)
    assert agent.stderr is not None
    nobody = f"hal: no scheduler answers at {address}; it is asked again and again\n"
    assert agent.stderr.readline() == nobody
    cluster.serve()
    assert agent.stderr.readline() == f"hal: the scheduler at {address} answers\n"
    assert "has joined" in agent.stderr.readline()
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)
    assert agent.stderr.readline() == nobody
    os.kill(cluster.scheduler.pid, signal.SIGCONT)
    assert agent.stderr.readline() == f"hal: the scheduler at {address} answers\n"


def test_at_debug_an_agent_tells_each_order_with_its_outcome(cluster: Cluster) -> None:
    cluster.envs["green"] = cluster._stack.enter_context(emulated(load("l40s-4")))
    runtime = Path(cluster.envs["green"]["HAL_RUNTIME_DIR"])
    runtime.mkdir(mode=0o700, exist_ok=True)
    (runtime / "hal.toml").write_text('[scheduler]\nlog = "json"\nlog_level = "debug"\n')
    cluster.agent("green")
    lease = cluster.acquire("k", of("nvidia"))["lease"]["id"]
    cluster.call("release", lease=lease)
    stderr = cluster.agents["green"].stderr
    assert stderr is not None
    for order in ("bind", "unbind"):
        told = json.loads(stderr.readline())
        assert (told["level"], told["message"], told["lease"]) == ("debug", f"{order} ok", lease)
        assert told["request"]


def test_a_node_whose_driver_takes_seconds_joins(cluster: Cluster) -> None:
    """For longer than an agent listens to silence; nobody answers while it looks at its devices."""
    slow = ";".join(f"nvmlDeviceGetMemoryInfo{kind}=900000000" for kind in ("", "_v2"))
    env = cluster._stack.enter_context(emulated(load("l40s-4")))
    cluster.envs["green"] = {**env, "HAL_EMULATOR_LATENCY": slow}
    cluster.agent("green")


def test_the_same_ids_on_two_nodes_are_two_devices(cluster: Cluster) -> None:
    cluster.add("a", "l40s-4")
    cluster.add("b", "l40s-4")
    first = cluster.acquire("one", Alternative('vendor == "nvidia"', None))
    second = cluster.acquire("two", Alternative('vendor == "nvidia"', None))
    assert first["lease"]["device"] != second["lease"]["device"]


def test_a_restarted_agent_takes_over_what_runs(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    assert ask(program, "alloc 512").startswith("allocated")
    kill(cluster.agents["green"].pid)
    cluster.agent("green")
    (ledger,) = cluster.ledgers("green")
    assert Ledger.open(ledger).devices()[0].used_bytes == 512 * MIB
    assert ask(program, "alloc 512").startswith("allocated")
    (lease,) = cluster.call("list")["leases"]
    assert (lease["id"], lease["state"], lease["suspended"]) == (body["lease"]["id"], "active", False)
    cluster.call("release", lease=lease["id"])
    assert program.wait(20) == -signal.SIGTERM


def test_a_restarted_scheduler_takes_over_all_nodes(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    cluster.add("red", "mi210-4")
    body = cluster.acquire("gang", of("nvidia"), of("amd"))
    before = cluster.call("hello")["term"]
    kill(cluster.scheduler.pid)
    cluster.serve()
    assert cluster.call("hello")["term"] > before
    again = cluster.acquire("gang", of("nvidia"), of("amd"))  # the reply comes once both have joined again
    assert again["lease"]["id"] == body["lease"]["id"]
    assert again["environments"] == body["environments"]
    assert len(cluster.ledgers("green")) == len(cluster.ledgers("red")) == 1


def other_version(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)  # behind the magic (hal_ledger.h)
        file.write((1).to_bytes(4, "little"))


def foreign(path: Path) -> None:
    """Another file in its place: its programs have one that has no name any more."""
    other = path.with_suffix(".other")
    other.write_bytes(bytes(1 << 20))
    other.rename(path)


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(16)
        file.write((1000).to_bytes(4, "little"))  # devices


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (other_version, "it was made by another version of hal"),
    (foreign, "it is not a slice file, or is cut short"),
    (damaged, "it is damaged: the number of devices is impossible"),
    (Path.unlink, "No such file or directory"),
]


def is_dead(pid: int) -> bool:
    """Also one that nobody has collected yet."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=lambda one: getattr(one, "__name__", ""))
def test_a_slice_that_cannot_be_taken_over_is_held_until_its_programs_have_ended(
    cluster: Cluster, damage: Callable[[Path], None], reason: str
) -> None:
    """Also those that do not mind SIGTERM; and who had the lease is told why it has ended."""
    cluster.add("green", "l40s-4")
    body, other = cluster.acquire("k", of("nvidia")), cluster.acquire("other", of("nvidia"))
    env = {**cluster.envs["green"], **body["environment"]}
    soft = allocating(env, "cuda")
    deaf = start(env, "sh", "-c", f"trap '' TERM; exec {ALLOCATE} cuda")
    assert line(deaf).startswith("device")
    beside = allocating({**cluster.envs["green"], **other["environment"]}, "cuda")
    assert all(ask(program, "alloc 64").startswith("allocated") for program in (soft, deaf, beside))
    kill(cluster.agents["green"].pid)
    path = Path(body["environment"]["HAL_SLICE"])
    damage(path)
    left = path.exists()

    said = cluster.begun("green")
    assert f"the lease '{body['lease']['id']}' has lost its slice" in said
    assert f"cannot use the slice file {path}: {reason}" in said
    assert soft.wait(20) == -signal.SIGTERM
    wait_until(lambda: state(cluster, body) == "ending")
    why = re.escape(f"node 'green': cannot use the slice file {path}: {reason}")
    with pytest.raises(StateError, match=why):
        cluster.call("release", lease=body["lease"]["id"])  # its holder has noticed: its program is left
    looks = 0
    while True:
        there = state(cluster, body), path.exists(), claims(cluster, "green")
        if is_dead(deaf.pid):
            break
        looks += 1
        assert there == ("ending", left, 2), "it was given up too early"
    assert looks
    assert deaf.wait(20) == -signal.SIGKILL
    wait_until(lambda: state(cluster, body) is None)
    assert (path.exists(), claims(cluster, "green")) == (False, 1)
    assert ask(beside, "alloc 64").startswith("allocated")


def state(cluster: Cluster, body: dict[str, Any]) -> str | None:
    states = {one["id"]: one["state"] for one in cluster.call("list")["leases"]}
    return states.get(body["lease"]["id"])


def claims(cluster: Cluster, name: str) -> int:
    return len(Book(Path(cluster.envs[name]["HAL_NODE_DIR"])).claims())


def test_a_lease_whose_slice_was_never_made_is_bound_after_all(cluster: Cluster) -> None:
    """An agent that is killed between its promise and the file has lost nothing that anybody uses."""
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    kill(cluster.agents["green"].pid)
    path = Path(body["environment"]["HAL_SLICE"])
    path.unlink()
    path.with_suffix(".binding").unlink()
    kill(cluster.scheduler.pid)
    cluster.serve()
    cluster.agent("green")
    assert cluster.acquire("k", of("nvidia"))["lease"]["id"] == body["lease"]["id"]
    assert path.exists()


def test_programs_of_a_slice_that_nobody_knows_of_are_killed(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    assert ask(program, "alloc 64").startswith("allocated")
    kill(cluster.agents["green"].pid)
    binding = Path(body["environment"]["HAL_SLICE"]).with_suffix(".binding")
    binding.write_bytes(b"what is this")
    assert f"cannot read {binding}: " in cluster.begun("green")
    assert program.wait(20) == -signal.SIGKILL
    with pytest.raises(StateError, match="node 'green' has lost its slice"):
        cluster.call("release", lease=body["lease"]["id"])
    wait_until(lambda: cluster.call("list")["leases"] == [])


def test_what_a_node_has_that_nobody_knows_of_is_ended(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    kill(cluster.agents["green"].pid)
    cluster.call("release", lease=body["lease"]["id"])
    assert cluster.ledgers("green")
    cluster.agent("green")
    wait_until(lambda: not cluster.ledgers("green"))
    wait_until(lambda: cluster.call("list")["leases"] == [])


def test_a_node_that_is_cut_off_stops_what_it_holds_before_it_is_given_up(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"), ttl=15)
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    assert ask(program, "alloc 512").startswith("allocated")
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)  # nobody answers the agent any more
    assert program.wait(30) == -signal.SIGKILL
    os.kill(cluster.scheduler.pid, signal.SIGCONT)
    wait_until(lambda: cluster.call("list")["leases"] == [])


def test_with_little_grace_too_a_node_stops_before_its_devices_are_lent_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(stack, lost=4, grace=2)
        stack.callback(lambda: [process.kill() for process in [cluster.scheduler, *cluster.agents.values()]])
        cluster.through = tmp_path / "through.sock"
        behind = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).socket
        wire = start(dict(os.environ), sys.executable, "-c", PASSING_ON, cluster.through, behind)
        stack.callback(wire.kill)
        assert line(wire) == "ready"
        cluster.add("green", "l40s-4")
        body = cluster.acquire("k", of("nvidia"), ttl=3600)
        program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
        assert ask(program, "alloc 512").startswith("allocated")
        os.kill(wire.pid, signal.SIGSTOP)
        cluster.call("release", lease=body["lease"]["id"])  # the node is not told
        wait_until(lambda: cluster.call("list")["leases"] == [])
        assert program.poll() == -signal.SIGKILL


def test_the_count_to_being_cut_off_goes_on_for_a_restarted_agent(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"), ttl=15)
    program = allocating({**cluster.envs["green"], **body["environment"]}, "cuda")
    assert ask(program, "alloc 512").startswith("allocated")
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)
    kill(cluster.agents["green"].pid)
    address = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).address
    command = [*HAL, "agent", "--scheduler", address, "--node", "green"]
    cluster.agents["green"] = start(cluster.envs["green"], *command, stdin=subprocess.DEVNULL)
    assert program.wait(30) == -signal.SIGKILL
    os.kill(cluster.scheduler.pid, signal.SIGCONT)
    wait_until(lambda: cluster.call("list")["leases"] == [])


def test_a_silent_node_is_lost_and_its_lease_given_up_after_the_grace(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"), ttl=15)
    os.kill(cluster.agents["green"].pid, signal.SIGSTOP)
    wait_until(lambda: cluster.call("list")["leases"][0]["suspended"])
    with pytest.raises(TemporaryError, match=r"nvidia.*; node 'green' is lost$"):
        cluster.acquire("another", of("nvidia"))
    wait_until(lambda: cluster.call("list")["leases"] == [])
    with pytest.raises(GoneError, match="has not come back in time"):
        cluster.call("renew", lease=body["lease"]["id"])
    os.kill(cluster.agents["green"].pid, signal.SIGCONT)
    wait_until(lambda: not cluster.ledgers("green"))  # it is told so when it comes back
    again: list[dict[str, Any]] = []

    def granted() -> bool:
        try:
            again.append(cluster.acquire("another", of("nvidia")))
        except (StateError, TemporaryError):
            return False
        return True

    wait_until(granted)
    assert node_of(again[0]) == ["green"]


def test_a_silent_node_that_comes_back_in_time_keeps_its_lease(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    body = cluster.acquire("k", of("nvidia"))
    os.kill(cluster.agents["green"].pid, signal.SIGSTOP)
    wait_until(lambda: cluster.call("list")["leases"][0]["suspended"])
    os.kill(cluster.agents["green"].pid, signal.SIGCONT)
    wait_until(lambda: not cluster.call("list")["leases"][0]["suspended"])
    assert cluster.acquire("k", of("nvidia"))["lease"]["epoch"] == body["lease"]["epoch"]


def refused(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_two_nodes_cannot_have_one_name_nor_the_schedulers(cluster: Cluster) -> None:
    address = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).address
    with emulated(load("l40s-4")) as env:
        command = [*HAL, "agent", "--scheduler", address, "--node", "local"]
        impostor = start(env, *command, stdin=subprocess.DEVNULL)
        assert "the scheduler's own node" in refused(impostor)
        impostor.kill()


def test_a_node_obeys_no_older_scheduler(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    term = Path(cluster.envs["green"]["HAL_RUNTIME_DIR"], "agent.term")
    cluster.acquire("k", of("nvidia"))
    kill(cluster.agents["green"].pid)
    term.write_text("1000")
    address = Places(Path(cluster.head["HAL_RUNTIME_DIR"])).address
    command = [*HAL, "agent", "--scheduler", address, "--node", "green"]
    agent = start(cluster.envs["green"], *command, stdin=subprocess.DEVNULL)
    assert "obeys a newer scheduler (term 1000" in refused(agent)
    assert cluster.ledgers("green")
    agent.kill()


def test_a_node_that_will_not_come_back_is_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    def forget(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*HAL, "node", "forget", "green", *options]
        return subprocess.run(command, env=cluster.head, capture_output=True, text=True, timeout=60)

    def admin(*command: str) -> str:
        done = subprocess.run([*HAL, *command], env=cluster.head, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cluster.add("green", "l40s-4")
    cluster.add("red", "mi210-4")
    lease = cluster.acquire("gang", of("nvidia"), of("amd"), ttl=15)["lease"]["id"]
    cluster.call("label", node="green", labels={"rack": "a3"})
    refused = forget()
    assert (refused.returncode, refused.stdout) == (6, "")
    assert refused.stderr == "hal: node 'green' is connected: stop its agent first\n"
    kill(cluster.agents["green"].pid)
    wait_until(lambda: cluster.call("nodes", node="green")["nodes"][0]["state"] == "lost")
    refused = forget()
    assert refused.returncode == 6
    assert refused.stderr == "hal: node 'green' has leases (1), which only --force would end\n"
    cluster.call("cordon", target="green")
    forgotten = forget("--force")
    assert (forgotten.returncode, forgotten.stdout) == (0, ""), forgotten.stderr
    assert forgotten.stderr == "hal: green: 1 lease told to end\n"
    assert [node["id"] for node in cluster.call("nodes")["nodes"]] == ["local", "red"]
    wait_until(lambda: cluster.call("status")["nodes"] == {"up": 2})
    with pytest.raises(GoneError, match="node 'green' was given up"):
        cluster.call("renew", lease=lease)
    with pytest.raises(GoneError, match="there is no node 'green'"):
        cluster.call("forget", node="green")
    kill(cluster.scheduler.pid)
    assert json.loads(admin("admin", "check", "--json"))["nodes"] == 1
    journal = str(tmp_path / "events.jsonl")
    admin("admin", "journal", "--output", journal)
    assert json.loads(admin("simulate", "replay", journal, "--json"))["exact"] is True
    cluster.serve()
    assert [node["id"] for node in cluster.call("nodes")["nodes"]] == ["local", "red"]
    cluster.agent("green", late=True)  # what it still held it gives back, and is a new one
    wait_until(lambda: not cluster.ledgers("green"))
    (green,) = cluster.call("nodes", node="green")["nodes"]
    assert (green["state"], green["labels"], green["leases"]) == ("up", {}, 0)
    kinds = [
        event["kind"] for event in cluster.call("watch", after=0, limit=1000, timeout_seconds=0)["events"]
    ]
    assert "node_joined" in kinds
    wait_until(lambda: cluster.call("list")["leases"] == [])
    assert cluster.acquire("again", of("nvidia"))["lease"]["device"].startswith("green/")


def test_a_node_that_may_still_run_something_is_forgotten_by_force_only(cluster: Cluster) -> None:
    cluster.add("green", "l40s-4")
    kill(cluster.agents["green"].pid)
    wait_until(lambda: cluster.call("nodes", node="green")["nodes"][0]["state"] == "lost")
    with pytest.raises(StateError, match=r"may run something for \d s more, unless --force"):
        cluster.call("forget", node="green")
    wait_until(lambda: "green" not in {n["id"] for n in cluster.call("nodes")["nodes"]} or forgotten(cluster))
    assert [node["id"] for node in cluster.call("nodes")["nodes"]] == ["local"]


def forgotten(cluster: Cluster) -> bool:
    with suppress(StateError):
        return bool(cluster.call("forget", node="green"))
    return False
