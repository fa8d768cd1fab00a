"""What operators ask of a scheduler: nodes, labels, cordons, events, metrics and its log."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hal.backend import GoneError, HalError, UnsupportedError
from hal.cli import node as cli_node
from hal.scheduler import core
from hal.scheduler.client import Client
from hal.scheduler.errors import MalformedError
from hal.scheduler.operating import labelled
from hal.scheduler.security.roles import ACCESS, Role
from tests.conftest import HAL, wait_until
from tests.integration.support import GIB, Env, line, places, start

CONFIG = '[scheduler]\nmetrics = "127.0.0.1:0"\nlog = "json"\nlog_level = "debug"\n'


@contextmanager
def serving(env: Env, tmp_path: Path, more: str = "") -> Iterator[subprocess.Popen[str]]:
    """As an operator configures it; its log is in the file ``log``."""
    (tmp_path / "hal.toml").write_text(CONFIG + more)
    with (tmp_path / "log").open("a") as log:
        daemon = start(env, *HAL, "serve", "--config", str(tmp_path / "hal.toml"), stderr=log)
    count = len(logged(tmp_path, "serving"))
    wait_until(lambda: len(logged(tmp_path, "serving")) > count)
    try:
        yield daemon
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0


def logged(tmp_path: Path, word: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(one) for one in (tmp_path / "log").read_text().splitlines() if one.endswith("}")]
    return [one for one in lines if word in one["message"]]


def hal(env: Env, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([*HAL, *arguments, "--json"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_who_waits_for_a_drain_asks_for_that_node_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands of others."""
    monkeypatch.setattr(cli_node, "_LOOK", 0.0)
    asked = list[dict[str, Any]]()

    class Stub:
        def call(self, op: str, **body: Any) -> dict[str, Any]:
            asked.append(body)
            lent = 2 if len(asked) < 7 else 0
            device = {"id": "b/x", "cordoned": "left", "lent_bytes": lent}
            node = {"id": "b", "reason": "left", "leases": lent, "devices": [device]}
            if "node" not in body:
                return {"nodes": [node], "next": None} if body["after"] == "a" else {"nodes": [], "next": "a"}
            if body["node"] != "b":
                raise GoneError("there is no node of that name")
            return {"nodes": [node], "next": None}

    for target, first in (("b", [{"node": "b"}]), ("b/x", [{"node": "b/x"}, {"after": ""}, {"after": "a"}])):
        asked.clear()
        cli_node._wait(cast("Client", Stub()), target)
        assert asked == first + [{"node": "b"}] * (7 - len(first))


@pytest.fixture
def client(machine_env: Env, tmp_path: Path) -> Iterator[Client]:
    with serving(machine_env, tmp_path), Client(places(machine_env), timeout=10.0) as one:
        yield one


def select(label: str) -> dict[str, Any]:
    one = {"selector": f'device.attributes["node"].{label}', "memory_bytes": GIB}
    return {"members": [{"alternatives": [one]}]}


def test_only_admins_change_nodes() -> None:
    for op in ("cordon", "drain", "uncordon", "label", "forget"):
        assert ACCESS[op].roles == {Role.ADMIN}
        assert ACCESS[op].noted
    for op in ("nodes", "status"):
        assert ACCESS[op].roles == {Role.ADMIN, Role.USER, Role.READER}


def test_a_cordon_keeps_requests_away_and_a_drain_ends_what_is_there(client: Client) -> None:
    lease = client.call("acquire", key="a", memory_bytes=GIB, ttl_seconds=1)["lease"]["id"]
    (node,) = client.call("nodes")["nodes"]
    assert (node["state"], node["leases"], node["agent_version"]) == ("up", 1, version("gpu-hal"))
    lent = [device for device in node["devices"] if device["lent_bytes"]]
    assert [device["lent_bytes"] for device in lent] == [GIB]
    assert client.call("cordon", target="local", reason="dust") == {"target": "local", "leases": 1}
    assert client.call("nodes")["nodes"][0]["state"] == "cordoned"
    assert client.call("list")["leases"][0]["state"] == "active"
    with pytest.raises(HalError, match=r"would do are out of use .*dust\); try again when that is over"):
        client.call("acquire", key="b", memory_bytes=GIB)
    client.call("drain", target="local", reason="dust")
    with pytest.raises(GoneError, match="local is drained: dust"):
        client.call("renew", lease=lease)
    wait_until(lambda: client.call("nodes")["nodes"][0]["state"] == "drained")
    assert client.call("status")["devices"]["usable"] == 0
    client.call("uncordon", target="local")
    assert client.call("acquire", key="c", memory_bytes=GIB)["lease"]["state"] == "active"


def test_a_device_is_named_by_a_part_of_its_id(client: Client) -> None:
    devices = client.call("nodes")["nodes"][0]["devices"]
    one = next(device["id"] for device in devices if device["vendor"] == "nvidia")
    assert client.call("cordon", target=one.removeprefix("nvidia:")[:12])["target"] == one
    after = client.call("nodes")["nodes"][0]
    assert {d["id"]: d["cordoned"] for d in after["devices"] if d["cordoned"]} == {one: "cordoned"}
    assert after["state"] == "up"
    assert client.call("status")["devices"]["usable"] == len(devices) - 1
    with pytest.raises(HalError, match="fits 2 devices"):
        client.call("cordon", target="nvidia:")
    assert {d["state"] for d in after["devices"] if d["id"] == one} == {"drained"}
    with pytest.raises(
        GoneError, match=r"no node or device 'blue'; the nodes are local \(the scheduler's own\)$"
    ):
        client.call("drain", target="blue")


@pytest.mark.parametrize(
    ("op", "body"),
    [
        ("cordon", {"target": ""}),
        ("cordon", {"target": "local", "reason": "x" * 257}),
        ("label", {"node": "local", "labels": {"": "x"}}),
        ("label", {"node": "local", "labels": {"a b": "x"}}),
        ("label", {"node": "local", "labels": {"é": "x"}}),
        ("label", {"node": "local", "labels": {"name": "spoofed"}}),
        ("label", {"node": "local", "labels": {"a": "x\ny"}}),
        ("nodes", {"limit": 0}),
        ("nodes", {"limit": 201}),
    ],
)
def test_what_does_not_fit_is_refused(client: Client, op: str, body: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        client.call(op, **body)
    assert client.call("nodes")["nodes"][0]["labels"] == {}


def test_a_device_that_is_left_reads_so(client: Client, machine_env: Env) -> None:
    def states() -> list[str]:
        done = subprocess.run(
            [*HAL, "node", "list", "--devices"], env=machine_env, capture_output=True, text=True, timeout=60
        )
        return [re.split(r"  +", row)[-1] for row in done.stdout.splitlines()[1:] if held in row]

    lease = client.call("acquire", key="a", memory_bytes=GIB, ttl_seconds=60.0)["lease"]
    held = lease["device"]
    assert states() == ["usable"]
    client.call("cordon", target=held)
    assert states() == ["cordoned"]
    client.call("drain", target=held)
    assert states() == ["draining"]
    client.call("release_many", leases=[lease["id"]])  # its holder has noticed
    wait_until(lambda: states() == ["drained"])
    client.call("drain", target=held, reason="dust")
    assert states() == ["drained (dust)"]
    done = subprocess.run([*HAL, "node", "list"], env=machine_env, capture_output=True, text=True, timeout=60)
    assert re.split(r"  +", done.stdout.splitlines()[1])[1] == "up, 1 device drained"


def test_no_label_stands_for_a_nodes_own_name(client: Client) -> None:
    """Not even one that a store has from before: it can be taken away."""
    client.call("label", node="local", labels={"name": None})
    named = client.call("acquire", key="a", request=select('name == "local"'))
    assert named["lease"]["state"] == "active"
    device = core.DeviceFacts("d", "amd", "m", 1)
    facts = labelled(core.NodeFacts("green", 1000, 1, (device,)), {"name": "spoofed", "rack": "a3"})
    assert facts.devices[0].attributes == {"node.name": "green", "node.rack": "a3"}


def test_labels_choose_nodes_and_outlive_a_restart(machine_env: Env, tmp_path: Path) -> None:
    with serving(machine_env, tmp_path), Client(places(machine_env), timeout=10.0) as client:
        with pytest.raises(UnsupportedError):
            client.call("acquire", key="a", request=select('rack == "a3"'))
        assert client.call("label", node="local", labels={"rack": "a3", "old": "1"})["labels"] == {
            "rack": "a3",
            "old": "1",
        }
        client.call("label", node="local", labels={"old": None, "never": None})
        client.call("cordon", target="local", reason="kept")
        with pytest.raises(GoneError, match="there is no node 'blue'"):
            client.call("label", node="blue", labels={"a": "b"})
    with serving(machine_env, tmp_path), Client(places(machine_env), timeout=10.0) as client:
        (node,) = client.call("nodes")["nodes"]
        assert (node["labels"], node["reason"], node["state"]) == ({"rack": "a3"}, "kept", "drained")
        client.call("uncordon", target="local")
        assert client.call("acquire", key="b", request=select('rack == "a3"'))["lease"]["devices"]
        assert client.call("acquire", key="c", request=select('name == "local"'))["lease"]["devices"]


def test_pages_of_nodes(client: Client) -> None:
    assert client.call("nodes", limit=1)["next"] is None
    assert client.call("nodes", after="local") == {"nodes": [], "next": None}
    assert [node["id"] for node in client.call("nodes", node="local")["nodes"]] == ["local"]
    with pytest.raises(GoneError):
        client.call("nodes", node="blue")


def test_metrics_and_health(client: Client, tmp_path: Path) -> None:
    client.call("acquire", key="a", memory_bytes=GIB)
    (said,) = logged(tmp_path, "serving leases at")
    url = said["message"].split(", ")[-1]

    def get(at: str) -> str:
        with urllib.request.urlopen(at, timeout=30) as answer:
            return str(answer.read().decode())

    families = {family.name: family for family in text_string_to_metric_families(get(url))}
    assert [sample.value for sample in families["hal_device_memory_lent_bytes"].samples] == [GIB]
    counted = {
        (sample.labels["op"], sample.labels["outcome"]): sample.value
        for sample in families["hal_scheduler_requests"].samples
    }
    assert counted["acquire", "ok"] == 1
    commits = {sample.name: sample.value for sample in families["hal_scheduler_commit_seconds"].samples}
    assert commits["hal_scheduler_commit_seconds_count"] >= 1
    health = json.loads(get(url.replace("metrics", "health")))
    assert (health["status"], health["term"]) == ("ok", 1)


def test_the_log_has_the_ids_of_requests(client: Client, tmp_path: Path) -> None:
    lease = client.call("acquire", key="a", memory_bytes=GIB)["lease"]["id"]
    wait_until(lambda: bool(logged(tmp_path, "acquire ok")))
    (asked,) = logged(tmp_path, "acquire ok")
    (granted,) = logged(tmp_path, f"granted: {lease}")
    assert asked["request"] and asked["request"] == granted["request"]
    assert asked["who"].startswith("uid:")


def test_the_log_says_what_has_come_of_a_request_later(client: Client, tmp_path: Path) -> None:
    job = {"command": ["sh", "-c", "exit 3"], "directory": "/"}
    (id,) = client.call("submit", key="j", job=job, request={"members": [{}]})["jobs"]
    wait_until(lambda: bool(logged(tmp_path, f"job failed: {id}")))
    (failed,) = logged(tmp_path, f"job failed: {id}")
    (asked,) = logged(tmp_path, "submit ok")
    assert failed["reason"] == "its program ended with code 3"
    assert failed["request"] and failed["request"] == asked["request"]
    client.call("cordon", target="local")
    waits = client.call("acquire", key="w", request={"members": [{}], "wait": True})["waiting"]["id"]
    client.call("wait", lease=waits, timeout_seconds=0.1)
    (later,), (answered,) = logged(tmp_path, "wait later"), logged(tmp_path, "answered ok")
    assert later["request"] == answered["request"]


def test_an_audit_log_that_cannot_be_written_is_told(machine_env: Env, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    audit = f'[security]\naudit = "{tmp_path}/there/audit.log"\n'
    with serving(machine_env, tmp_path, audit), Client(places(machine_env), timeout=10.0) as client:
        (said,) = logged(tmp_path, "serving leases at")
        url = said["message"].split(", ")[-1].replace("metrics", "health")

        def trouble() -> str:
            with urllib.request.urlopen(url, timeout=30) as answer:
                health = json.loads(answer.read())
            done = subprocess.run(
                [*HAL, "status"], env=machine_env, capture_output=True, text=True, timeout=60
            )
            (shown,) = re.findall(r"^trouble +(.*)\n", done.stdout, re.MULTILINE) or [""]
            assert (health["status"], health.get("reason", "")) == ("degraded" if shown else "ok", shown)
            return shown

        assert trouble() == ""
        (tmp_path / "there").rename(tmp_path / "away")
        client.call("cordon", target="local")  # the first line that it is opened for
        wait_until(lambda: client.call("status")["unnoted"] is not None)
        assert (
            trouble() == f"cannot write the audit log {tmp_path}/there/audit.log: No such file or directory"
        )
        (tmp_path / "away").rename(tmp_path / "there")
        wait_until(lambda: client.call("status")["unnoted"] is None)
        assert trouble() == ""
        assert '"outcome":"lost"' in (tmp_path / "there/audit.log").read_text()


def test_commands(client: Client, machine_env: Env, tmp_path: Path) -> None:
    assert hal(machine_env, "status")["nodes"] == {"up": 1}
    labelled = hal(machine_env, "node", "label", "local", "rack=a3", "gone-")
    assert labelled["nodes"][0]["labels"] == {"rack": "a3"}
    assert hal(machine_env, "node", "drain", "local", "--wait")["nodes"][0]["state"] == "drained"
    assert hal(machine_env, "node", "uncordon", "local")["nodes"][0]["state"] == "up"
    assert [node["id"] for node in hal(machine_env, "node", "list")["nodes"]] == ["local"]
    done = subprocess.run(
        [*HAL, "node", "label", "local", "what"], env=machine_env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hal: 'what' is no label; write NAME=VALUE, or NAME- to take it away\n"
    for command in (["status"], ["node", "list"], ["node", "list", "--devices"], ["events"]):
        done = subprocess.run([*HAL, *command], env=machine_env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "local" in done.stdout or command == ["status"]


def test_events_are_followed_over_a_restart(machine_env: Env, tmp_path: Path) -> None:
    with serving(machine_env, tmp_path), Client(places(machine_env), timeout=10.0) as client:
        client.call("label", node="local", labels={"kept": "1"})
        client.call("cordon", target="local", reason="first")
        following = start(machine_env, *HAL, "events", "-f", "--json")
        event = json.loads(line(following))
        assert (event["schema"], event["kind"], event["reason"]) == ("hal.event/1", "cordoned", "first")
        client.call("uncordon", target="local")
        assert json.loads(line(following))["kind"] == "uncordoned"
        client.call("cordon", target="local", reason="again")
        assert json.loads(line(following))["kind"] == "cordoned"
    assert following.stderr is not None
    assert "waiting for it" in following.stderr.readline()
    with serving(machine_env, tmp_path), Client(places(machine_env), timeout=10.0) as client:
        client.call("uncordon", target="local")
        said = json.loads(line(following))
        assert (said["kind"], said["number"] > event["number"]) == ("uncordoned", True)
        client.call("cordon", target="local")
    following.kill()


def test_a_log_that_nobody_reads_keeps_no_client_waiting(machine_env: Env, tmp_path: Path) -> None:
    (tmp_path / "hal.toml").write_text(CONFIG)
    daemon = start(machine_env, *HAL, "serve", "--config", str(tmp_path / "hal.toml"))
    assert daemon.stderr is not None
    daemon.stderr.readline()
    with Client(places(machine_env), timeout=10.0) as client:
        for _ in range(3000):  # of some 100 bytes each: more than a pipe holds
            client.call("hello")
        assert client.call("status")["term"] == 1
    daemon.kill()


def test_what_has_become_of_a_lease_can_be_read(client: Client, machine_env: Env) -> None:
    def shown(id: str) -> dict[str, Any]:
        (one,) = hal(machine_env, "lease", "show", id)["over"]
        return dict(one)

    held = client.call("acquire", key="a", memory_bytes=GIB, ttl_seconds=60.0)["lease"]["id"]
    told = hal(machine_env, "lease", "show", held)
    assert ([one["id"] for one in told["leases"]], told["waiting"], told["over"]) == ([held], [], [])
    me = pwd.getpwuid(os.getuid()).pw_name
    assert told["leases"][0]["owner"] == me
    client.call("cordon", target="local", reason="dust")
    waits = client.call("acquire", key="w", request={"members": [{}], "wait": True})["waiting"]["id"]
    assert hal(machine_env, "lease", "show", waits)["waiting"][0]["id"] == waits
    listed = hal(machine_env, "lease", "list")
    assert [one["owner"] for one in (*listed["leases"], *listed["waiting"])] == [me, me]
    rows = subprocess.run(
        [*HAL, "lease", "list"], env=machine_env, capture_output=True, text=True, timeout=60
    )
    assert [row.split()[1] for row in rows.stdout.splitlines() if row[:8] in (held, waits)] == [me, me]
    client.call("release", lease=waits)
    assert (shown(waits)["state"], shown(waits)["granted_ms"]) == ("withdrawn", None)
    client.call("drain", target="local", reason="dust")
    assert shown(held)["cause"] == "drained"
    client.call("release_many", leases=[held])  # it is ending already: no second cause
    wait_until(lambda: client.call("list")["leases"] == [])
    over = shown(held)
    assert over["owner"] == me
    assert (over["state"], over["cause"], over["by"]) == ("ended", "drained", f"uid:{os.getuid()}")
    assert over["ended_ms"] >= over["at_ms"] >= over["granted_ms"]
    done = subprocess.run(
        [*HAL, "lease", "show", held], env=machine_env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "state       has ended" in done.stdout
    assert "\nbecause     local is drained: dust\n" in done.stdout
    with pytest.raises(GoneError, match="there is no lease '1234abcd'"):
        client.call("lease", lease="1234abcd")


def test_no_name_steers_the_terminal_of_who_looks(client: Client, machine_env: Env) -> None:
    name = "\x1b]0;mine\x07\nLease"
    member = {"alternatives": [{"memory_bytes": GIB}]}
    request = {"members": [member], "name": name}
    held = client.call("acquire", key="a", request=request)["lease"]["id"]
    job = client.call("submit", key="j", request=request, job={"command": ["sh", "-c", f"true {name}"]})[
        "jobs"
    ][0]
    client.call("cordon", target="local", reason=name)
    looks = (
        "lease list",
        f"lease show {held}",
        "events",
        "job list",
        f"job show {job}",
        "node list",
        "status",
    )
    shown = []
    for look in (*looks, f"lease show {name}"):
        command = [*HAL, *look.split(" ", 2)]
        done = subprocess.run(command, env=machine_env, capture_output=True, text=True, timeout=60)
        shown.append(done.stdout + done.stderr)
        assert "\x1b" not in shown[-1] and "\x07" not in shown[-1], look
    assert sum(r"\x1b]0;mine\x07" in text for text in shown) >= 6, shown
    assert r"\x1b]0;mine\x07\nLease" in shown[0]


def test_who_follows_is_shown_the_latest_first(client: Client, machine_env: Env) -> None:
    for number in range(12):
        client.call("cordon", target="local", reason=f"dust {number}")
    client.call("cordon", target="local")
    for options, first in (((), "cordoned  local  dust 3"), (("--since", "1h"), "cordoned  local  dust 0")):
        following = start(machine_env, *HAL, "events", "-f", *options)
        assert re.sub(" +", " ", line(following)).endswith(re.sub(" +", " ", first))
        following.kill()
    done = subprocess.run([*HAL, "events"], env=machine_env, capture_output=True, text=True, timeout=60)
    assert re.search(r"cordoned +local$", done.stdout.rstrip())


def test_who_uncordons_a_part_hears_of_the_rest(client: Client, machine_env: Env) -> None:
    def uncordon(target: str) -> str:
        command = [*HAL, "node", "uncordon", target]
        return subprocess.run(command, env=machine_env, capture_output=True, text=True, timeout=60).stderr

    one, other = (device["id"] for device in client.call("nodes")["nodes"][0]["devices"][:2])
    for target in ("local", f"local/{one}", other):
        client.call("cordon", target=target)
    assert uncordon(other) == f"hal: {other}: its node local is still left\n"
    assert uncordon("local") == f"hal: local: still left by itself is {one}\n"
    assert uncordon(one) == ""
    named = subprocess.run(
        [*HAL, "run", "--device", f"local/{one}", "--memory", "1GiB", "--", "true"],
        env=machine_env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (named.returncode, named.stderr) == (0, "")


def test_what_is_ending_expires_no_more(client: Client, machine_env: Env) -> None:
    taking = start(machine_env, *HAL, "lease", "take", "--memory", "1GiB")
    id = line(taking).split()[1]
    client.call("drain", target="local", reason="dust")
    shown = subprocess.run(
        [*HAL, "lease", "list"], env=machine_env, capture_output=True, text=True, timeout=60
    )
    assert re.search(rf"^{id} .* ending +–$", shown.stdout, re.MULTILINE) or id not in shown.stdout
    _, said = taking.communicate(timeout=60)
    assert (said, taking.returncode) == (f"hal: the lease '{id}' has ended: local is drained: dust\n", 3)


def test_events_that_are_asked_for(client: Client, machine_env: Env) -> None:
    def events(*options: str) -> list[dict[str, Any]]:
        command = [*HAL, "events", "--json", *options]
        done = subprocess.run(command, env=machine_env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [json.loads(one) for one in done.stdout.splitlines()]

    held = client.call("acquire", key="a", memory_bytes=GIB)["lease"]
    client.call("cordon", target=held["device"])
    client.call("label", node="local", labels={"rack": "a3"})
    client.call("set_queue", name="other")
    me = pwd.getpwuid(os.getuid()).pw_name
    assert [one["kind"] for one in events("--lease", held["id"])] == ["granted"]
    assert [one["kind"] for one in events("--node", "local")] == ["granted", "cordoned"]
    assert [one["kind"] for one in events("--node", "other")] == []
    assert [one["kind"] for one in events("--kind", "queue_set,cordoned")] == ["cordoned", "queue_set"]
    assert [one["kind"] for one in events("--user", me)] == ["granted"]
    assert len(events("--since", "1h")) == len(events()) >= 3
    assert events("--since", "2100-01-31T12:00") == []
    for option, value, code, said in (
        ("--since", "yesterday", 2, "hal: 'yesterday' is no time: write it like 30min, 2h, 2026-01-31 or"),
        ("--kind", "grant", 2, "there is no kind of event 'grant'; did you mean 'granted'?"),
        ("--kind", "xyz", 2, "there is no kind of event 'xyz'; there are queued,"),
        ("--after", str(1 << 70), 2, "hal: a number in the request is larger than any can be"),
        ("--node", "other", 0, "hal: there is no such event"),
    ):
        command = [*HAL, "events", option, value]
        done = subprocess.run(command, env=machine_env, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert said in done.stderr and done.returncode == code
