"""What a daemon writes down: once for all that has come together, and under load, with kills and restarts,
so that it replays to the very rows that it left."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
from pathlib import Path

import msgpack
import zmq

from hal.backend import HalError
from hal.scheduler.client import Client
from tests.conftest import HAL
from tests.integration.support import Env, kill, places, serving, start


def load(env: Env, chance: random.Random, steps: int) -> None:
    """Takes, waits, renews and gives back. What it still has in the end is left."""
    with Client(places(env)) as client:
        mine: list[str] = []
        for _ in range(steps):
            try:
                if chance.random() < 0.6 or len(mine) < 2:
                    one = {"memory_bytes": chance.choice([None, 1 << 30, 20 << 30])}
                    request = {"members": [{"alternatives": [one]}], "wait": chance.random() < 0.5}
                    body = client.call(
                        "acquire", key=secrets.token_hex(8), request=request | {"ttl_ms": 60_000}
                    )
                    mine.append(body["lease"]["id"] if "lease" in body else body["waiting"]["id"])
                elif chance.random() < 0.3:
                    client.call("renew", lease=chance.choice(mine))
                else:
                    client.call("release", lease=mine.pop(chance.randrange(1, len(mine))))
            except HalError:
                continue  # no room, or gone


def test_a_journal_replays_to_the_rows_of_the_daemon(machine_env: Env, tmp_path: Path) -> None:
    chance = random.Random(7)
    for number in range(4):
        with serving(machine_env) as daemon:
            load(machine_env, chance, 40)
            if number % 2:
                kill(daemon.pid)
    events = tmp_path / "events.jsonl"

    def hal(*arguments: str | Path) -> str:
        done = start(machine_env, *HAL, *arguments)
        said, wrong = done.communicate(timeout=60)
        assert done.returncode == 0, wrong
        return said

    checked = json.loads(hal("admin", "check", "--json"))
    assert checked["events"] > 100
    assert checked["starts"] == 4
    hal("admin", "journal", "--output", events)
    told = hal("simulate", "replay", events, "--json")
    assert hal("simulate", "replay", events, "--json") == told
    found = json.loads(told)
    assert found["exact"] is True
    assert found["events"] == checked["events"]
    assert found["requests"] > 50
    other = json.loads(hal("simulate", "replay", events, "--policy", "random", "--json"))
    assert (other["exact"], other["requests"]) == (None, found["requests"])


def test_a_damaged_store_is_refused_until_a_backup_is_restored(machine_env: Env, tmp_path: Path) -> None:
    saved, store = tmp_path / "saved.db", places(machine_env).store

    def hal(*arguments: str | Path) -> tuple[int, str]:
        done = start(machine_env, *HAL, *arguments)
        said, wrong = done.communicate(timeout=60)
        return done.returncode, said + wrong

    assert hal("admin", "check") == (3, f"hal: there is no lease store {store}\n")
    state = machine_env.pop("HAL_STATE_DIR")  # as an operator forgets it
    assert "started with HAL_STATE_DIR, it is named here, too" in hal("admin", "check")[1]
    machine_env["HAL_STATE_DIR"] = state
    with serving(machine_env), Client(places(machine_env)) as client:
        request = {"members": [{"alternatives": [{"memory_bytes": 1 << 30}]}], "ttl_ms": 60_000}
        kept = client.call("acquire", key="kept", request=request)["lease"]["id"]
        term = client.call("hello")["term"]
        assert hal("admin", "backup", saved) == (0, f"hal: wrote {saved}\n")
        code, said = hal("admin", "backup", saved, "--json")
        backed = json.loads(said)
        assert (code, backed["schema"], backed["path"]) == (0, "hal.store/1", str(saved))
        assert (backed["leases"], backed["term"]) == (1, term)
        assert hal("admin", "backup", "/") == (6, "hal: / is a directory: name the file in it to write to\n")
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        assert hal("admin", "backup", pipe)[0] == 6
        assert pipe.is_fifo()
        later = client.call("acquire", key="later", request=request)["lease"]["id"]
        code, said = hal("admin", "restore", saved)
        assert (code, said.count("\n")) == (6, 1)
        assert "a scheduler already serves" in said
    whole = store.read_bytes()
    store.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    for command in (
        ("serve",),
        ("admin", "check"),
        ("admin", "backup", tmp_path / "no.db"),
        ("admin", "journal"),
    ):
        code, said = hal(*command)
        assert code == 6, said
        assert said.startswith(f"hal: the lease store {store} is damaged: ")
        assert "'hal admin restore'" in said
    assert not (tmp_path / "no.db").exists()
    code, said = hal("admin", "restore", saved)
    assert code == 0
    assert f"restored {store}; what was there is kept as {store}." in said
    code, said = hal("admin", "restore", saved, "--json")
    back = json.loads(said)
    assert (code, back["schema"], back["path"]) == (0, "hal.store/1", str(store))
    assert (back["leases"], back["term"]) == (1, term + 1_000_000)
    assert Path(back["kept"]).is_file()
    with serving(machine_env), Client(places(machine_env)) as client:
        assert client.call("renew", lease=kept)["lease"]["id"] == kept
        assert [one["id"] for one in client.call("list")["leases"]] == [kept]
        assert client.call("hello")["term"] == term + 1_000_001
        assert later not in str(client.call("list"))
        client.call("release", lease=kept)
        assert hal("admin", "check")[0] == 0


def test_all_that_has_come_together_is_made_durable_by_one_sync(machine_env: Env) -> None:
    with serving(machine_env) as daemon, Client(places(machine_env)) as client, zmq.Context() as context:
        commits = client.call("status")["commits"]["counts"]
        dealer = context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        dealer.connect(places(machine_env).address)
        body = {"memory_bytes": 1 << 30, "ttl_seconds": 60.0}
        dealer.send(msgpack.packb({"v": 1, "id": "first", "op": "hello", "body": {}}))
        assert dealer.poll(10_000) and dealer.recv()
        os.kill(daemon.pid, signal.SIGSTOP)
        for number in range(32):
            asked = {"v": 1, "id": str(number), "op": "acquire", "body": body | {"key": f"k{number}"}}
            dealer.send(msgpack.packb(asked))
        time.sleep(0.1)  # until they are in the daemon's socket, which cannot be seen from here
        os.kill(daemon.pid, signal.SIGCONT)
        for _ in range(32):
            assert dealer.poll(10_000) and msgpack.unpackb(dealer.recv())["ok"]
        dealer.close()
        after = client.call("status")["commits"]["counts"]
        assert 1 <= sum(after) - sum(commits) <= 16  # those that came a moment later have their own
