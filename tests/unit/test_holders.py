"""Who holds or waits, and is no more: seen of processes here, and guessed from silence of those elsewhere."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from unittest import mock

import pytest
import zmq

from hal.scheduler import holders as module
from hal.scheduler.core.decisions import Withdrawn
from hal.scheduler.core.events import HolderGone, Submit
from hal.scheduler.core.request import Alternative, Member, Request
from hal.scheduler.core.state import State
from hal.scheduler.holders import SILENT, Holders


@pytest.fixture
def holders() -> Iterator[Holders]:
    one = Holders(zmq.Poller())
    yield one
    one.close()


def at(seconds: float) -> mock._patch[mock.Mock]:
    return mock.patch.object(module.time, "monotonic", lambda: seconds)


def test_a_process_here_is_gone_when_it_has_died(holders: Holders) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        assert holders.watch("a", process.pid)
        process.kill()
        process.wait()
        time.sleep(0.01)
        assert holders.gone({holders._epoll.fileno()}) == ["a"]
    assert not holders.watch("b", process.pid)


def test_of_those_elsewhere_it_is_known_when_they_were_heard(holders: Holders) -> None:
    with at(100):
        assert holders.watch("a", -1)
        assert holders.watch("b", -1)
        assert holders.watch("here", os.getpid())
        assert holders.watch("nobody", 0)
    with at(150):
        assert holders.watch("b", -1)
        assert holders.watch("here", -1)  # somebody else asks for it from elsewhere: its holder is here
    assert holders.silent(100 + SILENT - 0.5) == []
    assert holders.silent(100 + SILENT) == []  # it was looked at a moment ago
    assert holders.silent(101 + SILENT) == ["a"]
    assert sorted(holders.silent(1000)) == ["a", "b"]
    holders.unwatch("a")
    assert holders.silent(1001) == ["b"]


def test_who_waits_and_is_gone_waits_no_longer_and_the_reason_is_said() -> None:
    state = State()
    request = Request((Member((Alternative("", 1),)),), wait=True)
    state.world.counters.lost["n"] = 10**9  # who knows what comes back: it may wait
    state.apply(Submit(request, "a", "k", 1, -1), 0)
    (decision,) = state.apply(HolderGone("a", "nothing was heard"), 1)
    assert isinstance(decision, Withdrawn)
    assert decision.reason == "nothing was heard"
