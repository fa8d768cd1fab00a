"""Three hosts set up as docs/operations.md says, then used, killed and cut off: NVIDIA's, AMD's, and both."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.hosts import HERE, Cluster, blocks

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's agents start programs for others")

ALICE = "export HAL_SCHEDULER=tcp://head:7421 HAL_KEY=/etc/hal/alice.key; cd /tmp"
NODES = ("green", "red")
TICKS = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done"
ON = 'device.attributes["node"].name == "{}"'

# As torchrun does: the first member listens, the others come to it, and all learn who is there.
MEET = """
import json, os, socket, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
at = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
mine = [rank, sorted(name for name in os.environ if name.endswith("VISIBLE_DEVICES"))]
if rank == 0:
    others = []
    with socket.create_server(("", at[1])) as server:
        while len(others) < size - 1:
            others.append(server.accept()[0])
    said = [mine, *(json.loads(other.makefile().readline()) for other in others)]
    for other in others:
        other.sendall(json.dumps(said).encode() + b"\\n")
else:
    while True:
        try:
            first = socket.create_connection(at)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    first.sendall(json.dumps(mine).encode() + b"\\n")
    said = json.loads(first.makefile().readline())
print(json.dumps({"at": at[0], "said": said}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        one = Cluster(stack, tmp_path_factory.mktemp("hosts"), head="mixed")
        for name in one.hosts:  # her jobs run as a user of that name, whose Python can be anywhere
            one.sh(name, "echo alice:x:0:0::/:/bin/sh >> /etc/passwd")
        for name in NODES:  # they share one /proc, in which an agent looks for what an earlier one has left
            one.envs[name] |= {"HAL_RUNTIME_DIR": f"/run/hal-{name}", "HAL_CONFIG": "/etc/hal/hal.toml"}
        yield one


def test_all_that_the_page_says_can_be_typed_in_its_order(cluster: Cluster) -> None:
    exported = dict.fromkeys(cluster.hosts, "")  # what a terminal keeps
    said: dict[str, str] = {}
    for hosts, text in blocks():
        for host in hosts:
            if text.startswith("hal node list"):
                all_are_up(cluster)
            done = cluster.sh(host, exported[host] + text)
            said |= dict.fromkeys(text.splitlines(), done.stdout)
            exported[host] += "".join(re.findall(r"^export .*\n", text, flags=re.MULTILINE))
    jobs = said["hal accounting"]
    assert re.search(r"^slice /.*\.ledger$", jobs, flags=re.MULTILINE), jobs
    assert re.search(r"^job [0-9a-f]{8}$", jobs, flags=re.MULTILINE), jobs
    assert len(re.findall(r"^[0-9a-f]{8}_[0-3] .* completed +0 ", jobs, flags=re.MULTILINE)) == 4, jobs
    assert re.search(r"^alice +\d", jobs, flags=re.MULTILINE), jobs
    assert "research" in said["hal queue list"]
    all_are_up(cluster)
    status = json.loads(cluster.sh("head", f"{HERE}\nhal status --json").stdout)
    assert status["term"] > 1_000_000  # of the restored store: the nodes obey it


def test_a_gang_of_both_vendors_meets_over_the_network(cluster: Cluster) -> None:
    program, request = cluster.folder / "meet.py", cluster.folder / "gang.toml"
    program.write_text(MEET)
    request.write_text(
        "".join(
            f"[[member]]\n[[member.any]]\nselector = '{ON.format(n)}'\nmemory = \"4GiB\"\n" for n in NODES
        )
    )
    said = cluster.sh("green", f"{ALICE}\nhal run --request {request} -- {sys.executable} {program}").stdout
    first, other = map(json.loads, said.splitlines())
    assert first == other
    assert first["at"] == cluster.host("green").address
    assert [rank for rank, _ in first["said"]] == [0, 1]
    green, red = (set(names) for _, names in first["said"])
    assert "CUDA_VISIBLE_DEVICES" in green - red and "ROCR_VISIBLE_DEVICES" in red - green


def test_what_runs_goes_on_through_kills_and_a_cut_and_its_output_is_followed(cluster: Cluster) -> None:
    jobs = {name: submitted(cluster, ON.format(name), TICKS) for name in (*NODES, "local")}
    wait_until(lambda: states(cluster, jobs) == ["running"] * 3)
    red = jobs["red"]
    with (
        Started(cluster, f"exec hal run --any '{ON.format('red')}:1GiB' -- sh -c '{TICKS}'") as ran,
        Started(cluster, f"exec hal job logs -f {red}") as followed,
        Started(cluster, f"exec hal job wait {red}") as waited,
    ):
        for unit, name in (("hal-agent", "red"), ("hal-scheduler", "head")):
            ran.says_more()
            os.kill(int((cluster.folder / f"{name}-{unit}.pid").read_text()), signal.SIGKILL)
            cluster.sh(name, f"systemctl start {unit}")
            all_are_up(cluster)
            for one in (ran, followed):
                one.says_more()
        cluster.host("red").cut_off()
        wait_until(lambda: cluster.nodes()["red"] == "lost")
        assert re.search(f"^{red} .* suspended ", leases(cluster), flags=re.MULTILINE)
        cluster.host("red").mend()
        all_are_up(cluster)
        for one in (ran, followed):
            one.says_more()
        assert states(cluster, jobs) == ["running"] * 3
        cluster.sh("green", f"{ALICE}\nfor job in {' '.join(jobs.values())}; do hal job cancel $job; done")
        assert (waited.process.wait(60), followed.process.wait(60)) == (3, 0)
        assert waited.said == f"hal: the job {red} was cancelled by alice\n"
        ran.process.terminate()
        assert ran.process.wait(60) == 128 + signal.SIGTERM
    for one in (ran, followed):  # nothing is missing, nothing is there twice
        ticks = one.said.split()[1::2]
        assert ticks == [str(number) for number in range(len(ticks))]


def test_a_revoked_key_opens_nothing_and_keeps_nothing_for_long(cluster: Cluster) -> None:
    cluster.sh("head", "cd /etc/hal; hal keys new bob; scp -p bob.key green:/etc/hal/bob.key")
    bob = "export HAL_SCHEDULER=tcp://head:7421 HAL_KEY=/etc/hal/bob.key"
    with Started(cluster, f"{bob}; exec hal lease take --memory 1GiB") as holder:
        holder.says_more()
        cluster.sh("head", "hal keys revoke bob")
        refused = cluster.host("green").run(
            "sh", "-c", f"{bob}; hal lease list", env=cluster.envs["green"], check=False
        )
        assert (refused.returncode, refused.stdout) == (6, "")
        assert "refuses the key 'bob'" in refused.stderr
    wait_until(lambda: "There are no leases." in leases(cluster))


def test_a_restart_fails_with_a_configuration_that_cannot_be_read(cluster: Cluster) -> None:
    there = {"env": cluster.envs["red"], "check": False}
    cluster.sh("red", "cp /etc/hal/hal.toml /etc/hal/kept; echo '[agent' > /etc/hal/hal.toml")
    done = cluster.host("red").run("systemctl", "restart", "hal-agent", **there)
    assert (done.returncode, done.stderr) == (1, "hal-agent.service has ended with 6\n")
    cluster.sh("red", "mv /etc/hal/kept /etc/hal/hal.toml; systemctl start hal-agent")
    all_are_up(cluster)


def test_a_label_says_which_one_it_goes_before(cluster: Cluster) -> None:
    def label(text: str) -> str:
        return cluster.sh("head", f"{HERE}\nhal node label green {text}").stderr

    before = (
        "hal: green: this goes before rack=a1 of its own hal.toml or --label, until: hal node label green"
    )
    assert label("rack=c9 row=3") == f"{before} rack-\n"
    cluster.sh("green", "systemctl restart hal-agent")
    all_are_up(cluster)
    cluster.sh("head", "systemctl restart hal-scheduler")
    all_are_up(cluster)
    said = "node 'green' says rack=a1, and 'hal node label' has set rack=c9, which counts"
    wait_until(lambda: said in cluster.log("head", "hal-scheduler"))
    assert label("rack- row-") == "hal: green: rack=a1 stays: its own hal.toml or --label says so\n"
    assert label("rack=a1 row=4") == ""


def all_are_up(cluster: Cluster) -> None:
    wait_until(lambda: list(cluster.nodes().values()) == ["up"] * 3)


def submitted(cluster: Cluster, selector: str, script: str) -> str:
    command = f"hal submit --retries 1 --any '{selector}:2GiB' -- sh -c '{script}'"
    return cluster.sh("green", f"{ALICE}\n{command}").stdout.strip()


def states(cluster: Cluster, jobs: dict[str, str]) -> list[str]:
    said = cluster.sh("head", f"{HERE}\nhal job list --json").stdout
    found: dict[str, Any] = {one["id"]: one["state"] for one in json.loads(said)["jobs"]}
    return [found[id] for id in jobs.values()]


def leases(cluster: Cluster) -> str:
    return cluster.sh("head", f"{HERE}\nhal lease list").stdout


class Started:
    """A command of alice's on green; it ends with the ``with``."""

    def __init__(self, cluster: Cluster, text: str) -> None:
        self._said = cluster.folder / f"said-{time.monotonic_ns()}"
        with self._said.open("wb") as file:
            self.process = subprocess.Popen(
                cluster.host("green").command("sh", "-euc", f"{ALICE}\n{text}"),
                env=cluster.envs["green"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self._said.read_text()

    def says_more(self) -> None:
        before = len(self.said)
        wait_until(lambda: len(self.said) > before or self.process.poll() is not None)
        assert self.process.poll() is None, self.said
