"""A disk that is full, or cannot be written: nothing is promised, the daemon stays up, and goes on later."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hal.backend import HalError
from hal.scheduler.client import Client
from hal.scheduler.core.records import Row
from hal.scheduler.pages import Pages
from hal.scheduler.store import NotDurable, Store
from tests.conftest import HAL, wait_until
from tests.integration.support import Env, kill, leases, places, start

ONE = {"members": [{"alternatives": [{"memory_bytes": 1 << 30}]}], "ttl_ms": 60_000}


# ---- the store alone --------------------------------------------------------------------------


def page_limit(store: Store, pages: int) -> None:
    store._db.execute(f"PRAGMA max_page_count={pages}")


def test_what_could_not_be_written_is_written_later_all_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "leases.db")
    said: list[Row] = [("lease", "said", b"x" * 100)]
    store.put(said)
    store.commit()
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    page_limit(store, pages)
    unsaid: list[Row] = [("lease", f"{number:03}", b"y" * 500) for number in range(100)]
    for row in unsaid:
        store.put([row])
        try:
            store.commit()
        except NotDurable as wrong:
            assert str(wrong).endswith("leases.db cannot be written: database or disk is full")
    assert store.behind
    page_limit(store, 1 << 30)
    store.put([("lease", "said", None)])
    wait_until(lambda: committed(store), what="the next try")
    assert not store.behind
    store.close()
    again = Store(tmp_path / "leases.db")
    assert again.rows() == unsaid
    again.close()


def test_what_came_and_went_meanwhile_is_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "leases.db")
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    page_limit(store, pages)
    store.put([("lease", "brief", b"y" * 100_000)])
    assert not committed(store)
    store.put([("lease", "brief", None)])
    assert not committed(store)
    page_limit(store, 1 << 30)
    wait_until(lambda: committed(store), what="the next try")
    store.put([("lease", "next", b"x")])
    store.commit()
    store.close()
    again = Store(tmp_path / "leases.db")
    assert again.rows() == [("lease", "next", b"x")]
    again.close()


def committed(store: Store) -> bool:
    try:
        store.commit()
    except NotDurable:
        return False
    return True


def test_a_kill_while_it_is_full_leaves_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    child = os.fork()
    if child == 0:
        store = Store(path)
        store.put([("lease", "said", b"x")])
        store.commit()
        page_limit(store, 1)
        store.put([("lease", "unsaid", b"y" * 100_000), ("lease", "said", None)])
        try:
            store.commit()
        except NotDurable:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    again = Store(path)
    assert again.rows() == [("lease", "said", b"x")]
    again.close()


# ---- a daemon ---------------------------------------------------------------------------------

# As `hal serve`, whose store's commits fail while there is a file "full" in the runtime directory.
BROKEN = """
import os, sqlite3, sys
from hal.cli import main

full = os.path.join(os.environ["HAL_RUNTIME_DIR"], "full")
connect = sqlite3.connect

class Connection(sqlite3.Connection):
    def execute(self, sql, *parameters):
        if sql == "COMMIT" and os.path.exists(full):
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, *parameters)

sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Connection)
sys.exit(main(["serve"]))
"""


@contextmanager
def breakable(env: Env) -> Iterator[Any]:
    daemon = start(env, HAL[0], "-c", BROKEN)
    assert daemon.stderr is not None
    assert daemon.stderr.readline().startswith("hal: serving leases at ")
    try:
        yield daemon
    finally:
        daemon.kill()
        daemon.communicate()


def full(env: Env) -> Path:
    return Path(env["HAL_RUNTIME_DIR"]) / "full"


def acquire(client: Client, key: str = "") -> str:
    return str(client.call("acquire", key=key or secrets.token_hex(8), request=ONE)["lease"]["id"])


def test_nothing_is_promised_while_nothing_can_be_written(machine_env: Env) -> None:
    with breakable(machine_env) as daemon, Client(places(machine_env)) as client:
        kept = acquire(client)
        given_back = acquire(client)
        full(machine_env).touch()
        with pytest.raises(HalError, match=r"disk is full; ask again with the same key"):
            acquire(client, "asked while it was full")
        assert "disk is full" in daemon.stderr.readline()
        # From here on nothing is even tried.
        for op, body in (
            ("acquire", {"key": "b", "request": ONE}),
            ("release", {"lease": given_back}),
            ("list", {}),
        ):
            with pytest.raises(HalError, match=r"disk is full; nothing was done"):
                client.call(op, **body)
        # And it can be seen.
        for op in ("hello", "status"):
            assert "disk is full" in client.call(op)["trouble"]
        said = subprocess.run([*HAL, "status"], env=machine_env, capture_output=True, text=True, check=True)
        assert "disk is full" in said.stdout
        with Pages("127.0.0.1:0", places(machine_env)) as pages:
            assert pages.health()["status"] == "degraded"
            assert "disk is full" in pages.health()["reason"]
            assert b"hal_scheduler_store_writable 0" in pages.metrics()
        # Who holds something goes on.
        assert client.call("renew", lease=kept)["lease"]["id"] == kept
        assert client.call("hello")["pid"] == daemon.pid
        full(machine_env).unlink()
        assert "can be written again" in daemon.stderr.readline()
        assert client.call("hello")["trouble"] is None
        once = acquire(client, "asked while it was full")
        assert acquire(client, "asked while it was full") == once
        client.call("release", lease=given_back)
        wait_until(lambda: {one["id"] for one in leases(machine_env)} == {kept, once})
        kill(daemon.pid)
    with breakable(machine_env):
        assert {one["id"] for one in leases(machine_env)} == {kept, once}


def test_a_kill_while_it_is_full_keeps_what_was_promised(machine_env: Env) -> None:
    with breakable(machine_env) as daemon, Client(places(machine_env)) as client:
        kept = acquire(client)
        full(machine_env).touch()
        with pytest.raises(HalError, match="disk is full"):
            while True:
                acquire(client)
        kill(daemon.pid)
        full(machine_env).unlink()
    with breakable(machine_env), Client(places(machine_env)) as client:
        assert client.call("renew", lease=kept)["lease"]["id"] == kept
        assert kept in {one["id"] for one in leases(machine_env)}


def test_no_job_begins_before_it_is_written_down(machine_env: Env, tmp_path: Path) -> None:
    """Else it would run twice: a successor knows nothing of it, and it is asked for again."""
    job = {"key": "k", "job": {"command": ["/bin/sh", "-c", f"echo once >> {tmp_path}/begun"]}}
    with breakable(machine_env) as daemon, Client(places(machine_env)) as client:
        full(machine_env).touch()
        with pytest.raises(HalError, match="disk is full"):
            client.call("submit", **job)
        time.sleep(1.0)
        kill(daemon.pid)
    full(machine_env).unlink()
    with breakable(machine_env), Client(places(machine_env)) as client:
        (id,) = client.call("submit", **job)["jobs"]
        wait_until(lambda: client.call("job", job=id)["job"]["state"] == "completed")
        assert (tmp_path / "begun").read_text() == "once\n"


def test_what_could_not_be_written_is_not_noted_as_done(machine_env: Env) -> None:
    runtime = Path(machine_env["HAL_RUNTIME_DIR"])
    runtime.mkdir(mode=0o700)
    (runtime / "hal.toml").write_text('[security]\naudit = "audit.log"\n')

    def noted() -> list[tuple[str, str, bool]]:
        rows = [json.loads(row) for row in (runtime / "audit.log").read_text().splitlines()]
        return [(row["op"], row["outcome"], row.get("durable", True)) for row in rows]

    with breakable(machine_env), Client(places(machine_env)) as client:
        kept = acquire(client)
        full(machine_env).touch()
        with pytest.raises(HalError, match="disk is full"):
            client.call("release", lease=kept)
        with pytest.raises(HalError, match="disk is full; nothing was done"):
            acquire(client)
        full(machine_env).unlink()
        wait_until(lambda: client.call("hello")["trouble"] is None)
    assert noted() == [("acquire", "ok", True), ("release", "failed", False), ("acquire", "failed", True)]


def test_a_node_s_beats_are_answered_and_what_ended_there_is_to_be_told_again(machine_env: Env) -> None:
    """An agent that hears nothing, or only refusals, would stop its slices after a while."""
    facts = {"id": "far", "cpu_milli": 1000, "ram_bytes": 1 << 30}
    joining = {"node": "far", "boot": "b", "term": 0, "version": "1", "facts": facts, "bound": {}}
    beat = {"node": "far", "facts": None, "ended": [["gone", 1]], "use": {}}
    with breakable(machine_env), Client(places(machine_env)) as client:
        beat["term"] = client.call("join", **joining, sent=1.0)["term"]
        assert client.call("beat", **beat) == {"durable": True}
        full(machine_env).touch()
        with pytest.raises(HalError, match="disk is full"):
            acquire(client)
        assert client.call("beat", **beat) == {"durable": False}
        with pytest.raises(HalError, match="disk is full; nothing was done"):
            client.call("join", **joining, sent=2.0)
        full(machine_env).unlink()
        wait_until(lambda: client.call("beat", **beat) == {"durable": True})


def test_a_daemon_whose_file_may_not_grow(machine_env: Env) -> None:
    """The kernel says no, at whatever write it comes to; SQLite and the file stay sound."""
    limited = ["prlimit", f"--fsize={3 << 20}"]
    daemon = start(machine_env, *limited, *HAL, "serve")
    assert daemon.stderr is not None
    assert daemon.stderr.readline().startswith("hal: serving leases at ")
    with Client(places(machine_env)) as client:
        said: list[str] = []
        with pytest.raises(HalError, match="cannot be written"):
            for _ in range(2000):
                said.append(acquire(client))
                if len(said) > 3:
                    client.call("release", lease=said[0])
                    said.pop(0)
        assert client.call("renew", lease=said[-1])["lease"]["id"] == said[-1]
        kill(daemon.pid)
    daemon.communicate()
    with breakable(machine_env), Client(places(machine_env)) as client:
        for id in said[1:]:
            assert client.call("renew", lease=id)["lease"]["id"] == id
