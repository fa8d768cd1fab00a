"""A scheduler that serves others: over TCP by their keys, on this machine by their users."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hal.backend import GoneError, StateError, TemporaryError, UnsupportedError
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.scheduler.client import Client
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.errors import Unreachable
from hal.scheduler.places import Places
from hal.scheduler.security.keys import read_client_key
from tests.conftest import HAL, wait_until
from tests.integration.support import GIB, Env, places, start

NOBODY = "nobody"
ME = pwd.getpwuid(os.geteuid()).pw_name


class Head:
    """A scheduler with its configuration, its keys, and clients by the names of their keys."""

    def __init__(self, env: Env, folder: Path, stack: ExitStack) -> None:
        self.env, self.folder = env, folder
        self.stack = stack
        self.address = ""
        self.config("")

    def config(self, text: str, scheduler: str = "") -> None:
        (self.folder / "hal.toml").write_text(
            f'[scheduler]\nlisten = ["tcp://127.0.0.1:*"]\n{scheduler}\n[jobs.run_as]\nalice = "{ME}"\n'
            f"[security]\naudit_files = 3\n{text}"
        )

    def serve(self) -> subprocess.Popen[str]:
        command = [*HAL, "serve", "--config", str(self.folder / "hal.toml")]
        self.process = start(self.env, *command, stdin=subprocess.DEVNULL)
        self.stack.callback(self.process.kill)
        said = self.said()
        assert said.startswith("hal: serving leases at "), said
        self.address = said.split(", ")[-1]
        return self.process

    def said(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip("\n")

    def keys(self, *arguments: str) -> None:
        command = [*HAL, "keys", *arguments, "--config", str(self.folder / "hal.toml")]
        subprocess.run(command, env=self.env, cwd=self.folder, check=True, capture_output=True, timeout=60)

    def key(self, name: str, role: str = "user") -> Endpoint:
        self.keys("new", name, "--role", role)
        return Endpoint(self.address, read_client_key(self.folder / f"{name}.key"))

    def client(self, to: Endpoint | Places) -> Client:
        return self.stack.enter_context(Client(to, timeout=10.0))

    def named(self, name: str, role: str = "user") -> Client:
        return self.client(self.key(name, role))

    def audit(self) -> list[dict[str, Any]]:
        path = Path(self.env["HAL_RUNTIME_DIR"], "audit.log")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with ExitStack() as stack:
        yield Head(stack.enter_context(emulated(load("mixed"))), tmp_path, stack)


@pytest.fixture
def serving(head: Head) -> Head:
    head.serve()
    return head


def acquired(client: Client, key: str = "k", **more: Any) -> str:
    return str(client.call("acquire", key=key, memory_bytes=GIB, ttl_seconds=60.0, **more)["lease"]["id"])


def test_a_user_sees_and_ends_only_what_is_theirs(serving: Head) -> None:
    alice, bob = serving.named("alice"), serving.named("bob")
    watch, root = serving.named("watch", "reader"), serving.client(places(serving.env))
    hers, his = acquired(alice), acquired(bob)
    assert hers != his  # the same idempotency key of two owners is two

    def listed(client: Client) -> set[str]:
        return {lease["id"] for lease in client.call("list")["leases"]}

    assert (listed(alice), listed(bob)) == ({hers}, {his})
    assert listed(watch) == listed(root) == {hers, his}
    for op in ("release", "renew", "wait", "explain"):
        with pytest.raises((GoneError, StateError), match=r"there is no lease|another"):
            bob.call(op, lease=hers)
        with pytest.raises(StateError):  # as if there were none, or not allowed
            watch.call("release", lease=hers)
    assert listed(root) == {hers, his}
    assert alice.call("release", lease=hers)["ended"]
    assert root.call("release", lease=his)["lease"]["state"] == "ending"  # until bob's program notices
    with pytest.raises(GoneError, match="has ended"):
        bob.call("renew", lease=his)


def test_what_has_become_of_a_lease_is_told_to_its_owner_readers_and_admins(serving: Head) -> None:
    alice, bob = serving.named("alice"), serving.named("bob")
    watch, carol = serving.named("watch", "reader"), serving.named("carol", "admin")
    hers = acquired(alice)
    assert alice.call("lease", lease=hers)["lease"]["state"] == "active"
    carol.call("release", lease=hers)
    for client in (alice, watch, carol):
        over = client.call("lease", lease=hers)["over"]
        assert (over["cause"], over["by"], over["id"]) == ("released", "carol", hers)
    for op in ("lease", "renew", "release", "wait", "explain"):
        with pytest.raises(GoneError, match=f"^there is no lease '{hers}'$"):
            bob.call(op, lease=hers)
    spec = {"command": ["true"]}
    with pytest.raises(GoneError, match=f"^there is no lease '{hers}'$"):
        bob.call("submit", key="j", job=spec, lease=hers)


def test_whose_a_lease_is_is_told_by_name_also_after_a_restart(serving: Head) -> None:
    hers = acquired(serving.named("alice"))
    for restarted in (False, True):
        if restarted:
            serving.process.kill()
            serving.process.wait()
            serving.serve()
            key = read_client_key(serving.folder / "alice.key")
            serving.client(Endpoint(serving.address, key)).call("renew", lease=hers)
        told = serving.client(Endpoint.here(places(serving.env))).call("list")["leases"]
        assert [(one["id"], one["owner"]) for one in told] == [(hers, "alice")]


@pytest.mark.parametrize(
    ("role", "op"), [("user", "set_queue"), ("user", "join"), ("reader", "acquire"), ("agent", "acquire")]
)
def test_what_a_role_may_not_ask_is_denied_and_noted(role: str, op: str, serving: Head) -> None:
    client = serving.named("someone", role)
    with pytest.raises(StateError, match=f"this takes the role .*, and someone has {role}"):
        client.call(op, key="k", name="q")
    client.call("hello")
    note = serving.audit()[-1]
    assert (note["who"], note["role"], note["op"], note["outcome"]) == ("someone", role, op, "denied")
    assert note["from"] == "127.0.0.1"


def test_a_job_that_can_run_nowhere_is_refused_at_once(serving: Head) -> None:
    bob, job = serving.named("bob"), {"command": ["true"], "directory": "/"}
    with pytest.raises(StateError, match="node 'local': this node runs no jobs of 'bob'"):
        bob.call("submit", key="j", job=job)
    assert bob.call("jobs")["jobs"] == []


def test_who_did_what_is_noted(serving: Head) -> None:
    alice = serving.named("alice")
    lease = acquired(alice)
    alice.call("renew", lease=lease)
    alice.call("list")
    alice.call("release", lease=lease)
    serving.client(places(serving.env)).call("set_queue", name="research")
    job = {"command": ["true"], "directory": "/"}
    made = alice.call("submit", key="j", job=job, request={}, array=[1, 2])["jobs"]
    told = [(one["who"], one["op"], one["outcome"]) for one in serving.audit()]
    assert told == [
        ("alice", "acquire", "ok"),
        ("alice", "release", "ok"),
        (f"uid:{os.geteuid()}", "set_queue", "ok"),
        ("alice", "submit", "ok"),
    ]
    assert [one["lease"] for one in serving.audit()[:2]] == [lease, lease]
    assert serving.audit()[-1]["jobs"] == made


def test_a_revoked_key_is_refused_on_its_living_connection(serving: Head) -> None:
    alice = serving.named("alice")
    acquired(alice)
    serving.keys("revoke", "alice")
    with pytest.raises(StateError, match="no longer, known"):
        alice.call("list")
    again = Endpoint(serving.address, read_client_key(serving.folder / "alice.key"))
    with pytest.raises(StateError, match="refuses the key 'alice'"):
        serving.client(again).call("list")
    wait_until(lambda: any("revoked" in one.get("reason", "") for one in serving.audit()))
    assert len(serving.client(places(serving.env)).call("list")["leases"]) == 1  # an operator's to end


def test_who_waits_with_a_revoked_key_is_told_nothing(serving: Head) -> None:
    request = {"members": [{"alternatives": [{"selector": 'vendor == "nvidia"', "count": 2}]}], "wait": True}
    root, alice = serving.client(places(serving.env)), serving.named("alice")
    first = root.call("acquire", key="a", request=request)["lease"]["id"]
    other = root.call("acquire", key="b", request=request | {"wait": True})
    waiting = alice.call("acquire", key="c", request=request)["waiting"]["id"]
    with serving.stack.enter_context(contextlib.closing(Waiting(alice, waiting))) as wait:
        serving.keys("revoke", "alice")
        wait.is_refused()
    root.call("release", lease=first)
    if "waiting" in other:
        root.call("release", lease=other["waiting"]["id"])


def test_a_release_by_another_frees_nothing_before_the_holder_has_noticed(serving: Head) -> None:
    alice, boss = serving.named("alice"), serving.named("boss", "admin")
    whole = {"members": [{}], "ttl_ms": 60_000}
    hers = alice.call("acquire", key="a", request=whole)["lease"]["id"]
    assert not boss.call("release", lease=hers)["ended"]
    assert [one["state"] for one in boss.call("list")["leases"]] == ["ending"]
    other = alice.call("acquire", key="b", request=whole)["lease"]["id"]
    assert alice.call("release", lease=other)["ended"]


def test_an_admin_s_key_is_none_of_those_whose_lease_it_is(serving: Head) -> None:
    alice, root = serving.named("alice"), serving.client(places(serving.env))
    attached = {"key": "same", "lease": acquired(alice), "job": {"command": ["/bin/true"]}}
    made = root.call("submit", **attached)["jobs"]
    wait_until(lambda: alice.call("list")["leases"] == [])
    assert root.call("submit", **attached)["jobs"] == made
    with pytest.raises(GoneError, match="has ended"):
        alice.call("submit", **attached)
    assert alice.call("submit", key="same", job={"command": ["/bin/true"]})["jobs"] != made


# As `hal serve`, for which who is elsewhere is silent after a second.
IMPATIENT = (
    "import sys; from hal.scheduler import holders; holders.SILENT = 1.0; from hal.cli import main; main({})"
)


def test_who_waits_elsewhere_and_says_nothing_any_more_waits_no_longer(head: Head) -> None:
    arguments = ["serve", "--config", str(head.folder / "hal.toml")]
    head.process = start(head.env, HAL[0], "-c", IMPATIENT.format(arguments), stdin=subprocess.DEVNULL)
    head.address = head.said().split(", ")[-1]
    root, alice, bob = head.client(places(head.env)), head.named("alice"), head.named("bob")
    whole = {"members": [{"alternatives": [{"selector": 'vendor == "nvidia"', "count": 2}]}], "wait": True}
    held = root.call("acquire", key="a", request=whole)["lease"]["id"]
    leaves = alice.call("acquire", key="b", request=whole)["waiting"]["id"]
    stays = bob.call("acquire", key="c", request=whole)["waiting"]["id"]

    def waiting() -> list[str]:
        bob.call("wait", lease=stays, timeout_seconds=0.2)
        return [one["id"] for one in root.call("list")["waiting"]]

    assert waiting() == [leaves, stays]
    wait_until(lambda: waiting() == [stays])
    with pytest.raises(GoneError, match="nothing was heard"):
        alice.call("wait", lease=leaves)
    for _ in range(10):
        assert waiting() == [stays]
    root.call("release", lease=held)


class Waiting:
    """A `wait` that is asked now and read later."""

    def __init__(self, client: Client, lease: str) -> None:
        self._outcome: list[BaseException | dict[str, Any]] = []

        def ask() -> None:
            try:
                self._outcome.append(client.call("wait", timeout=30.0, lease=lease, timeout_seconds=20.0))
            except BaseException as error:
                self._outcome.append(error)

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._thread.join()

    def is_refused(self) -> None:
        self._thread.join(15)
        assert isinstance(self._outcome[0], StateError), self._outcome
        assert "no longer known" in str(self._outcome[0])


def test_the_wrong_scheduler_and_no_scheduler_are_said_at_once(serving: Head) -> None:
    key = serving.key("alice").key
    assert key is not None
    other = serving.folder / "other"
    subprocess.run(
        [*HAL, "keys", "new", "alice", "--directory", str(other), "--output", str(serving.folder / "b.key")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    with pytest.raises(StateError, match="is not the scheduler of the key 'alice'"):
        serving.client(Endpoint(serving.address, read_client_key(serving.folder / "b.key"))).call("hello")
    with pytest.raises(Unreachable, match=r"no scheduler answers at tcp://127.0.0.1:9"):
        serving.client(Endpoint("tcp://127.0.0.1:9", key)).call("hello")
    with pytest.raises(
        Unreachable, match=r"at tcp://no-such-host\.invalid:9: 'no-such-host\.invalid': [A-Z]"
    ):
        serving.client(Endpoint("tcp://no-such-host.invalid:9", key)).call("hello")
    slow = threading.Event()
    with pytest.MonkeyPatch.context() as patch, Client(Endpoint("tcp://a:9", key), timeout=0.2) as client:
        patch.setattr("socket.getaddrinfo", lambda *_: slow.wait(60))
        with pytest.raises(Unreachable, match="'a': the name is still being looked up"):
            client.call("hello")
        assert not slow.is_set()
        slow.set()
    with pytest.raises(StateError, match="'tcp://head' is no scheduler's address; write tcp://HOST:PORT"):
        serving.client(Endpoint("tcp://head", key)).call("hello")
    with pytest.raises(StateError, match="needs a key: set HAL_KEY"):
        Endpoint(serving.address)


def test_the_command_line_reaches_it_by_two_variables(serving: Head) -> None:
    serving.key("alice")
    env = os.environ | {"HAL_SCHEDULER": serving.address, "HAL_KEY": str(serving.folder / "alice.key")}
    command = [*HAL, "lease", "list", "--json"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (result.returncode, json.loads(result.stdout)["leases"]) == (0, []), result.stderr
    (serving.folder / "alice.key").chmod(0o644)
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 6
    assert result.stderr.count("\n") == 1
    assert "is open to others" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_is_told_to_end_while_waiting_leaves_the_queue(number: signal.Signals, serving: Head) -> None:
    """Over TCP the scheduler does not see that the process has gone."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as by nohup, and so by what is started here")
    serving.key("alice")
    env = os.environ | {"HAL_SCHEDULER": serving.address, "HAL_KEY": str(serving.folder / "alice.key")}
    with Client(places(serving.env)) as local:
        local.call("cordon", target="local")
        waiting = start(env, *HAL, "lease", "take", "--memory", "1GiB", "--wait")
        assert waiting.stderr is not None and waiting.stderr.readline().startswith("hal: waiting")
        waiting.send_signal(number)
        assert waiting.wait(timeout=60) == 128 + number
        assert local.call("list")["waiting"] == []


# ---- agents ----------------------------------------------------------------------------------


def agent(head: Head, env: Env, key: str, *options: str) -> subprocess.Popen[str]:
    command = [*HAL, "agent", "--scheduler", head.address, "--key", str(head.folder / key), *options]
    process = start(env, *command, stdin=subprocess.DEVNULL)
    head.stack.callback(process.kill)
    return process


def test_an_agent_speaks_for_the_node_that_its_key_is_named_for(serving: Head) -> None:
    env = serving.stack.enter_context(emulated(load("l40s-4")))
    serving.key("green", "agent")
    joined = agent(serving, env, "green.key")
    assert joined.stderr is not None
    assert joined.stderr.readline() == "hal: node 'green' has joined the scheduler (term 1)\n"
    other = agent(serving, env, "green.key", "--node", "red")
    assert other.wait(30) == 2
    alice = serving.named("alice")
    request = {"members": [{"alternatives": [{"selector": 'model.contains("L40S")', "memory_bytes": GIB}]}]}
    body = alice.call("acquire", key="k", request=request)
    assert body["lease"]["parts"][0]["node"] == "green"
    forged = serving.named("liar", "agent")
    facts = {"id": "green", "cpu_milli": 1, "ram_bytes": 1}
    joining = {"node": "green", "boot": "b", "term": 0, "version": "0", "facts": facts, "sent": 0.0}
    with pytest.raises(StateError, match="the key 'liar' is not that of node 'green'"):
        forged.call("join", **joining)
    with pytest.raises(StateError, match="the key 'liar' is not that of node 'green'"):
        forged.call("beat", node="green", term=1)
    root = serving.client(places(serving.env))
    serving.keys("revoke", "green")
    wait_until(lambda: root.call("nodes", node="green")["nodes"][0]["state"] == "absent")
    assert "no longer, known" in joined.stderr.readline()
    wait_until(lambda: root.call("list")["leases"][0]["suspended"], what="the end of beats")


def test_an_agent_whose_key_is_refused_says_so_and_ends(serving: Head) -> None:
    serving.key("green", "agent")
    serving.keys("revoke", "green")
    refused = agent(serving, serving.env, "green.key")
    assert refused.wait(30) == 6
    assert refused.stderr is not None
    assert "refuses the key 'green'" in refused.stderr.read()


# ---- configuration ---------------------------------------------------------------------------


def test_the_configuration_is_read_again(head: Head) -> None:
    head.config("")
    head.serve()
    alice = head.named("alice")
    dear = {"members": [{"alternatives": [{"memory_bytes": GIB, "max_micros_per_hour": 2_000_000}]}]}
    first = alice.call("acquire", key="a", request=dear)["lease"]["id"]
    alice.call("release", lease=first)
    env = head.stack.enter_context(emulated(load("l40s-4")))
    head.key("green", "agent")
    stderr = agent(head, env, "green.key").stderr
    assert stderr is not None
    assert "has joined" in stderr.readline()
    there = {"selector": 'model.contains("L40S")', "memory_bytes": GIB, "max_micros_per_hour": 2_000_000}
    dear_there = {"members": [{"alternatives": [there]}]}
    body = alice.call("acquire", key="there", request=dear_there)
    alice.call("release", lease=body["lease"]["id"])
    head.config("[prices]\n'kind == \"gpu\"' = 3\n[classes.night]\npriority = 1\n[limits]\nqueued = 64\n")
    head.process.send_signal(signal.SIGHUP)
    while (said := head.said()).startswith("hal: node joined"):
        pass
    assert said.startswith("hal: read the configuration again: prices, classes changed"), said
    assert said.endswith("; with the next start: limits.queued")
    assert "night" in alice.call("hello")["classes"]
    for request in (dear, dear_there):
        with pytest.raises(UnsupportedError, match=r"no more than 2 an hour"):
            alice.call("acquire", key="b", request=request)
    head.config("[pirces]\n")
    head.process.send_signal(signal.SIGHUP)
    assert "the configuration stays as it is" in head.said()
    assert "night" in alice.call("hello")["classes"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nbrust = 1", "there is no key 'limits.brust'; did you mean 'limits.burst'?"),
        ("[security]\ngroup = 'no such group'", "there is no group 'no such group' on this machine"),
        (
            "[security.roles]\n'no such user' = 'admin'",
            "security.roles: there is no user 'no such user' here",
        ),
        ("[security.roles]\n99999999999999 = 'admin'", "security.roles: '99999999999999' is no uid; "),
        (
            "[security]\naudit = '/nowhere/audit.log'",
            "security.audit: cannot write /nowhere/audit.log: No such",
        ),
        ("[security]\naudit = '.'", ": Is a directory"),
        ("[security]\naudit = '/dev/null'", "security.audit: /dev/null is no file"),
        ("[scheduler]\ngrace_seconds = inf", "scheduler.grace_seconds: expected a number <= 604800"),
        (
            "[scheduler]\nlisten = ['tcp://0.0.0.0:99999']",
            "scheduler.listen: 'tcp://0.0.0.0:99999' has no port",
        ),
        ("[scheduler]\nlisten = ['tcp://203.0.113.1:7421']", "cannot listen at tcp://203.0.113.1:7421: "),
    ],
)
def test_a_configuration_that_cannot_be_stops_the_start(text: str, said: str, head: Head) -> None:
    (head.folder / "hal.toml").write_text(text)
    command = [*HAL, "serve", "--config", str(head.folder / "hal.toml")]
    result = subprocess.run(command, env=head.env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 6
    assert result.stderr.startswith("hal: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    if "cannot listen" not in said:
        assert not places(head.env).store.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[scheduler]\ngrace_seconds = 1e300", "scheduler.grace_seconds: expected a number <= 604800"),
        ("[scheduler]\nlost_seconds = inf", "scheduler.lost_seconds: expected a number <= 604800"),
        ("[classes]\nx = 1", "[classes.x]: a class is a table, such as {priority = 1}"),
        ("[security]\ngroup = 'no such group'", "security.group: there is no group 'no such group'"),
        ("[security]\naudit = '/nowhere/audit.log'", "security.audit: cannot write /nowhere/audit.log"),
        ("[security.roles]\n'no such user' = 'admin'", "security.roles: there is no user 'no such user'"),
    ],
)
def test_a_reload_with_an_error_changes_nothing(text: str, said: str, head: Head) -> None:
    head.config("")
    head.serve()
    runtime = Path(head.env["HAL_RUNTIME_DIR"])
    mode, there = runtime.stat().st_mode, sorted(path.name for path in runtime.iterdir())
    (head.folder / "hal.toml").write_text(
        f"{text}\n[prices]\n'kind == \"gpu\"' = 3\n[jobs.run_as]\nroot = 'nobody'\n"
    )
    head.process.send_signal(signal.SIGHUP)
    line = head.said()
    assert line.startswith("hal: the configuration stays as it is: ") and said in line
    assert runtime.stat().st_mode == mode
    assert sorted(path.name for path in runtime.iterdir()) == there
    body = head.client(places(head.env)).call("acquire", key="a", memory_bytes=GIB)  # it counts with the time
    assert body["lease"]["state"] == "active"


def test_a_user_that_run_as_names_and_that_is_not_there_is_told_of(head: Head) -> None:
    """Not an error: who is known by a directory service may be known later."""
    there_is_none = (
        "hal: warning: jobs.run_as: there is no user 'nosuchuser' here; until there is, 'a' runs no jobs"
    )
    (head.folder / "hal.toml").write_text("[jobs.run_as]\na = 'nosuchuser'\n")
    command = [*HAL, "serve", "--config", str(head.folder / "hal.toml")]
    head.process = start(head.env, *command, stdin=subprocess.DEVNULL)
    assert head.said() == there_is_none
    assert head.said().startswith("hal: serving leases at ")
    head.process.send_signal(signal.SIGHUP)
    assert [head.said(), head.said()] == [
        there_is_none,
        "hal: read the configuration again: nothing changed",
    ]


def test_tcp_does_not_start_with_keys_that_are_open_to_others(head: Head) -> None:
    head.keys("new", "alice")
    Path(head.env["HAL_RUNTIME_DIR"], "keys", "scheduler.key").chmod(0o644)
    command = [*HAL, "serve", "--config", str(head.folder / "hal.toml")]
    result = subprocess.run(command, env=head.env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 6
    assert "is open to others" in result.stderr


# ---- limits ----------------------------------------------------------------------------------


def test_who_asks_too_often_is_busy_and_others_are_not(head: Head) -> None:
    head.config("[limits]\nrequests_per_second = 1\nburst = 5\n")
    head.serve()
    alice, bob = head.named("alice"), head.named("bob")
    with pytest.raises(TemporaryError, match="alice asks more than 1 times a second; try again in"):
        for _ in range(100):
            alice.call("hello", timeout=0.1)
    alice.call("hello")  # who has time is answered when it is their turn
    bob.call("hello")
    head.client(places(head.env)).call("hello")


def test_programs_of_a_user_who_asks_too_much_end_as_they_end(head: Head) -> None:
    head.config("[limits]\nrequests_per_second = 15\nburst = 15\n")
    head.serve()
    head.key("alice")
    env = head.env | {"HAL_SCHEDULER": head.address, "HAL_KEY": str(head.folder / "alice.key")}

    def hal(*arguments: str) -> subprocess.Popen[str]:
        return start(env, *HAL, *arguments, stdin=subprocess.DEVNULL)

    def ended(program: subprocess.Popen[str]) -> tuple[str, str, int]:
        return (*program.communicate(timeout=60), program.returncode)

    run = ("run", "--memory", "1GiB", "--", "sh", "-c", "echo up; sleep 2; exit 7")
    runs = [hal(*run) for _ in range(6)]
    id = ended(hal("submit", "--memory", "1GiB", "--", "sh", "-c", "echo up; sleep 2; exit 7"))[0].strip()
    follow, wait = hal("job", "logs", "-f", id), hal("job", "wait", id)
    assert [ended(program) for program in runs] == [("up\n", "", 7)] * 6
    assert ended(follow) == ("up\n", "", 0)
    assert ended(wait)[2] == 7


def test_who_waits_for_too_many_answers_is_busy(head: Head) -> None:
    head.config("[limits]\noutstanding = 1\n")
    head.serve()
    root = head.client(places(head.env))
    whole = {"members": [{"alternatives": [{"selector": 'vendor == "nvidia"', "count": 2}]}], "wait": True}
    first = root.call("acquire", key="a", request=whole)["lease"]["id"]
    to = head.key("alice")
    alice, again = head.client(to), head.client(to)
    waiting = alice.call("acquire", key="b", request=whole)["waiting"]["id"]
    with Waiting(alice, waiting):

        def busy() -> bool:
            with contextlib.suppress(TemporaryError):
                again.call("wait", timeout=0.2, lease=waiting, timeout_seconds=0.05)
                return False
            return True

        wait_until(busy)
        root.call("release", lease=first)
    wait_until(lambda: not busy())


def test_who_has_too_many_in_the_queue_is_told_and_jobs_count(head: Head) -> None:
    head.config("[limits]\nwaiting = 3\n")
    head.serve()
    root, alice = head.client(places(head.env)), head.named("alice")
    whole = {"members": [{"alternatives": [{"selector": 'vendor == "nvidia"', "count": 2}]}], "wait": True}
    held = root.call("acquire", key="a", request=whole)["lease"]["id"]
    job = {"command": ["true"]}
    alice.call("submit", key="jobs", job=job, request=whole, array=[1, 2])
    waits = alice.call("acquire", key="b", request=whole)["waiting"]["id"]
    assert alice.call("acquire", key="b", request=whole)["waiting"]["id"] == waits
    for op, body in (("acquire", {}), ("submit", {"job": job}), ("submit", {"job": job, "array": [1, 2]})):
        with pytest.raises(TemporaryError, match="alice has 3 requests that wait, and may have 3"):
            alice.call(op, key=f"{op}{len(body)}", request=whole, **body)
    alice.call("release", lease=waits)
    with pytest.raises(TemporaryError, match="alice has 2 requests that wait"):
        alice.call("submit", key="two", job=job, request=whole, array=[1, 2])
    alice.call("acquire", key="c", request=whole)
    root.call("acquire", key="d", request=whole)
    root.call("release", lease=held)


def test_many_large_jobs_are_listed_and_bounded_in_bytes(head: Head) -> None:
    head.config("")
    head.serve()
    root, alice = head.client(places(head.env)), head.named("alice")
    root.call("cordon", target="local")
    assert head.said().startswith("hal: cordoned")
    job = {"command": ["true", "x" * 31_000], "environment": {f"V{n:040}": "" for n in range(650)}}
    for number in range(3):
        alice.call("submit", key=f"k{number}", job=job, array=list(range(100)))
    env = head.env | {"HAL_SCHEDULER": head.address, "HAL_KEY": str(head.folder / "alice.key")}
    listing = [*HAL, "job", "list", "--json"]
    done = subprocess.run(listing, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["jobs"]) == 300
    head.config('[limits]\nwaiting_bytes = "16MiB"\n')
    head.process.send_signal(signal.SIGHUP)
    assert "limits.waiting_bytes changed" in head.said()
    with pytest.raises(TemporaryError, match=r"the 16.0 MiB that it may have \(limits.waiting_bytes\)"):
        alice.call("submit", key="more", job=job)
    head.config('[limits]\nwaiting_bytes = "32MiB"\n')
    head.process.send_signal(signal.SIGHUP)
    assert "limits.waiting_bytes changed" in head.said()
    alice.call("submit", key="more", job=job)


# ---- other users of this machine -------------------------------------------------------------

Asked = Callable[..., dict[str, Any]]


@pytest.fixture
def as_nobody(head: Head, own_environment: Path) -> Iterator[Asked]:
    """One call to the scheduler by another user, and its answer, or "error"; who acquires lives on. A child
    is all that it takes: a program that is started anew would have to be readable to that user."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    user = pwd.getpwnam(NOBODY)
    head.env["HAL_RUNTIME_DIR"] = str(
        own_environment
    )  # that of the emulated machine is in a directory of root's
    children: list[int] = []

    def ask(op: str, **body: Any) -> dict[str, Any]:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(user.pw_gid)
                os.setuid(user.pw_uid)
                with Client(places(head.env), timeout=10.0) as client:
                    answer = client.call(op, **body)
            except BaseException as error:
                answer = {"error": str(error)}
            os.write(theirs, json.dumps(answer).encode())
            os.close(theirs)
            if op == "acquire":
                signal.pause()
            os._exit(0)
        children.append(child)
        os.close(theirs)
        with os.fdopen(ours) as file:
            content = file.read()
        found: dict[str, Any] = json.loads(content)
        return found

    yield ask
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_private_directory_keeps_others_out(head: Head, as_nobody: Asked) -> None:
    head.serve()
    error = as_nobody("hello")["error"]
    assert "scheduler.sock is not open to this user" in error and "security.group" in error


def test_a_group_is_served_each_by_their_user(head: Head, as_nobody: Asked) -> None:
    user = pwd.getpwnam(NOBODY)
    group = grp.getgrgid(user.pw_gid).gr_name
    (head.folder / "hal.toml").write_text(f'[security]\ngroup = "{group}"\n')
    head.serve()
    runtime = Path(head.env["HAL_RUNTIME_DIR"])
    body = as_nobody("acquire", key="k", memory_bytes=GIB, ttl_seconds=60)
    assert "lease" in body, body
    open_to_others = [
        path.name
        for path in runtime.iterdir()
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_to_others == []
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o750
    ledger = next(iter((runtime / "slices").glob("*.ledger")))
    assert ledger.stat().st_uid == user.pw_uid  # theirs to charge
    root = head.client(places(head.env))
    mine = acquired(root)
    assert [lease["id"] for lease in as_nobody("list")["leases"]] == [body["lease"]["id"]]
    assert "there is no lease" in as_nobody("release", lease=mine)["error"]
    assert "this takes the role admin, and" in as_nobody("set_queue", name="q")["error"]
    assert head.audit()[0]["who"] == f"uid:{user.pw_uid}"
