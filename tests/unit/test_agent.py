"""Whom an agent obeys, and what the scheduler makes of late messages and of other versions."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from hal.backend import StateError
from hal.enforce.ledger import DeviceUse
from hal.scheduler import core
from hal.scheduler.agent import binding as on
from hal.scheduler.agent.agent import Agent, StaleError
from hal.scheduler.agent.service import Service
from hal.scheduler.agent.until import clock
from hal.scheduler.answers import Address, Refused
from hal.scheduler.core.fleet import Spot
from hal.scheduler.core.shape import Shape
from hal.scheduler.jobs.output import Piece
from hal.scheduler.jobs.spec import Ended, JobSpec
from hal.scheduler.nodes import Nodes
from hal.scheduler.places import Places
from hal.scheduler.process import locked_for_agent
from tests.property.test_agents import PlayedSlices


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return begin(tmp_path)


def begin(directory: Path) -> Agent:
    directory.chmod(0o700)
    one = Agent(PlayedSlices("a"), Places(directory), "a")  # type: ignore[arg-type]
    one.start()
    return one


def wanted(lease: str = "l", epoch: int = 1) -> on.Binding:
    spot = Spot("a", ("gpu0",), Shape(memory_bytes=1 << 30))
    return on.Binding(lease, epoch, lease, 7, 1, (on.BoundPart(0, (spot,)),))


def test_no_older_scheduler_is_obeyed_not_even_after_a_restart(agent: Agent, tmp_path: Path) -> None:
    agent.bind(on.BindOrder(5, wanted()))
    for one in (agent, begin(tmp_path)):
        with pytest.raises(StaleError, match="newer scheduler"):
            one.unbind(on.UnbindOrder(4, "l", 1), 0.0)
        with pytest.raises(StaleError):
            one.bind(on.BindOrder(4, wanted("m", 9)))
        with pytest.raises(StaleError):
            one.keep(4, {}, 0.0)
    assert agent.bound() == {"l": 1}


def test_an_order_for_an_older_grant_touches_nothing(agent: Agent) -> None:
    agent.bind(on.BindOrder(1, wanted(epoch=3)))
    with pytest.raises(StaleError):
        agent.unbind(on.UnbindOrder(1, "l", 2), 0.0)
    with pytest.raises(StaleError):
        agent.bind(on.BindOrder(1, wanted(epoch=2)))
    assert agent.bound() == {"l": 3}


def test_what_has_ended_is_not_bound_again_by_a_late_order(agent: Agent) -> None:
    agent.bind(on.BindOrder(1, wanted()))
    assert agent.unbind(on.UnbindOrder(1, "l", 1), 0.0)
    with pytest.raises(StaleError, match="has ended here"):
        agent.bind(on.BindOrder(1, wanted()))
    assert agent.unbind(on.UnbindOrder(1, "m", 1), 0.0)  # it overtook its order to bind
    with pytest.raises(StaleError):
        agent.bind(on.BindOrder(1, wanted("m")))
    agent.bind(on.BindOrder(1, wanted(epoch=2)))
    assert agent.bound() == {"l": 2}


def test_what_the_system_refuses_is_an_answer_and_not_the_agents_end(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "bind", Mock(side_effect=PermissionError(1, "not permitted")))
    with pytest.raises(StateError, match="not permitted"):
        agent.perform(on.BindOrder(1, wanted()), 0.0)


@pytest.mark.parametrize("bound", [{}, {"l": 1}])
def test_only_a_node_that_holds_something_is_cut_off(
    bound: dict[str, int], agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(agent, "bound", lambda: bound)
    service = Service(
        agent, Places(tmp_path), lambda _: None, scheduler="ipc://x", version="1", log=told.append
    )  # type: ignore[arg-type]
    service._notice_silence(clock() + 3600)
    service._notice_silence(clock() + 3601)
    assert ["cut off" in one for one in told] == [True] * len(bound)


def test_two_agents_cannot_have_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path)
    lock = fcntl.flock

    def late(file: Any, how: int) -> None:  # the one before leaves just now, and takes its file with it
        monkeypatch.setattr(fcntl, "flock", lock)
        places.agent_lock.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with (
        locked_for_agent(places, "ipc:///one"),
        pytest.raises(StateError, match=r"an agent already serves .*, for ipc:///one"),
        locked_for_agent(places, "ipc:///two"),
    ):
        pass


@pytest.mark.parametrize("labels", [{"é": "x"}, {"name": "b"}, {"a b": "x"}, {"a": "x\ny"}, {"a": "x" * 257}])
def test_a_node_joins_with_labels_as_operators_may_set_them(labels: dict[str, str]) -> None:
    joining = on.Join("a", "boot-1", 0, 10.0, "1", core.NodeFacts("a", 1000, 1 << 30))
    said = msgspec.to_builtins(joining) | {"labels": labels}
    with pytest.raises(msgspec.ValidationError, match="label"):
        msgspec.convert(said, on.Join)


def test_a_late_join_and_a_second_node_of_a_name_are_refused() -> None:
    nodes = Nodes(None, lost_seconds=5, grace_seconds=60)
    facts = core.NodeFacts("a", 1000, 1 << 30)
    joining = on.Join("a", "boot-1", 0, 10.0, "1", facts)
    here, elsewhere = Address(Mock(), b"1"), Address(Mock(), b"2")
    assert not nodes.join(here, joining, {}, 0.0).again
    for late in (joining, msgspec.structs.replace(joining, sent=9.0)):
        with pytest.raises(Refused, match="joined again since"):
            nodes.join(here, late, {}, 1.0)
    with pytest.raises(Refused, match="a node 'a' already"):
        nodes.join(elsewhere, msgspec.structs.replace(joining, boot="boot-2", sent=1.0), {}, 1.0)
    assert nodes.lost(5.5) == ["a"]
    assert not nodes.join(elsewhere, msgspec.structs.replace(joining, boot="boot-2", sent=1.0), {}, 6.0).again


def test_what_a_node_was_told_counts_until_it_beats_under_something_else() -> None:
    nodes = Nodes(None, lost_seconds=5, grace_seconds=60)
    joining = on.Join("a", "boot", 0, 1.0, "1", core.NodeFacts("a", 1000, 1 << 30))
    here, beat = Address(Mock(), b"1"), on.Beat("a", 0)
    nodes.join(here, joining, {}, 0.0)
    assert nodes.beat(here, beat, 1.0)
    nodes.grace_seconds = 3  # as by SIGHUP
    assert not nodes.beat(here, beat, 2.0)  # it has to join again, and is told then
    assert nodes.join(here, msgspec.structs.replace(joining, sent=2.0), {}, 2.0).cut_off_seconds < 8
    after = Nodes(None, lost_seconds=5, grace_seconds=3)
    after.load(nodes.changes(), 100.0)
    for one, since in ((nodes, 2.0), (after, 100.0)):  # the answer may be lost; a successor knows it, too
        assert one.lost(since + 5) == ["a"]
        assert not one._has_stopped("a", since + 64)
        assert one._has_stopped("a", since + 65)
    nodes.join(here, msgspec.structs.replace(joining, sent=3.0), {}, 100.0)
    assert nodes.beat(here, beat, 101.0)
    assert nodes.lost(106.0) == ["a"]
    assert not nodes._has_stopped("a", 108.9)
    assert nodes._has_stopped("a", 109.1)


def test_a_node_joins_only_without_what_is_not_its_own() -> None:
    nodes = Nodes(None, lost_seconds=5, grace_seconds=60)
    joining = on.Join("a", "boot", 0, 1.0, "1", core.NodeFacts("a", 1000, 1 << 30), bound={"x": 1})
    answer = nodes.join(Address(Mock(), b"1"), joining, {}, 0.0)
    assert answer.again
    assert answer.keep == {}
    assert nodes.nodes["a"].address is None


def test_a_node_is_given_the_time_that_it_was_told_whatever_is_configured_since() -> None:
    nodes = Nodes(None, lost_seconds=5, grace_seconds=60)
    here = Address(Mock(), b"1")
    facts = core.NodeFacts("a", 1000, 1 << 30)
    nodes.join(here, on.Join("a", "boot", 0, 1.0, "1", facts), {}, 0.0)
    part = core.Part(0, 0, 0, (Spot("a", ("gpu0",), Shape(whole=True)),))
    lease = Mock(id="l", epoch=1, uid=7, parts=[part], spots=lambda: part.spots)
    lease.name = "l"
    nodes.bind(lease, 0.0)
    nodes.unbind(lease, 0.0)
    assert nodes.beat(here, on.Beat("a", 0), 10.0)
    nodes.lost_seconds, nodes.grace_seconds = 2, 1
    assert nodes.lost(12.5) == ["a"]
    assert not nodes.has_ended("l", 30.0)
    assert not nodes.has_ended("l", 74.9)
    assert nodes.has_ended("l", 75.0)
    nodes.forget("l")
    answer = nodes.join(here, on.Join("a", "boot", 0, 2.0, "1", facts), {}, 80.0)
    assert answer.cut_off_seconds == 2 and nodes.beat(here, on.Beat("a", 0), 81.0)
    nodes.grace_seconds = 30
    assert not nodes.beat(here, on.Beat("a", 0), 82.0)  # it is to join again, and hear of it


@pytest.mark.parametrize(
    ("boot", "lost", "why"),
    [
        ("boot", True, "node 'a' was cut off and stopped it"),
        ("other", True, "node 'a' was started anew, which ended it"),
        ("boot", False, "node 'a' has lost its slice"),
    ],
)
def test_a_node_that_comes_back_without_a_slice_says_why(boot: str, lost: bool, why: str) -> None:
    nodes = Nodes(None, lost_seconds=5, grace_seconds=60)
    joining = on.Join("a", "boot", 0, 1.0, "1", core.NodeFacts("a", 1000, 1 << 30))
    nodes.join(Address(Mock(), b"1"), joining, {}, 0.0)
    part = core.Part(0, 0, 0, (Spot("a", ("gpu0",), Shape(whole=True)),))
    lease = Mock(id="l", epoch=1, uid=7, parts=[part], spots=lambda: part.spots)
    lease.name = "l"
    nodes.bind(lease, 0.0)
    nodes._held["l"].bound["a"] = Mock()
    assert nodes.lost(6.0 if lost else 1.0) == (["a"] if lost else [])
    again = msgspec.structs.replace(joining, boot=boot, sent=2.0)
    nodes.join(Address(Mock(), b"2"), again, {"l": lease}, 7.0)
    assert nodes.failures() == [("l", why)]


def test_of_a_forgotten_node_nothing_is_waited_for_not_even_after_a_restart() -> None:
    nodes = Nodes(None, lost_seconds=5, grace_seconds=60)
    facts = {name: core.NodeFacts(name, 1000, 1 << 30) for name in "ab"}
    for name in "ab":
        nodes.join(Address(Mock(), name.encode()), on.Join(name, "boot", 0, 1.0, "1", facts[name]), {}, 0.0)
    parts = [core.Part(0, 0, 0, (Spot(name, (f"gpu-{name}",), Shape(whole=True)),)) for name in "ab"]
    gang = Mock(id="l", epoch=1, uid=7, parts=parts, state=core.LeaseState.ACTIVE)
    gang.name, gang.spots = "l", lambda: [spot for part in parts for spot in part.spots]
    nodes.bind(gang, 0.0)
    assert nodes.beat(Address(nodes.nodes["b"].address.socket, b"b"), on.Beat("b", 0), 9.0)  # type: ignore[union-attr]
    assert nodes.lost(9.0) == ["a"]
    assert nodes.stops_in(nodes.nodes["a"], 10.0) == 59.0
    assert nodes.stops_in(nodes.nodes["a"], 69.0) == 0.0
    rows = nodes.changes()
    nodes.forget_node("a")
    assert nodes.changes() == [("told", "a", None)]
    assert list(nodes.nodes) == ["b"]
    gang.state = core.LeaseState.ENDING
    nodes.unbind(gang, 10.0)
    assert not nodes.has_ended("l", 10.0)
    assert nodes.beat(nodes.nodes["b"].address, on.Beat("b", 0, ended=[("l", 1)]), 11.0)  # type: ignore[arg-type]
    assert nodes.has_ended("l", 11.0)
    nodes.forget("l")
    after = Nodes(None, lost_seconds=5, grace_seconds=60)
    after.load([row for row in rows if row[1] != "a"], 100.0)
    after.unbind(gang, 100.0)
    assert list(after.nodes) == ["b"]


MESSAGES = [
    on.Join("a", "boot", 1, 1.0, "9", core.NodeFacts("a", 1, 1), {"l": 1}, {"rack": "a3"}),
    on.Joined(1, 1.0, 55.0, {"l": 1}),
    on.Beat("a", 1, core.NodeFacts("a", 1, 1), [("l", 1)]),
    on.BindOrder(1, wanted()),
    on.UnbindOrder(1, "l", 1),
    on.Bound([(0, {"A": "b"})], PlayedSlices("a").enforcement(wanted())),
    on.Unbound(True),
    on.RunOrder(1, "l", 1, 0, "j", "alice", 7, JobSpec(["true"], {"A": "b"}, "/"), {"A": "c"}),
    on.Started(),
    on.SignalOrder(1, "l", 1, 0, 10),
    on.OutputOrder("l", 1, 0),
    Piece(0, b"said", False),
    on.Beat("a", 1, use={"l": [DeviceUse("x", 2, 1, 0)]}, runs=[Ended("l", 1, 0, 0, None, "", 1, 2, 0.5)]),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_what_a_later_version_adds_is_passed_over(message: msgspec.Struct) -> None:
    """Scheduler and agents may be of two neighbouring versions: fields are added, never changed."""

    def with_more(value: Any) -> Any:
        if isinstance(value, dict) and not set(value) <= {"A", "l", "rack"}:
            return {key: with_more(one) for key, one in value.items()} | {"of_later": [1, {"x": None}]}
        return [with_more(one) for one in value] if isinstance(value, list | tuple) else value

    assert msgspec.convert(with_more(msgspec.to_builtins(message)), type(message)) == message


class LostSlices(PlayedSlices):
    """Whose file of a lease cannot be read, with a program in it that minds no SIGTERM."""

    def adopt(self, binding: on.Binding) -> bool:
        self.made[binding.lease] = binding
        self.stubborn.add(binding.lease)
        raise StateError("cannot use the slice file")


@pytest.mark.parametrize("heard", ["bind", "unbind", "keep", "cut off"])
def test_a_slice_that_cannot_be_used_is_held_until_it_is_empty_and_its_lender_knows(
    agent: Agent, tmp_path: Path, heard: str
) -> None:
    agent.bind(on.BindOrder(1, wanted()))
    slices, said = LostSlices("a"), []
    after = Agent(slices, Places(tmp_path), "a", say=said.append)  # type: ignore[arg-type]
    after.start()
    assert said == ["the lease 'l' has lost its slice, and its programs are ended: cannot use the slice file"]
    assert after.take_over(wanted())
    for now in (10.0, 11.0):
        after.turn(now)
        assert (after.busy, after.bound(), slices.stubborn) == (True, {"l": 1}, {"l"})
        with pytest.raises(StateError, match="cannot use the slice file"):
            after.bind(on.BindOrder(1, wanted()))
        with pytest.raises(StateError, match="is ending"):
            after.run(on.RunOrder(1, "l", 1, 0, "j", "alice", 7, JobSpec(["true"]), {}))
    after.turn(12.0)
    assert not slices.stubborn
    after.turn(13.0)
    assert (after.busy, after.bound(), after.ended()) == (False, {"l": 1}, [])
    if heard == "bind":
        with pytest.raises(StateError, match="cannot use the slice file"):
            after.bind(on.BindOrder(1, wanted()))
    if heard == "keep":
        after.keep(1, {}, 14.0)
    elif heard == "cut off":
        after.stop_all()
        after.turn(14.0)
    else:
        assert after.unbind(on.UnbindOrder(1, "l", 1), 14.0)
    assert (after.bound(), after.ended(), slices.made) == ({}, [("l", 1)], {})
    assert not list(tmp_path.glob("slices/*.binding"))
