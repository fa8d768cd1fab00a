"""What one client may ask at a time, what is noted of it, and what its jobs inherit."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import cast

import pytest
import zmq

from hal.scheduler.answers import Address, Peer, Refused
from hal.scheduler.security import limits as module
from hal.scheduler.security.audit import Audit
from hal.scheduler.security.environment import checked_environment, job_environment
from hal.scheduler.security.limits import Allowance, Limits
from hal.scheduler.security.roles import Role

NOWHERE = Address(cast("zmq.Socket[bytes]", None), b"")
ALICE = Peer(NOWHERE, "alice", 1 << 32, -1, Role.USER, "10.0.0.7")
BOB = Peer(NOWHERE, "uid:1000", 1000, 77, Role.USER)
ADMIN = Peer(NOWHERE, "uid:0", 0, 78, Role.ADMIN)
NODE = Peer(NOWHERE, "node7", 1 << 33, -1, Role.AGENT)


@pytest.fixture
def limits() -> Limits:
    return Limits(Allowance(requests_per_second=10, burst=3, outstanding=2, request_bytes=1000))


def admitted(limits: Limits, peer: Peer, now: float, times: int = 100) -> int:
    for number in range(times):
        try:
            limits.admit(peer, 10, now)
        except Refused as refused:
            assert refused.code == "busy"
            return number
    return times


def test_a_burst_and_then_so_many_a_second(limits: Limits) -> None:
    assert admitted(limits, ALICE, 0.0) == 3
    assert admitted(limits, ALICE, 0.05) == 0
    assert admitted(limits, ALICE, 0.1) == 1
    assert admitted(limits, ALICE, 1000.0) == 3
    assert admitted(limits, ALICE, 999.0) == 0  # a clock that goes back gives nothing


def test_a_refusal_says_when_to_come_back(limits: Limits) -> None:
    admitted(limits, ALICE, 0.0)
    with pytest.raises(Refused, match=r"alice asks more than 10 times a second; try again in 0.100 s"):
        limits.admit(ALICE, 10, 0.0)


def test_one_clients_haste_is_not_anothers(limits: Limits) -> None:
    assert admitted(limits, ALICE, 0.0) == 3
    assert admitted(limits, BOB, 0.0) == 3


def test_admins_and_agents_are_bounded_in_size_only(limits: Limits) -> None:
    for peer in (ADMIN, NODE):
        assert admitted(limits, peer, 0.0) == 100
        for _ in range(10):
            limits.begin(peer, 0.0)
        with pytest.raises(Refused) as refused:
            limits.admit(peer, 1001, 0.0)
        assert refused.value.code == "malformed"


def test_answers_outstanding(limits: Limits) -> None:
    limits.begin(ALICE, 0.0)
    limits.begin(ALICE, 0.0)
    limits.begin(BOB, 0.0)
    with pytest.raises(Refused, match="waits for 2 answers already") as refused:
        limits.begin(ALICE, 0.0)
    assert refused.value.code == "busy"
    limits.end(ALICE)
    limits.begin(ALICE, 0.0)
    for _ in range(9):
        limits.end(ALICE)  # never less than none
    limits.begin(ALICE, 0.0)
    limits.begin(ALICE, 0.0)
    with pytest.raises(Refused):
        limits.begin(ALICE, 0.0)


def test_a_batch_is_paid_for_with_time(limits: Limits) -> None:
    limits.admit(ALICE, 10, 0.0, count=23)
    assert admitted(limits, ALICE, 2.0) == 0
    assert admitted(limits, ALICE, 2.1) == 1


def test_what_takes_long_is_paid_for_by_who_asked(limits: Limits) -> None:
    limits.admit(ALICE, 10, 0.0)
    limits.charge(ALICE, 0.03, 0.0)  # three requests of ten a second
    assert limits.owes(ALICE, 0.0) == pytest.approx(0.1)
    assert (admitted(limits, ALICE, 0.1), admitted(limits, ALICE, 0.2)) == (0, 1)
    limits.charge(ALICE, 0.02, 0.2)
    with pytest.raises(Refused, match=r"alice has asked for much at once, .*; try again in 0.300 s"):
        limits.admit(ALICE, 10, 0.2)
    limits.charge(ALICE, 3600.0, 0.2)  # it was the machine that slept
    assert limits.owes(ALICE, 0.2) == pytest.approx(10.2)
    limits.charge(ADMIN, 3600.0, 0.2)
    assert (admitted(limits, ADMIN, 0.2), limits.owes(ADMIN, 0.2), limits.owes(BOB, 0.2)) == (100, 0.0, 0.0)


def test_new_limits_count_at_once(limits: Limits) -> None:
    admitted(limits, ALICE, 0.0)
    limits.allowance = Allowance(1000, 50, 1, 1000)
    assert admitted(limits, ALICE, 1.0) == 50


def test_a_crowd_of_clients_is_forgotten_but_not_what_they_wait_for(
    limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_CLIENTS", 10)
    limits.begin(ALICE, 0.0)
    for number in range(1000):
        limits.admit(Peer(NOWHERE, f"uid:{number}", number, 1, Role.USER), 10, 0.0)
    assert len(limits._clients) <= 11
    limits.begin(ALICE, 0.0)
    with pytest.raises(Refused):
        limits.begin(ALICE, 0.0)


# ---- audit -----------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_who_did_what(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.note(BOB, "acquire", "ok", lease="ab12", queue=None)
    audit.note(ALICE, "set_queue", "denied")
    audit.note(None, "reload", "ok", changed=["limits.burst"])
    assert not audit.path.exists()
    audit.flush()
    first, second, third = lines(audit.path)
    assert str(first.pop("time")).endswith("Z")
    assert first == {
        "who": "uid:1000", "uid": 1000, "role": "user", "pid": 77, "op": "acquire", "outcome": "ok",
        "lease": "ab12",
    }  # fmt: skip
    assert (second["who"], second["from"], second["outcome"]) == ("alice", "10.0.0.7", "denied")
    assert (third["who"], third["changed"]) == ("scheduler", ["limits.burst"])
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600


def test_what_a_client_writes_cannot_forge_a_line(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.note(ALICE, 'x"}\n{"who": "root"' + "x" * 1000, "unknown_op", name="\n\0é" * 1000)
    audit.flush()
    (line,) = lines(audit.path)
    assert line["who"] == "alice"
    assert audit.path.stat().st_size < 2000


def test_files_are_put_aside_and_only_so_many_are_kept(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log", largest=1000, kept=2)
    for number in range(100):
        audit.note(ADMIN, "acquire", "ok", number=number)
        audit.flush()
    audit.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.log", "audit.log.1", "audit.log.2"]
    kept = [line["number"] for end in (".2", ".1", "") for line in lines(tmp_path / f"audit.log{end}")]
    assert kept == list(range(100))[-len(kept) :]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_a_successor_goes_on_with_the_file(tmp_path: Path) -> None:
    for number in range(3):
        audit = Audit(tmp_path / "audit.log")
        audit.note(ADMIN, "release", "ok", number=number)
        audit.close()
    assert [line["number"] for line in lines(tmp_path / "audit.log")] == [0, 1, 2]


def test_a_full_disk_stops_nobody_and_is_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(tmp_path / "audit.log")
    write = os.write

    def half(file: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(28, "No space left on device")
        return write(file, content[: len(content) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        for _ in range(3):
            audit.note(ADMIN, "acquire", "ok")
            audit.flush()
    assert audit.lost == 3
    assert audit.complaint is not None
    assert "No space left" in audit.complaint
    assert audit.path.read_text() == ""  # no half lines
    audit.note(ADMIN, "release", "ok")
    audit.flush()
    gap, line = lines(audit.path)
    assert (gap["outcome"], gap["lines"], line["op"]) == ("lost", 3, "release")
    assert (audit.lost, audit.complaint) == (0, None)


def test_a_log_that_was_moved_away_begins_anew(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.note(ADMIN, "acquire", "ok")
    audit.flush()
    audit.path.rename(tmp_path / "old")
    audit.reopen()
    audit.note(ADMIN, "release", "ok")
    audit.close()
    assert [line["op"] for line in lines(audit.path)] == ["release"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "other")
    audit = Audit(tmp_path / "audit.log")
    audit.note(ADMIN, "acquire", "ok")
    audit.flush()
    assert audit.complaint is not None
    assert not (tmp_path / "other").exists()


# ---- the environment of jobs -----------------------------------------------------------------

AGENT = {
    "PATH": "/bin", "LC_ALL": "C", "HAL_KEY": "/etc/hal/node.key", "NOTIFY_SOCKET": "/run/n",
    "LD_PRELOAD": "x.so", "LD_LIBRARY_PATH": "/opt", "AWS_SECRET_ACCESS_KEY": "s", "LISTEN_FDS": "1",
}  # fmt: skip


def test_a_job_inherits_little() -> None:
    assert job_environment(AGENT) == {"PATH": "/bin", "LC_ALL": "C"}
    assert job_environment(AGENT, []) == {}


def test_no_pattern_lets_code_or_the_agents_own_through() -> None:
    assert job_environment(AGENT, ["*"]) == {"PATH": "/bin", "LC_ALL": "C", "AWS_SECRET_ACCESS_KEY": "s"}
    assert job_environment(AGENT, ["LD_*"]) == {}
    assert job_environment(AGENT, ["LD_LIBRARY_PATH"]) == {"LD_LIBRARY_PATH": "/opt"}
    assert job_environment(AGENT, ["HAL_KEY", "NOTIFY_SOCKET"]) == {}


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ({"A=B": "x"}, "is no name"),
        ({"": "x"}, "is no name"),
        ({"A\nB": "x"}, "is no name"),
        ({"A": "x\0y"}, "NUL"),
        ({"HAL_SLICE": "x"}, "set by hal itself"),
        ({"A": "x" * 50_000}, "at most 49152 bytes"),
        ({f"A{n}": "" for n in range(2000)}, "at most 1024 variables"),
    ],
)
def test_what_a_job_cannot_bring(brought: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_environment(brought)


def test_what_a_job_brings() -> None:
    assert checked_environment({"LD_PRELOAD": "mine.so", "x": "é\udcff"}) == {
        "LD_PRELOAD": "mine.so",
        "x": "é\udcff",
    }
