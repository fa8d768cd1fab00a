"""The daemons' log: lines for people and programs, levels, and readers that do not read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest

from hal.scheduler import wire
from hal.scheduler.answers import error
from hal.scheduler.logs import Log
from hal.scheduler.monitor import Monitor
from hal.scheduler.watch import Happening


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def said(pipe: tuple[int, int]) -> list[str]:
    os.set_blocking(pipe[0], False)
    return os.read(pipe[0], 1 << 20).decode().splitlines()


def test_for_people(pipe: tuple[int, int]) -> None:
    log = Log(to=pipe[1])
    log("serving")
    log.add("warning", "node lost: red", reason="it is silent", devices=("a", "b"), name="", cause=None)
    log.add("debug", "not told")
    log.add("info", "two\nlines")
    log.flush()
    assert said(pipe) == [
        "hal: serving",
        "hal: warning: node lost: red (reason='it is silent' devices=a,b)",
        "hal: two lines",
    ]


def test_for_programs(pipe: tuple[int, int]) -> None:
    log = Log(json=True, level="debug", to=pipe[1])
    log.add("debug", 'a "line"\n', request="x", name="")
    log.flush()
    (line,) = [json.loads(text) for text in said(pipe)]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "debug", "message": 'a "line"\n', "request": "x"}


def test_for_systemd(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    log = Log(to=pipe[1])
    log.add("error", "bad")
    log("good")
    assert said(pipe) == ["<3>hal: error: bad", "<6>hal: good"]


def test_a_reader_that_does_not_read_keeps_nobody_waiting(pipe: tuple[int, int]) -> None:
    log = Log(to=pipe[1])
    for number in range(40_000):
        log.add("info", f"{number} {'x' * 100}")
        if number % 100 == 0:
            log.flush()
    assert log.lost > 10_000
    lines: list[str] = []
    rest = ""
    os.set_blocking(pipe[0], False)
    while True:
        try:
            rest += os.read(pipe[0], 1 << 16).decode()
        except BlockingIOError:
            break
        log.flush()
    lines = rest.splitlines()
    numbers = [int(found[1]) for line in lines if (found := re.match(r"hal: (\d+) x{100}$", line))]
    assert numbers == list(range(len(numbers)))  # whole lines, in order, of the first that were told
    gaps = [int(found[1]) for line in lines if (found := re.match(r"hal: warning: (\d+) lines", line))]
    assert (sum(gaps) + len(numbers), log.lost) == (40_000, 0)


def test_a_closed_log_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = Log(to=writing)
    log("nobody")
    log("listens")
    os.close(writing)


def test_what_follows_from_a_request_has_its_id(pipe: tuple[int, int]) -> None:
    monitor = Monitor(Log(json=True, level="debug", to=pipe[1]))
    request = wire.Request(wire.VERSION, "r" * 100, "acquire")
    monitor.begin(request.id, "uid:7")
    monitor.happened(Happening(7, 0, "granted", lease="ab", queue="default", epoch=1))
    monitor.answered(None, request, error(request.id, "limit", "too much"))
    monitor.happened(Happening(8, 0, "ended", lease="ab"))
    monitor.flush()
    granted, answered, ended = [json.loads(text) for text in said(pipe)]
    assert (granted["message"], granted["request"]) == ("granted: ab", "r" * 64)
    assert (answered["message"], answered["request"]) == ("acquire limit", "r" * 64)
    assert answered["reason"] == "too much"
    assert (ended["message"], "request" in ended) == ("ended: ab", False)


def test_names_that_are_made_up_do_not_grow_what_is_counted() -> None:
    monitor = Monitor()
    for number in range(100):
        request = wire.Request(wire.VERSION, "1", f"op-{number}")
        monitor.answered(None, request, error("1", "unknown_op", "there is none"))
    assert dict(monitor.requests) == {("", "unknown_op"): 100}


def test_leases_are_told_at_debug_and_what_takes_them_away_at_info(pipe: tuple[int, int]) -> None:
    monitor = Monitor(Log(to=pipe[1]))
    monitor.happened(Happening(1, 0, "granted", lease="ab"))
    monitor.happened(Happening(2, 0, "ending", lease="ab", cause="released"))
    monitor.happened(Happening(3, 0, "ending", lease="cd", cause="drained"))
    monitor.happened(Happening(4, 0, "node_lost", node="red"))
    monitor.flush()
    assert said(pipe) == [
        "hal: ending: cd (cause=drained event=3)",
        "hal: warning: node lost: red (event=4)",
    ]
