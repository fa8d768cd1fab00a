"""What the scheduler says at /metrics, read by Prometheus' own client; and the pages when nobody answers."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hal.backend import StateError
from hal.scheduler.client import Client
from hal.scheduler.metrics import exposition
from hal.scheduler.monitor import BOUNDS
from hal.scheduler.pages import Pages
from hal.scheduler.places import Places
from hal.scheduler.sections import http_address

PAGE = Path(__file__).parents[2] / "docs/operations.md"


def a_queue(name: str, limit: int | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "waiting": 1,
        "used": {"devices_milli": 1500, "memory_bytes": 7},
        "quota": {"devices_milli": 2000, "memory_bytes": None},
        "limit": {"devices_milli": limit, "memory_bytes": None},
    }


STATUS: dict[str, Any] = {
    "version": "1.2",
    "started_ms": 2000,
    "term": 4,
    "cpu_seconds": 0.25,
    "leases": {"active": 3, "ending": 1},
    "waiting": 2,
    "longest_wait_seconds": 9.5,
    "nodes": {"up": 2, "lost": 1},
    "devices": {"total": 8, "usable": 7, "lent": 3, "memory_bytes": 800, "lent_bytes": 90},
    "queues": [a_queue("default"), a_queue('odd "one"\\\n', limit=4000)],
    "requests": [["", "malformed", 5], ["acquire", "ok", 6]],
    "events": {"granted": 4},
    "log_lines_lost": 0,
    "commits": {"bounds": list(BOUNDS), "counts": [1, 2, *[0] * (len(BOUNDS) - 2), 3], "seconds": 1.5},
}
NODES = [
    {
        "id": "green",
        "state": "cordoned",
        "last_beat_seconds": 0.5,
        "leases": 2,
        "devices": [
            {
                "id": "green/a",
                "vendor": "v",
                "memory_bytes": 40,
                "lent_milli": 300,
                "lent_bytes": 20,
                "failed": None,
            },
            {
                "id": "green/b",
                "vendor": "v",
                "memory_bytes": 40,
                "lent_milli": 700,
                "lent_bytes": 0,
                "failed": "broken",
            },
        ],
    },
    {"id": "red", "state": "lost", "last_beat_seconds": 60.0, "leases": 0, "devices": []},
]


def read(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        assert family.documentation and family.type in ("gauge", "counter", "histogram"), family
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_prometheus_reads_it() -> None:
    said = read(exposition(STATUS, NODES))
    assert said["hal_leases", (("state", "active"),)] == 3
    assert said["hal_leases", (("state", "suspended"),)] == 0  # it does not come and go
    assert said["hal_nodes", (("state", "lost"),)] == 1
    assert said["hal_node_up", (("node", "green"),)] == 1
    assert said["hal_node_up", (("node", "red"),)] == 0
    for device, ratio in (("green/a", 0.5), ("green/b", 0.7)):  # of memory and time, the greater
        assert (
            said["hal_device_lent_ratio", (("device", device), ("node", "green"), ("vendor", "v"))] == ratio
        )
    assert said["hal_device_failed", (("device", "green/b"), ("node", "green"), ("vendor", "v"))] == 1
    assert said["hal_queue_limit_devices", (("queue", 'odd "one"\\\n'),)] == 4
    assert ("hal_queue_limit_devices", (("queue", "default"),)) not in said  # it has none
    assert said["hal_scheduler_requests_total", (("op", "acquire"), ("outcome", "ok"))] == 6
    buckets = [said["hal_scheduler_commit_seconds_bucket", (("le", str(bound)),)] for bound in BOUNDS]
    assert buckets == [1, *[3] * (len(BOUNDS) - 1)]
    assert said["hal_scheduler_commit_seconds_bucket", (("le", "+Inf"),)] == 6
    assert said["hal_scheduler_commit_seconds_count", ()] == 6


def test_what_is_not_known_is_left_out() -> None:
    said = read(exposition(STATUS | {"waiting": 0, "longest_wait_seconds": None, "queues": []}, []))
    assert said["hal_waiting_requests", ()] == 0
    assert not [name for name, _ in said if name in ("hal_longest_wait_seconds", "hal_queue_devices")]


def test_the_page_for_operators_has_every_metric_and_no_other() -> None:
    written = set(re.findall(r"`(hal_[a-z_]+)", PAGE.read_text()))
    assert written == set(
        re.findall(r"^# TYPE (\S+)", exposition(STATUS, NODES).decode(), flags=re.MULTILINE)
    )


@pytest.mark.parametrize("text", ["7422", ":7422", "host:", "host:99999", "a b:1", "http://a:1", "[::1]"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write HOST:PORT"):
        http_address(text)


def test_addresses() -> None:
    assert http_address("0.0.0.0:80") == ("0.0.0.0", 80)
    assert http_address("[::1]:80") == ("::1", 80)


@pytest.fixture
def pages(tmp_path: Path) -> Any:
    with Pages("127.0.0.1:0", Places(tmp_path / "run")) as one:
        yield one


def get(pages: Pages, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{pages.server_address[1]}{path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_a_scheduler_that_does_not_answer_is_not_well(pages: Pages, path: str) -> None:
    code, body = get(pages, path)
    assert (code, json.loads(body)["status"]) == (503, "failed")
    assert "no scheduler answers" in json.loads(body)["reason"]


def test_there_are_two_pages(pages: Pages) -> None:
    assert get(pages, "/../etc/passwd")[0] == 404
    assert get(pages, "/health?verbose")[0] == 503


def test_who_says_nothing_takes_no_room_for_ever(pages: Pages) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(pages.server_address[:2])) for _ in range(40)]
        closed = 0
        for one in silent:
            one.settimeout(30)
            closed += one.recv(1) == b""
        assert closed == 40  # those beyond the bound at once, the others after their time
    assert get(pages, "/health")[0] == 503


def test_who_asks_slowly_keeps_nobody_else_out(pages: Pages) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(pages.server_address[:2])) for _ in range(8)]
        for _ in range(10):
            for one in slow:
                with contextlib.suppress(OSError):
                    one.sendall(b"G")
            assert get(pages, "/health")[0] == 503


def test_metrics_are_made_once_for_all_who_read_them(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def call(_: Client, op: str, **_body: Any) -> dict[str, Any]:
        asked.append(op)
        return STATUS if op == "status" else {"nodes": NODES, "next": None}

    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr("hal.scheduler.pages._FRESH", 600.0)
    assert len({get(pages, "/metrics")[1] for _ in range(5)}) == 1
    assert asked == ["status", "nodes"]


def test_an_address_in_use_is_one_sentence(pages: Pages, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use"):
        Pages(f"127.0.0.1:{pages.server_address[1]}", Places(tmp_path / "other"))
