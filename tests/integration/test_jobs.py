"""Jobs as users see them: a scheduler, agents on emulated nodes, and programs that end in every way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hal.backend import GoneError, HalError, StateError, UnsupportedError
from hal.scheduler.client import Client
from hal.scheduler.core.request import Alternative
from hal.scheduler.jobs.marks import strays
from hal.scheduler.jobs.table import _alive
from hal.scheduler.places import Places
from hal_native import ffi
from tests.conftest import ALLOCATE, HAL, wait_until
from tests.integration.support import GIB, Env, all_is_back, kill, line, places, serving, start
from tests.integration.test_agents import Cluster


class Site(Cluster):
    """A cluster whose nodes run root's jobs as root, which root has to allow."""

    def agent(self, name: str) -> None:
        allow(self.envs[name])
        super().agent(name)

    def submit(self, script: str, *, request: dict[str, Any] | None = None, **more: Any) -> str:
        spec = {"command": ["/bin/sh", "-c", script], "directory": "/", **more.pop("spec", {})}
        key = f"k{time.monotonic_ns()}"
        answer = self.call("submit", key=key, job=spec, request=request or {}, **more)
        return str(answer["array"] or answer["jobs"][0])

    def job(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("job", job=id)["job"]
        return found

    def over(self, id: str) -> dict[str, Any]:
        wait_until(lambda: self.job(id)["state"] in ("completed", "failed", "cancelled"))
        return self.job(id)

    def said(self, id: str, member: int = 0, stream: str = "stdout") -> str:
        return str(self.call("job_logs", job=id, member=member, stream=stream)["data"].decode())

    def has_said(self, id: str, text: str, member: int = 0) -> None:
        wait_until(lambda: text in self.said(id, member), what=text)

    def running(self, name: str) -> list[int]:
        return strays(Path(self.envs[name]["HAL_RUNTIME_DIR"]) / "jobs")

    def at_rest(self) -> None:
        wait_until(lambda: self.call("list")["leases"] == [])
        wait_until(lambda: not any(self.running(name) for name in self.envs))


def allow(env: Env) -> None:
    directory = Path(env["HAL_RUNTIME_DIR"])
    directory.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        (directory / "hal.toml").write_text('[jobs.run_as]\nroot = "root"\n')


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        one = Site(stack)
        yield one
        settled(one)


def settled(site: Site) -> None:
    """Nothing of it runs any more."""
    for process in (site.scheduler, *site.agents.values()):
        process.kill()
    for name in site.envs:
        for pid in site.running(name):
            os.kill(pid, signal.SIGKILL)


def member(vendor: str, memory: int | None = GIB, replicas: int = 1) -> dict[str, Any]:
    return {
        "alternatives": [{"selector": f'vendor == "{vendor}"', "memory_bytes": memory}],
        "replicas": replicas,
    }


def on(vendor: str, **more: Any) -> dict[str, Any]:
    return {"members": [member(vendor)], **more}


def test_a_job_runs_in_its_slice_on_another_node(site: Site) -> None:
    site.add("green", "l40s-4")
    id = site.submit(f"printf 'alloc 512\\nalloc 600\\n' | {ALLOCATE} cuda", request=on("nvidia"))
    job = site.over(id)
    assert (job["state"], job["exit_code"], job["nodes"]) == ("completed", 0, ["green"])
    assert [line.split()[0] for line in site.said(id).splitlines()] == ["device", "allocated", "refused"]
    assert job["device_seconds"] > 0 and job["attempt"] == 1
    site.at_rest()


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -SEGV $$", 139)])
def test_how_it_ends_is_told_exactly(site: Site, script: str, code: int) -> None:
    site.add("green", "l40s-4")
    job = site.over(site.submit(script, request=on("nvidia")))
    assert (job["state"], job["exit_code"]) == ("failed", code)
    assert (
        site.over(site.submit("true", request=on("nvidia"), spec={"command": ["no-such"]}))["exit_code"]
        == 127
    )


def test_a_gang_across_nodes_meets_and_one_that_fails_ends_the_others(site: Site) -> None:
    site.add("green", "l40s-4")
    site.add("red", "mi210-4")
    members = [member("nvidia", replicas=2), member("amd")]
    script = "echo $RANK/$WORLD_SIZE $MASTER_ADDR $MASTER_PORT $LOCAL_RANK $NODE_RANK/$NNODES"
    id = site.submit(script, request={"members": members})
    assert site.over(id)["state"] == "completed"
    lines = [site.said(id, number).split() for number in range(3)]
    assert [line[0] for line in lines] == ["0/3", "1/3", "2/3"]
    assert [line[3] for line in lines] == ["0", "0", "0"]
    assert [line[4] for line in lines] == ["0/3", "1/3", "2/3"]
    assert len({(line[1], line[2]) for line in lines}) == 1
    script = "if [ $RANK = 2 ]; then sleep 0.3; exit 5; fi; sleep 1000"
    job = site.over(site.submit(script, request={"members": members}))
    assert (job["state"], job["exit_code"]) == ("failed", 5)
    assert job["reason"] == "member 2 ended with code 5"
    site.at_rest()


def test_output_that_cannot_be_is_refused_and_the_scheduler_goes_on(site: Site) -> None:
    site.add("green", "l40s-4")
    job = site.submit("echo up; sleep 600")
    site.has_said(job, "up")
    wrong = [{"stream": "nonsense"}, {"limit": 0}, {"limit": 1 << 40}, {"offset": -1}, {"offset": 1 << 63}]
    for nonsense in wrong:
        with pytest.raises(HalError, match=r"^(stream|offset)"):
            site.call("job_logs", job=job, **nonsense)
    assert site.said(job) == "up\n"
    site.call("cancel_job", job=job)
    site.at_rest()


def test_who_waits_for_the_lease_of_a_job_is_not_its_holder(site: Site) -> None:
    site.add("green", "l40s-4")
    job = site.submit("echo up; sleep 600")
    site.has_said(job, "up")
    script = f"from hal.scheduler.client import Client; Client().call('wait', lease='{job}')"
    subprocess.run([HAL[0], "-c", script], env=site.head, check=True, timeout=60)
    site.call("hello")  # by now its end has been seen
    with site.client() as client:
        client.call("wait_job", job=job, timeout_seconds=1.0, timeout=10.0)
    assert site.job(job)["state"] == "running"
    site.call("cancel_job", job=job)
    site.at_rest()


def test_an_array_has_a_job_for_each_number_and_waits_its_turn(site: Site) -> None:
    site.add("green", "l40s-4")
    whole = {"members": [member("nvidia", None)]}
    array = site.submit("echo $HAL_ARRAY_INDEX", request=whole, array=[0, 3, 5, 6, 7, 8])
    jobs = site.call("jobs", array=array)["jobs"]
    assert [job["index"] for job in jobs] == [0, 3, 5, 6, 7, 8]
    for job in jobs:
        assert site.over(job["id"])["state"] == "completed"
        assert site.said(job["id"]) == f"{job['index']}\n"


def test_a_job_waits_is_cancelled_and_leaves_nothing(site: Site) -> None:
    site.add("green", "l40s-4")
    whole = {"members": [member("nvidia", None, replicas=4)]}
    first = site.submit("trap '' TERM; echo up; while :; do sleep 0.01; done", request=whole)
    site.has_said(first, "up", 3)
    second = site.submit("echo second", request=whole)
    assert site.job(second)["state"] == "waiting"
    third = site.submit("echo third", request=whole)
    site.call("cancel_job", job=second)
    assert site.over(second)["state"] == "cancelled"
    assert site.job(second)["attempt"] == 0
    site.call("cancel_job", job=first)
    assert site.over(first)["state"] == "cancelled"
    assert site.over(third)["state"] == "completed"
    site.call("cancel_job", job=third)
    assert site.job(third)["state"] == "completed"
    site.at_rest()


def test_no_id_is_that_of_no_job(site: Site) -> None:
    """An empty one, as of a variable that was not set, is not that of all that are in no array."""
    site.add("green", "l40s-4")
    job = site.submit("echo up; sleep 600", request=on("nvidia"))
    site.has_said(job, "up")
    for op in ("cancel_job", "job", "wait_job"):
        with pytest.raises(HalError, match="there is no job ''"):
            site.call(op, job="")
    assert site.call("jobs", array="")["jobs"] == []
    assert site.job(job)["state"] == "running"
    with pytest.raises(HalError, match="has 1 members"):
        site.call("signal_job", job=job, signal=9, member=1)
    site.call("signal_job", job=job, signal=9, member=0)
    assert site.over(job)["exits"][0]["signal"] == 9


def test_the_same_request_again_is_the_same_job_and_nonsense_is_none(site: Site) -> None:
    site.add("green", "l40s-4")
    body = {"key": "k", "job": {"command": ["true"]}, "request": on("nvidia")}
    assert site.call("submit", **body) == site.call("submit", **body)
    assert len(site.call("jobs")["jobs"]) == 1
    with pytest.raises(UnsupportedError):
        site.submit("true", request=on("intel"))
    with pytest.raises(UnsupportedError):
        site.submit("true", request=on("intel"), array=[1, 2])
    assert len(site.call("jobs")["jobs"]) == 1


@pytest.mark.parametrize("who", ["agent", "scheduler", "both"])
def test_jobs_survive_restarts(site: Site, who: str, tmp_path: Path) -> None:
    site.add("green", "l40s-4")
    script = f"echo once; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 9"
    id = site.submit(script, request=on("nvidia"))
    site.has_said(id, "once")
    gone = site.submit("sleep 0.2; exit 4", request=on("nvidia"))
    if who in ("agent", "both"):
        kill(site.agents["green"].pid)
    if who in ("scheduler", "both"):
        kill(site.scheduler.pid)
        site.serve()
    if who in ("agent", "both"):
        site.agent("green")
    wait_until(lambda: site.job(id)["state"] == "running")
    (tmp_path / "go").touch()
    assert site.over(id)["exit_code"] == 9
    assert site.said(id) == "once\n"
    assert site.over(gone)["exit_code"] in (4, None)
    site.at_rest()


def test_a_job_is_tried_again_when_its_node_is_lost(site: Site, tmp_path: Path) -> None:
    site.add("green", "l40s-4")
    script = f"echo x >> {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    id = site.submit(script, request=on("nvidia"), retries=1)
    single = site.submit("sleep 1000", request=on("nvidia"))
    wait_until((tmp_path / "begun").exists)
    wait_until(lambda: site.job(single)["state"] == "running")
    assert listed(site, single)["suspended"] is False
    os.kill(site.agents["green"].pid, signal.SIGSTOP)
    wait_until(lambda: site.job(single)["suspended"])
    assert re.search(rf"^{single} .* suspended .* its node no longer answers$", table(site), re.MULTILINE)
    wait_until(lambda: site.job(id)["state"] == "waiting")
    os.kill(site.agents["green"].pid, signal.SIGCONT)
    wait_until(lambda: site.job(id)["state"] == "running")
    assert site.job(id)["ended_ms"] is None
    (tmp_path / "go").touch()
    job = site.over(id)
    assert (job["state"], job["attempt"]) == ("completed", 2)
    assert (tmp_path / "begun").read_text() == "x\nx\n"
    lost = site.over(single)
    assert (lost["state"], lost["exit_code"], lost["attempt"]) == ("failed", None, 1)
    assert re.search(
        rf"^{single} .* failed .* node 'green' has not come back in time$", table(site), re.MULTILINE
    )
    site.at_rest()


def table(site: Site) -> str:
    done = subprocess.run([*HAL, "job", "list"], env=site.head, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(site: Site, id: str) -> dict[str, Any]:
    return next(dict(one) for one in site.call("jobs")["jobs"] if one["id"] == id)


def away(site: Site, name: str) -> Callable[[], object]:
    """Let a node refuse all leases, until what is returned is called."""
    slices = Path(site.envs[name]["HAL_RUNTIME_DIR"], "slices")
    slices.rename(slices.with_name("away"))
    return lambda: slices.with_name("away").rename(slices)


def test_a_node_that_refuses_it_is_no_try_of_a_job(site: Site, tmp_path: Path) -> None:
    site.add("green", "l40s-4")
    back = away(site, "green")
    id = site.submit(f"echo x >> {tmp_path}/begun; exit 3", request=on("nvidia"))
    never = site.submit(f"touch {tmp_path}/never", request=on("nvidia"))
    for one in (id, never):
        wait_until(lambda one=one: "cannot write" in site.job(one)["reason"])  # type: ignore[misc]
    wait_until(lambda: site.job(id)["attempt"] > 1)
    wait_until(lambda: site.job(never)["state"] == "waiting")
    site.call("cancel_job", job=never)
    assert site.over(never)["state"] == "cancelled"
    kill(site.scheduler.pid)
    site.serve()
    back()
    assert (site.over(id)["state"], site.over(id)["exit_code"]) == ("failed", 3)
    assert (tmp_path / "begun").read_text() == "x\n" and not (tmp_path / "never").exists()
    site.at_rest()


def test_a_job_that_is_preempted_is_tried_again(site: Site) -> None:
    site.add("green", "l40s-4")
    whole = [member("nvidia", None, replicas=4)]
    low = site.submit("echo up; sleep 4", request={"members": whole}, retries=3)
    never = site.submit("sleep 1000", request={"members": whole})
    site.has_said(low, "up")
    for listing in ("job", "lease"):  # a row has room for one device, whole
        listed = start(site.head, *HAL, listing, "list", stdin=subprocess.DEVNULL).communicate(timeout=60)[0]
        (row,) = (one for one in listed.splitlines() if one.startswith(low))
        assert re.search(r"  green/nvidia:GPU-[0-9a-f-]{36} and 3 more  ", row), row
    high = site.submit("true", request={"members": whole, "priority": 5})
    assert site.over(high)["state"] == "completed"
    job = site.over(low)
    assert (job["state"], job["attempt"]) == ("completed", 2)
    site.call("cancel_job", job=never)
    site.at_rest()


def test_a_job_that_is_drained_goes_on_elsewhere_at_once(site: Site) -> None:
    """Its lease ends and is granted anew in one go: it never waits in between."""
    site.add("green", "l40s-4")
    id = site.submit("echo up; exec sleep 100", request=on("nvidia"), retries=1)
    site.has_said(id, "up")
    (before,) = site.job(id)["devices"]
    site.call("drain", target=before)
    wait_until(lambda: (site.job(id)["attempt"], site.job(id)["state"]) == (2, "running"))
    assert site.job(id)["devices"] != [before]
    told = site.call("watch", after=0, lease=id)["events"]
    assert [one["kind"] for one in told] == ["granted", "ending", "ended", "granted"]
    site.call("cancel_job", job=id)
    site.at_rest()


def test_a_killed_supervisor_fails_its_job_and_nothing_runs_on(site: Site) -> None:
    site.add("green", "l40s-4")
    id = site.submit("(sleep 1000 &); (setsid sleep 1000 &); echo up; sleep 1000", request=on("nvidia"))
    site.has_said(id, "up")
    (run,) = Path(site.envs["green"]["HAL_RUNTIME_DIR"], "jobs").iterdir()
    pid = _alive(run)
    assert pid is not None
    kill(pid)
    job = site.over(id)
    assert (job["state"], job["reason"]) == ("failed", "its supervisor was killed")
    site.at_rest()


def test_a_node_that_is_cut_off_stops_its_jobs_on_whole_devices_too(site: Site) -> None:
    site.add("green", "l40s-4")
    id = site.submit("echo up; sleep 1000", request={"members": [member("nvidia", None)]})
    site.has_said(id, "up")
    os.kill(site.scheduler.pid, signal.SIGSTOP)
    wait_until(lambda: not site.running("green"))
    os.kill(site.scheduler.pid, signal.SIGCONT)
    assert site.over(id)["state"] == "failed"
    site.at_rest()


def test_a_job_whose_agent_never_comes_back_ends(site: Site) -> None:
    site.add("green", "l40s-4")
    id = site.submit("(setsid sleep 1000 &); echo up; sleep 1000", request=on("nvidia"))
    site.has_said(id, "up")
    kill(site.agents["green"].pid)
    assert site.running("green")
    wait_until(lambda: not site.running("green"))
    assert site.over(id)["state"] == "failed"


def test_a_job_that_ended_for_want_of_a_scheduler_is_tried_again(machine_env: Env, tmp_path: Path) -> None:
    allow(machine_env)
    script = f"echo x >> {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    runs = Path(machine_env["HAL_RUNTIME_DIR"]) / "jobs"

    def serve() -> subprocess.Popen[str]:
        one = start(machine_env, *HAL, "serve", "--lost-after", "0.5", "--grace", "2")
        assert "serving" in one.stderr.readline()  # type: ignore[union-attr]
        return one

    def ask(op: str, **body: Any) -> dict[str, Any]:
        with Client(places(machine_env), timeout=10.0) as client:
            return client.call(op, **body)

    first = serve()
    spec = {"command": ["/bin/sh", "-c", script], "directory": "/"}
    (id,) = ask("submit", key="k", job=spec, request={"members": [member("nvidia")]}, retries=1)["jobs"]
    wait_until((tmp_path / "begun").exists)
    kill(first.pid)
    assert strays(runs)
    wait_until(lambda: not strays(runs))
    second = serve()
    wait_until(lambda: (tmp_path / "begun").read_text() == "x\nx\n")
    (tmp_path / "go").touch()
    wait_until(lambda: ask("job", job=id)["job"]["state"] == "completed")
    assert ask("job", job=id)["job"]["attempt"] == 2
    second.terminate()
    second.wait(60)


def test_signals_are_passed_on(site: Site) -> None:
    site.add("green", "l40s-4")
    id = site.submit(
        "trap 'echo heard; exit 6' USR1; echo up; while :; do sleep 0.01; done", request=on("nvidia")
    )
    site.has_said(id, "up")
    site.call("signal_job", job=id, signal=int(signal.SIGUSR1))
    assert site.over(id)["exit_code"] == 6
    assert site.said(id) == "up\nheard\n"


def test_it_is_accounted_for_at_the_price_of_the_list(site: Site) -> None:
    config = Path(site.head["HAL_RUNTIME_DIR"], "hal.toml")
    config.write_text("[prices]\n'vendor == \"nvidia\"' = 3600\n")
    config.chmod(0o600)
    site.scheduler.send_signal(signal.SIGHUP)
    site.add("green", "l40s-4")
    id = site.submit("sleep 0.5", request={"members": [member("nvidia", None, replicas=2)]})
    job = site.over(id)
    assert job["device_seconds"] >= 1.0
    assert job["price"] == pytest.approx(job["device_seconds"], rel=0.01)  # 3600 an hour is 1 a second
    (row,) = site.call("accounting")["accounts"]
    assert (row["leases"], row["jobs"]) == (1, 1)
    assert row["price"] == job["price"] and row["device_seconds"] == job["device_seconds"]
    kill(site.scheduler.pid)
    site.serve()
    assert site.call("accounting")["accounts"] == [row]
    assert site.call("accounting", owner="nobody-else")["accounts"] == []
    for day in ("yesterday", "2026-13-01", "2026-1-1", "20260101", "\0"):
        with pytest.raises(HalError, match="until is a day, as in 2026-01-31"):
            site.call("accounting", since=row["day"], until=day)
    (by_model,) = site.call("accounting", by=["model", "queue", "node"])["accounts"]
    assert (by_model["model"], by_model["queue"], by_model["node"]) == ("NVIDIA L40S", "default", "green")
    assert by_model["price"] == row["price"]
    for wrong in ([], ["colour"], ["day", "day"]):
        with pytest.raises(HalError, match=r"^by has some of day, user"):
            site.call("accounting", by=wrong)
    assert site.job(id)["price"] == job["price"]


@pytest.mark.parametrize("how", ["given up", "after a restart", "forgotten", "other devices"])
def test_what_ends_with_its_node_is_accounted_for_at_its_price(site: Site, how: str) -> None:
    config = Path(site.head["HAL_RUNTIME_DIR"], "hal.toml")
    config.write_text("[prices]\n'vendor == \"nvidia\"' = 3600\n")
    config.chmod(0o600)
    site.scheduler.send_signal(signal.SIGHUP)
    site.add("green", "l40s-4")
    site.acquire("a", Alternative('vendor == "nvidia"', None), ttl=4)
    kill(site.agents["green"].pid)
    wait_until(lambda: site.call("nodes", node="green")["nodes"][0]["state"] == "lost")
    if how == "forgotten":
        site.call("forget", node="green", force=True)
    if how == "other devices":
        site.add("green", "mi210-4")
    if how == "after a restart":
        kill(site.scheduler.pid)
        site.serve()
        assert site.call("nodes", node="green")["nodes"][0]["devices"]
    site.at_rest()
    (row,) = site.call("accounting", by=["node", "vendor", "model"])["accounts"]
    assert (row["node"], row["vendor"], row["model"], row["leases"]) == ("green", "nvidia", "NVIDIA L40S", 1)
    assert row["price"] == pytest.approx(row["device_seconds"], rel=0.01)
    assert row["device_seconds"] >= 1.0


@pytest.mark.skipif(os.geteuid() != 0, reason="only an agent of root's needs leave")
def test_an_agent_of_roots_runs_nothing_that_run_as_does_not_name(site: Site) -> None:
    site.add("green", "l40s-4")
    kill(site.agents["green"].pid)
    Path(site.envs["green"]["HAL_RUNTIME_DIR"], "hal.toml").unlink()
    Cluster.agent(site, "green")
    job = site.over(site.submit("true", request=on("nvidia")))
    assert job["state"] == "failed"
    assert "this node runs no jobs of 'root'" in job["reason"]
    site.at_rest()


# ---- the command line -------------------------------------------------------------------------


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hal_here(machine_env: Env) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*HAL, *arguments]
        return subprocess.run(
            command, env=machine_env, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def test_submit_wait_logs_and_list_of_a_private_scheduler(hal_here: Run, machine_env: Env) -> None:
    script = "echo out $HAL_ARRAY_INDEX$GIVEN; echo err >&2; exit 3"
    one = hal_here("submit", "--memory", "1GiB", "--env", "GIVEN=x", "--", "sh", "-c", script)
    assert (one.returncode, one.stderr) == (0, "")
    id = one.stdout.strip()
    waited = hal_here("job", "wait", id)
    assert (waited.returncode, waited.stdout) == (3, "")
    assert waited.stderr == f"hal: the job {id} failed: its program ended with code 3\n"
    wait_until(lambda: not Path(machine_env["HAL_RUNTIME_DIR"], "scheduler.sock").exists())  # it has left
    logs = hal_here("job", "logs", "-f", id)
    assert (logs.returncode, logs.stdout, logs.stderr) == (0, "out x\n", "err\n")
    shown = json.loads(hal_here("job", "show", id, "--json").stdout)
    assert (shown["schema"], shown["state"], shown["exit_code"]) == ("hal.job/1", "failed", 3)
    assert shown["variables"] == ["GIVEN"] and "x" not in shown.values()
    assert json.loads(hal_here("job", "logs", id, "--json").stdout)["stdout"] == "out x\n"
    assert id in hal_here("job", "list").stdout
    account = json.loads(hal_here("accounting", "--json").stdout)
    assert [row["jobs"] for row in account["accounts"]] == [1]


def test_who_follows_a_job_that_waits_hears_of_one_attempt(site: Site) -> None:
    site.add("green", "l40s-4")
    whole = {"members": [member("nvidia", None, replicas=4)]}
    first = site.submit("exec sleep 1000", request=whole)
    id = site.submit("echo up; exec sleep 1000", request=whole, retries=1)
    follower = start(site.head, *HAL, "job", "logs", "-f", id, stdin=subprocess.DEVNULL)
    time.sleep(0.5)  # so that it has asked before there is anything
    site.call("cancel_job", job=first)
    assert line(follower) == "up"
    site.call("drain", target="green")
    wait_until(lambda: site.job(id)["state"] == "waiting")
    site.call("uncordon", target="green")
    assert line(follower) == "up"
    site.call("cancel_job", job=id)
    _, err = follower.communicate(timeout=60)
    assert (err, follower.returncode) == ("hal: it is tried again\n", 0)
    site.at_rest()


def test_an_array_is_told_from_its_jobs(site: Site) -> None:
    site.add("green", "l40s-4")
    array = site.submit("true", array=[3, 4])
    with pytest.raises(GoneError, match=f"^'{array}' is an array of 2 jobs: .* such as {array}_3$"):
        site.call("job_logs", job=array)
    with pytest.raises(GoneError, match="there is no job 'abc'"):
        site.call("job_logs", job="abc")
    site.at_rest()


def test_follow_ends_with_the_job_and_cancel_ends_it(hal_here: Run, machine_env: Env) -> None:
    with serving(machine_env) as daemon:
        script = "for i in 1 2 3; do echo $i; sleep 0.2; done"
        id = hal_here("submit", "--memory", "1GiB", "--", "sh", "-c", script).stdout.strip()
        assert hal_here("job", "logs", "-f", id).stdout == "1\n2\n3\n"
        command = ("submit", "--memory", "1GiB", "--array", "0-2")
        name = hal_here(*command, "--", "sleep", "1000").stdout.strip()
        assert hal_here("job", "cancel", name).stdout == "3 of 3 jobs are told to end.\n"
        waited = hal_here("job", "wait", name)
        assert waited.returncode == 1
        assert waited.stderr == "".join(f"hal: the job {name}_{n} was cancelled\n" for n in range(3))
        array = json.loads(hal_here(*command, "--json", "--", "true").stdout)
        assert [job.split("_")[0] for job in array["jobs"]] == [array["array"]] * 3
        hal_here("job", "wait", array["array"])
        assert daemon.poll() is None
    assert not strays(Path(machine_env["HAL_RUNTIME_DIR"]) / "jobs")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("submit",), 2, "nothing to run"),
        (("submit", "--array", "5-1", "--", "true"), 2, "its ranges rise"),
        (("submit", "--array", "x", "--", "true"), 2, "no range"),
        (("submit", "--array", "0-5000", "--", "true"), 2, "1 to 1000 jobs"),
        (("submit", "--env", "HAL_X=1", "--", "true"), 2, "set by hal itself"),
        (("submit", "--env", "NOT_THERE", "--", "true"), 2, "there is no variable"),
        (("submit", "--retries", "-1", "--", "true"), 2, "--retries is between"),
        (("submit", "--output-size", "1KiB", "--", "true"), 2, "output_bytes"),
        (("accounting", "--since", "yesterday"), 2, "no day"),
        (("accounting", "--since", "2026-02-31"), 2, "no day"),
        (("accounting", "--since", "2026-02-02", "--until", "2026-02-01"), 2, "no days from 2026-02-02"),
        (("accounting", "--by", "user,colour"), 2, "no 'colour' to tell by; there are day, user, queue"),
        (("accounting", "--by", "user,user"), 2, "names something twice"),
        (("job", "list"), 6, "no scheduler"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    hal_here: Run, arguments: list[str], code: int, said: str
) -> None:
    result = hal_here(*arguments)
    assert result.returncode == code, result
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_each_job_of_a_large_array_is_waited_for(hal_here: Run, machine_env: Env) -> None:
    """They are told in pages of 500, and it is the last that ends last."""
    allow(machine_env)
    with serving(machine_env), Client(places(machine_env)) as client:
        all = {
            "members": [{"alternatives": [{"selector": 'vendor == "nvidia"', "count": 2}]}],
            "ttl_ms": 60_000,
        }
        held = client.call("acquire", key="a", request=all)["lease"]["id"]
        wanted = {"members": [{"alternatives": [{"selector": 'vendor == "nvidia"'}]}]}
        spec = {"command": ["true"], "directory": "/"}
        array = list(range(600))
        answer = client.call("submit", key="b", job=spec, request=wanted, array=array, timeout=30.0)
        assert len(answer["jobs"]) == 600
        assert "600 of 600" in hal_here("job", "cancel", answer["array"]).stdout
        waited = hal_here("job", "wait", answer["array"], "--json")
        assert {one["id"] for one in json.loads(waited.stdout)["jobs"]} == set(answer["jobs"])
        assert waited.returncode == 1
        client.call("release", lease=held)


@pytest.mark.parametrize(
    "arguments", [("--", "echo", "a\udcff"), ("--env", "X=\udcff", "--", "true"), ("--", "\udcff" * 99)]
)
def test_what_is_not_text_is_refused_in_one_sentence(
    hal_here: Run, machine_env: Env, arguments: tuple[str, ...]
) -> None:
    with serving(machine_env):
        result = hal_here("submit", *arguments)
        assert result.returncode == 2
        assert re.fullmatch(r"hal: '.*\\udcff.*' is not text in UTF-8, and cannot be sent\n", result.stderr)


def test_of_a_job_that_is_not_there(hal_here: Run, machine_env: Env) -> None:
    with serving(machine_env):
        for verb in ("show", "logs", "cancel", "wait"):
            result = hal_here("job", verb, "abc")
            assert (result.returncode, result.stderr) == (3, "hal: there is no job 'abc'\n")
        assert hal_here("job", "signal", "abc", "NOPE").returncode == 2
        assert hal_here("job", "list").stdout == "There are no jobs.\n"
    all_is_back(machine_env)


def test_jobs_are_refused_where_there_is_nothing_for_them(site: Site) -> None:
    with pytest.raises((UnsupportedError, StateError)):
        site.submit("true", request=on("nvidia"))


# ---- hal run on other nodes -------------------------------------------------------------------


def hal_run(site: Site, *arguments: str) -> subprocess.Popen[str]:
    return start(site.head, *HAL, "run", *arguments, stdin=subprocess.DEVNULL)


def test_run_passes_output_environment_and_code_through_from_another_node(site: Site) -> None:
    site.add("green", "l40s-4")
    site.head["GIVEN"] = "given"
    program = hal_run(site, "--memory", "1GiB", "--", "sh", "-c", "echo $GIVEN; pwd; echo err >&2; exit 5")
    out, err = program.communicate(timeout=60)
    assert (out, err, program.returncode) == (f"given\n{Path.cwd()}\n", "err\n", 5)
    program = hal_run(site, "--memory", "1GiB", "--gang", "2", "--", "sh", "-c", "echo $RANK; kill -9 $$")
    out, _ = program.communicate(timeout=60)
    assert program.returncode == 137
    program = hal_run(site, "--memory", "1GiB", "--", "no-such-program")
    _, err = program.communicate(timeout=60)
    assert (err, program.returncode) == ("hal: there is no command 'no-such-program'\n", 127)
    site.at_rest()


def test_run_leaves_variables_here_that_are_not_text(site: Site) -> None:
    site.add("green", "l40s-4")
    site.head["ODD"] = "a\udcff"
    program = hal_run(site, "--memory", "1GiB", "--", "sh", "-c", "echo ${ODD-none}")
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (0, "none\n"), err
    assert "not sent to the other node, as what is in them is not text in UTF-8: 'ODD'\n" in err


def test_run_names_a_device_of_another_node(site: Site) -> None:
    for name in ("green", "red"):
        site.add(name, "mi210-4")
    site.head["HAL_SCHEDULER"] = Places(Path(site.head["HAL_RUNTIME_DIR"])).address
    (one, *_) = site.call("nodes", node="red")["nodes"][0]["devices"]
    part = one["id"].removeprefix("red/")

    def said(device: str) -> tuple[str, str, int]:
        program = hal_run(site, "--device", device, "--memory", "1GiB", "--", "sh", "-c", "echo $HAL_SLICE")
        out, err = program.communicate(timeout=60)
        return out, err, program.returncode

    for device in (one["id"], one["id"][:-2].upper()):
        out, err, code = said(device)
        assert (out.startswith(site.envs["red"]["HAL_RUNTIME_DIR"]), err, code) == (True, "", 0)
    fits = f"hal: '{part}' fits 2 devices, such as green/{part} and red/{part}: write more\n"
    assert said(part) == ("", fits, 3)
    _, err, code = said("blue/x")
    assert (err.startswith("hal: there is no device 'blue/x' in this cluster; "), code) == (True, 3)
    site.at_rest()


def test_run_passes_signals_on_and_its_program_dies_with_it(site: Site) -> None:
    site.add("green", "l40s-4")
    script = "trap 'echo heard; exit 6' TERM; echo up; while :; do sleep 0.01; done"
    program = hal_run(site, "--memory", "1GiB", "--", "sh", "-c", script)
    assert line(program) == "up"
    program.terminate()
    out, _ = program.communicate(timeout=60)
    assert (out, program.returncode) == ("heard\n", 6)
    site.at_rest()
    program = hal_run(site, "--memory", "1GiB", "--", "sh", "-c", "echo up; sleep 1000")
    assert line(program) == "up"
    assert site.running("green")
    kill(program.pid)
    site.at_rest()


@pytest.mark.parametrize("who", ["scheduler", "agent"])
def test_what_run_has_started_on_another_node_outlives_restarts(who: str, site: Site, tmp_path: Path) -> None:
    site.add("green", "l40s-4")
    script = f"echo up; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo down; exit 5"
    program = hal_run(site, "--memory", "1GiB", "--", "sh", "-c", script)
    assert line(program) == "up"
    gone = site.scheduler if who == "scheduler" else site.agents["green"]
    kill(gone.pid)
    time.sleep(1.0)  # in which it asks more than once, and nobody answers
    site.serve() if who == "scheduler" else site.agent("green")
    (tmp_path / "go").touch()
    out, err = program.communicate(timeout=60)
    assert (out, err, program.returncode) == ("down\n", "", 5)
    site.at_rest()


@pytest.mark.skipif(os.geteuid() != 0, reason="only an agent of root's needs leave")
def test_run_says_why_its_program_was_stopped(site: Site) -> None:
    site.add("green", "l40s-4")
    program = hal_run(site, "--memory", "1GiB", "--", "sh", "-c", "echo up; exec sleep 1000")
    assert line(program) == "up"
    site.call("drain", target="green", reason="dust")
    _, err = program.communicate(timeout=60)
    why = f"hal: the lease was taken away: green is to be left: dust (by uid:{os.getuid()})\n"
    assert (err, program.returncode) == (why, 143)
    site.call("uncordon", target="green")
    site.at_rest()


def test_what_a_node_refuses_to_run_is_said_with_its_reason(site: Site) -> None:
    site.add("green", "l40s-4")
    kill(site.agents["green"].pid)
    Path(site.envs["green"]["HAL_RUNTIME_DIR"], "hal.toml").unlink()
    Cluster.agent(site, "green")
    why = "node 'green': this node runs no jobs of 'root': [jobs] run_as of its hal.toml names no user\n"
    program = hal_run(site, "--memory", "1GiB", "--", "true")
    assert program.communicate(timeout=60) == ("", f"hal: the program is stopped: {why}")
    assert program.returncode == 6
    id = site.submit("true", request=on("nvidia"))
    site.over(id)
    logs = start(site.head, *HAL, "job", "logs", "-f", id)
    assert logs.communicate(timeout=60) == ("", f"hal: the job {id} failed: {why}")
    site.at_rest()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_agent_reads_its_configuration_again(site: Site) -> None:
    site.add("green", "l40s-4")
    held = site.submit("sleep 1000", request=on("nvidia"))
    wait_until(lambda: site.job(held)["state"] == "running")
    config = Path(site.envs["green"]["HAL_RUNTIME_DIR"], "hal.toml")
    before = config.read_text() if config.exists() else ""
    agent = site.agents["green"]
    assert agent.stderr is not None

    def reload(text: str) -> str:
        config.write_text(text)
        config.chmod(0o600)
        agent.send_signal(signal.SIGHUP)
        return agent.stderr.readline()  # type: ignore[union-attr]

    assert "jobs.run_as" in reload('[jobs.run_as]\nsomebody = "nobody"\n[agent.labels]\nzone = "b"\n')
    wait_until(lambda: {"zone": "b"} in [one["labels"] for one in site.call("nodes")["nodes"]])
    job = site.over(site.submit("true", request=on("nvidia")))
    assert job["state"] == "failed" and "runs no jobs of 'root'" in job["reason"]
    assert "stays as it is" in reload("[jobs")
    config.unlink()  # of the runtime directory, where it was found
    agent.send_signal(signal.SIGHUP)
    assert agent.stderr.readline().endswith("stays as it is: " + f"{config} is no longer there\n")
    assert "jobs.run_as" in reload(before)
    assert site.over(site.submit("true", request=on("nvidia")))["state"] == "completed"
    assert site.job(held)["state"] == "running" and agent.poll() is None


def with_jobs_of_nobody(site: Site) -> Path:
    """A node whose agent is root's and runs jobs as nobody; its runtime directory."""
    site.add("green", "l40s-4")
    kill(site.agents["green"].pid)
    directory = Path(site.envs["green"]["HAL_RUNTIME_DIR"])
    (directory / "hal.toml").write_text('[jobs.run_as]\nroot = "nobody"\n')
    directory.parent.chmod(0o711)
    for path in [directory.parent / "machine", *(directory.parent / "machine").rglob("*")]:
        path.chmod(0o777)
    Cluster.agent(site, "green")
    return directory


def test_a_job_runs_in_its_slice_as_the_user_that_run_as_names(site: Site) -> None:
    directory = with_jobs_of_nobody(site)
    program = Path("/tmp") / f"hal-allocate-{os.getpid()}"  # where everybody can read it
    shutil.copy(ALLOCATE, program)
    try:
        script = f"id -un; echo $HOME; printf 'alloc 512\nalloc 600\n' | {program} cuda; ls {directory}"
        job = site.over(site.submit(script, request=on("nvidia")))
        said = site.said(job["id"]).splitlines()
        assert said[:2] == ["nobody", "/nonexistent"]
        assert [text.split()[0] for text in said[2:]] == ["device", "allocated", "refused"]
        assert "Permission denied" in site.said(job["id"], stream="stderr")
    finally:
        program.unlink()
    site.at_rest()


# The first slot of its own ledger names another's process, as the guard would name this one.
FORGED = r"""
open(STAT, "/proc/$ARGV[0]/stat"); $start = (split / /, (split /\) /, <STAT>)[1])[19];
$pids = (stat "/proc/self/ns/pid")[1]; $times = (stat "/proc/self/ns/time")[1];
open(LEDGER, "+<", $ENV{HAL_SLICE}) or die "cannot forge: $!"; seek(LEDGER, $ARGV[1], 0);
print LEDGER pack("Q4", 1 << 32 | 1 << 31 | $ARGV[0], $start, $pids, $times); close LEDGER;
kill 9, $ARGV[0] or print "forged";
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's agent can end others' processes")
def test_a_job_has_no_process_of_anothers_ended_by_naming_it_in_its_ledger(site: Site) -> None:
    with_jobs_of_nobody(site)
    with subprocess.Popen(["sleep", "300"]) as victim:
        try:
            offset = ffi.offsetof("struct hal_ledger", "slot")
            script = f"exec perl -e '{FORGED}' {victim.pid} {offset}"
            job = site.over(site.submit(script, request=on("nvidia")))
            assert site.said(job["id"]) == "forged", site.said(job["id"], stream="stderr")
            site.at_rest()
            assert victim.poll() is None
        finally:
            victim.kill()
