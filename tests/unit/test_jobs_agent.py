"""What an agent does with orders to run programs: whom it obeys, as whom it runs them, when it ends them."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.backend import StateError
from hal.scheduler.agent import binding as on
from hal.scheduler.agent.agent import Agent, StaleError
from hal.scheduler.agent.until import Until, clock
from hal.scheduler.core.fleet import Spot
from hal.scheduler.core.shape import Shape
from hal.scheduler.jobs.launch import Launcher, owner_name
from hal.scheduler.jobs.marks import strays
from hal.scheduler.jobs.rendezvous import FIRST_PORT, PORTS, _listening, free_port, rendezvous
from hal.scheduler.jobs.spec import Ended, JobSpec
from hal.scheduler.jobs.supervisor import CUT_OFF
from hal.scheduler.places import Places
from hal.scheduler.sections import JobsSection
from tests.conftest import wait_until
from tests.property.test_agents import PlayedSlices

ME = pwd.getpwuid(os.geteuid()).pw_name


class Slices(PlayedSlices):
    """As those of the played cluster, and given away."""

    def environments(self, binding: on.Binding) -> dict[int, dict[str, str]]:
        return {part.number: {"NODE": self.node, "LD_PRELOAD": ""} for part in binding.parts}

    def give(self, _binding: on.Binding, _number: int, _uid: int) -> None:
        pass


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    one = begin(tmp_path)
    yield one
    one.stop_all()
    wait_until(lambda: not running(tmp_path))
    one.close()


def begin(directory: Path) -> Agent:
    directory.chmod(0o700)
    section = JobsSection(run_as={"alice": ME})
    one = Agent(Slices("a"), Places(directory), "a", Launcher(section, own=False))  # type: ignore[arg-type]
    one.start()
    return one


def running(directory: Path) -> list[int]:
    return strays(directory / "jobs")


def bound(agent: Agent, lease: str = "l", epoch: int = 1) -> None:
    spot = Spot("a", ("gpu0",), Shape(whole=True))
    agent.bind(on.BindOrder(1, on.Binding(lease, epoch, lease, 7, 1, (on.BoundPart(0, (spot,)),))))


def bound_gang(agent: Agent, lease: str, epoch: int = 1, first: int = 0) -> int:
    spot = Spot("a", (f"gpu-{lease}",), Shape(whole=True))
    part = on.BoundPart(first, (spot,))
    return agent.bind(on.BindOrder(1, on.Binding(lease, epoch, lease, 7, 2, (part,)))).port


def to_run(
    script: str, *, term: int = 1, epoch: int = 1, member: int = 0, owner: str = "alice"
) -> on.RunOrder:
    spec = JobSpec(["/bin/sh", "-c", script], {"B": "brought", "NODE": "no"}, "/")
    return on.RunOrder(term, "l", epoch, member, "j", owner, 7, spec, {"RANK": "0", "B": "hal's"})


def ended(agent: Agent) -> Ended:
    def told() -> bool:
        agent.turn(0.0)
        return bool(agent.ended_runs())

    wait_until(told)
    return agent.ended_runs()[0]


def text(agent: Agent) -> str:
    return agent._jobs.output(("l", 1, 0), "stdout", 0, 65536).data.decode()


def test_a_program_has_what_the_slice_the_job_and_hal_say_in_this_order(agent: Agent) -> None:
    bound(agent)
    agent.run(to_run("echo $NODE $B $RANK $HAL_JOB"))
    assert ended(agent).code == 0
    assert text(agent) == "a brought 0 j\n"


@pytest.mark.parametrize("wrong", [{"term": 0}, {"epoch": 2}, {"epoch": 0}, {"member": 1}])
def test_no_order_of_an_older_scheduler_or_for_another_grant_runs_anything(
    agent: Agent, tmp_path: Path, wrong: dict[str, int]
) -> None:
    bound(agent)
    with pytest.raises(StateError):
        agent.run(to_run("sleep 1000", **wrong))  # type: ignore[arg-type]
    with pytest.raises(StaleError):
        agent.run(on.RunOrder(1, "m", 1, 0, "j", "alice", 7, JobSpec(["true"]), {}))
    assert not running(tmp_path)


def test_the_end_of_a_lease_ends_its_job_and_waits_for_it(agent: Agent, tmp_path: Path) -> None:
    bound(agent)
    agent.run(to_run("trap '' TERM; echo deaf; while :; do sleep 0.01; done"))
    wait_until(lambda: text(agent) == "deaf\n")
    assert not agent.unbind(on.UnbindOrder(1, "l", 1), 0.0)
    agent.turn(1.0)
    assert agent.bound() == {"l": 1} and running(tmp_path)
    with pytest.raises(StateError):
        agent.run(to_run("sleep 1000", member=0))

    def is_over() -> bool:
        agent.turn(10.0)
        return not agent.bound()

    wait_until(is_over)
    assert not running(tmp_path)
    assert agent.ended() == [("l", 1)]
    assert agent.ended_runs()[0].signal == 9


def test_a_node_that_is_cut_off_stops_its_jobs(agent: Agent, tmp_path: Path) -> None:
    bound(agent)
    agent.run(to_run("trap '' TERM; echo deaf; while :; do sleep 0.01; done"))
    wait_until(lambda: text(agent) == "deaf\n")
    agent.stop_all()
    wait_until(lambda: not running(tmp_path))


def test_without_an_agent_a_job_ends_when_its_node_has_to_have_stopped(agent: Agent, tmp_path: Path) -> None:
    bound(agent)
    agent.allow(clock() + 1)
    agent.run(to_run("trap '' TERM; (setsid sleep 1000 &); while :; do sleep 0.01; done"))
    wait_until(lambda: bool(running(tmp_path)))
    wait_until(lambda: not running(tmp_path))
    assert (ended(agent).signal, ended(agent).lost, ended(agent).error) == (9, True, CUT_OFF)


def test_a_job_goes_on_for_as_long_as_its_agent_is_allowed_to(agent: Agent, tmp_path: Path) -> None:
    bound(agent)
    first = clock() + 0.5
    agent.allow(first)
    agent.run(to_run("echo up; sleep 1000"))
    wait_until(lambda: text(agent) == "up\n")
    agent.allow(first + 1000)
    wait_until(lambda: clock() > first + 2.5)  # in which its supervisor has looked
    assert running(tmp_path)
    agent.stop_all()
    assert (ended(agent).signal, ended(agent).lost) == (9, True)


def test_what_was_allowed_is_known_to_the_next_agent_of_the_same_boot(tmp_path: Path) -> None:
    one = Until(tmp_path / "until")
    assert one.read() is None
    one.write(1234.25)
    one.write(1235.5)
    assert Until(tmp_path / "until").read() == 1235.5
    (tmp_path / "until").write_text("another boot")
    assert one.read() is None
    one.remove()
    one.write(7.0)
    assert one.read() == 7.0


def test_the_next_agent_has_the_job_and_kills_it_when_its_lease_is_gone(agent: Agent, tmp_path: Path) -> None:
    bound(agent)
    agent.run(to_run("echo up; sleep 1000"))
    wait_until(lambda: text(agent) == "up\n")
    slices = agent._slices
    for lease_is_there in (True, False):
        if not lease_is_there:
            (tmp_path / "slices" / "l.binding").unlink()
        other = Agent(slices, Places(tmp_path), "a", agent.launcher)
        other.start()
        assert bool(other.bound()) == lease_is_there
        if lease_is_there:
            assert running(tmp_path)
        else:
            assert ended(other).signal == 9
            assert not running(tmp_path)
        other.close()


def test_the_members_of_a_gang_meet_where_nobody_listens_and_no_other_gang_meets(
    agent: Agent, tmp_path: Path
) -> None:
    with socket.create_server(("", FIRST_PORT + 501)), socket.create_server(("127.0.0.1", FIRST_PORT + 502)):
        ports = [bound_gang(agent, lease, epoch=501) for lease in ("l", "m")]
    assert len(set(ports)) == 2 and all(FIRST_PORT + 502 < port < FIRST_PORT + PORTS for port in ports)
    with socket.create_server(("", ports[0])):  # the gang has begun: it stays where it is
        assert bound_gang(agent, "l", epoch=501) == ports[0]
        other = Agent(agent._slices, Places(tmp_path), "a")
        other.start()
        assert bound_gang(other, "l", epoch=501) == ports[0]
        other.close()
    assert bound_gang(agent, "n", first=1) == 0


def test_without_any_of_the_usual_ports_the_kernel_finds_one() -> None:
    assert free_port(range(1 << 16), 7) > 0
    assert _listening(free_port((), 7)) != 0


def test_a_member_is_a_node_of_one_worker_whose_device_is_the_first_that_it_sees() -> None:
    found = rendezvous(2, 4, "h", 1)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("2", "4")
    assert (found["NODE_RANK"], found["GROUP_RANK"], found["NNODES"]) == ("2", "2", "4")
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("0", "1")


def test_what_runs_already_goes_on_when_it_might_not_be_started_any_more(
    agent: Agent, tmp_path: Path
) -> None:
    bound(agent)
    agent.run(to_run("echo up; sleep 1000"))
    assert agent.launcher is not None
    agent.launcher.section = JobsSection(run_as={"alice": "no-such-user"})
    assert agent.run(to_run("echo up; sleep 1000")) == on.Started()
    assert running(tmp_path)


def test_who_is_not_named_runs_nothing_where_others_are(agent: Agent) -> None:
    bound(agent)
    with pytest.raises(StateError, match="runs no jobs of 'eve'"):
        agent.run(to_run("true", owner="eve"))
    agent.launcher = None
    with pytest.raises(StateError, match="runs no jobs"):
        agent.run(to_run("true"))


def user(run_as: dict[str, str], *, own: bool, owner: str, uid: int) -> str | None:
    found = Launcher(JobsSection(run_as=run_as), own=own)._user(owner, uid)
    return None if found is None else found.name


def test_the_schedulers_own_node_runs_its_own_users_jobs_and_nobody_elses() -> None:
    me = os.geteuid()
    assert user({}, own=True, owner=ME, uid=me) is None
    with pytest.raises(StateError, match="runs no jobs of 'alice'"):
        user({}, own=True, owner="alice", uid=1 << 32)


@pytest.mark.parametrize("me", [0, 1000])
def test_an_agent_of_roots_runs_nothing_without_a_name(monkeypatch: pytest.MonkeyPatch, me: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: me)
    if me == 0:
        with pytest.raises(StateError, match="runs no jobs of 'root'"):
            user({}, own=False, owner="root", uid=0)
        assert user({"alice": "nobody"}, own=False, owner="alice", uid=7) == "nobody"
        with pytest.raises(StateError, match="no such user"):
            user({"alice": "no-such-user"}, own=False, owner="alice", uid=7)
    else:
        assert user({}, own=False, owner="alice", uid=7) is None
        with pytest.raises(StateError, match="only an agent of root's"):
            user({"alice": "nobody"}, own=False, owner="alice", uid=7)


def test_a_local_user_is_called_by_name() -> None:
    assert owner_name("uid:0", 0) == "root"
    assert owner_name("alice", 1 << 32) == "alice"
    assert owner_name("uid:4000000", 4000000) == "uid:4000000"
