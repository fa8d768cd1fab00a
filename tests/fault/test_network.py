"""A cluster over a network: three hosts on one machine, set up as docs/operations.md says, then cut off."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.hosts import HERE, Cluster, blocks, set_up

READ = 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:7422/metrics").read().decode())'


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path)


def test_an_operator_sets_up_a_cluster_from_the_page_alone(cluster: Cluster) -> None:
    set_up(cluster, until="hal node list\n")
    wait_until(lambda: cluster.nodes() == dict.fromkeys(("local", "green", "red"), "up"))
    done = {}
    for hosts, text in blocks():
        if any(word in text for word in ("hal node list\n", "hal lease take", "hal node drain")):
            for host in hosts:
                done[text.splitlines()[0]] = cluster.sh(host, text if "export" in text else f"{HERE}\n{text}")
    assert len(done) == 3
    looked, user, _ = done.values()
    assert "green" in looked.stdout and "AMD" in looked.stdout
    one, other = re.findall(r"^Lease \S+ on (\S+?)/", user.stdout, flags=re.MULTILINE)
    assert (one in ("green", "red"), other) == (True, "red")
    said = json.loads(cluster.sh("head", f"{HERE}\nhal node list green --json").stdout)["nodes"][0]
    assert (said["state"], said["labels"]) == ("up", {"rack": "b7"})
    assert 'hal_node_up{node="green"} 1' in cluster.sh("head", f"{sys.executable} -c '{READ}'").stdout
    audit = [json.loads(row) for row in cluster.sh("head", "cat /var/log/hal/audit.log").stdout.splitlines()]
    assert {"drain", "cordon", "uncordon", "label", "acquire"} <= {row["op"] for row in audit}


def test_what_is_set_of_nodes_outlives_scheduler_and_runtime_directory(cluster: Cluster) -> None:
    """As after a reboot of the head: /run is empty, /var/lib is not."""
    set_up(cluster, until="hal lease take")
    wait_until(lambda: set(cluster.nodes().values()) == {"up"})
    cluster.sh("head", f"{HERE}\nhal node cordon red --reason 'a fan'; hal node label green rack=z")
    cluster.sh("head", "systemctl stop hal-scheduler; rm -r /run/hal; systemctl start hal-scheduler")
    wait_until(lambda: (cluster.nodes().get("red"), cluster.nodes().get("green")) == ("drained", "up"))
    nodes = json.loads(cluster.sh("head", f"{HERE}\nhal node list --json").stdout)["nodes"]
    assert {node["id"]: (node["reason"], node["labels"].get("rack")) for node in nodes} == {
        "green": (None, "z"),
        "local": (None, None),
        "red": ("a fan", "a2"),
    }


def test_a_host_that_is_cut_off_stops_what_it_lends_and_comes_back(cluster: Cluster) -> None:
    set_up(cluster, until="hal lease take", scheduler="lost_seconds = 2\ngrace_seconds = 4")
    wait_until(lambda: set(cluster.nodes().values()) == {"up"})
    take = "exec hal lease take --any 'vendor == \"amd\":2GiB'"
    holder = subprocess.Popen(
        cluster.host("head").command("sh", "-euc", f"{HERE}\n{take}"),
        env=cluster.envs["head"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and " on red/" in holder.stdout.readline()
        assert cluster.sh("red", "ls /run/hal/slices/*.ledger").returncode == 0
        cluster.host("red").cut_off()
        wait_until(lambda: cluster.nodes()["red"] == "lost", seconds=30)
        wait_until(lambda: "cut off" in cluster.log("red", "hal-agent"), seconds=30)
        wait_until(lambda: "ledger" not in cluster.sh("red", "ls /run/hal/slices").stdout, seconds=30)
        assert holder.wait(timeout=60) != 0
        cluster.host("red").mend()
        wait_until(lambda: cluster.nodes()["red"] == "up", seconds=60)
    finally:
        holder.kill()
        holder.communicate()
    said = cluster.log("head", "hal-scheduler")
    assert "warning: node lost: red" in said
    happened = cluster.sh("head", f"{HERE}\nhal events").stdout
    assert re.search(r"suspended.*\n(.*\n)*.*ending.*\n(.*\n)*.*node joined  red", happened), happened


def test_a_short_cut_ends_nothing(cluster: Cluster) -> None:
    set_up(cluster, until="hal lease take", scheduler="lost_seconds = 2\ngrace_seconds = 60")
    wait_until(lambda: set(cluster.nodes().values()) == {"up"})
    take = "exec hal lease take --any 'vendor == \"nvidia\":2GiB'"
    holder = subprocess.Popen(
        cluster.host("head").command("sh", "-euc", f"{HERE}\n{take}"),
        env=cluster.envs["head"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and " on green/" in holder.stdout.readline()
        cluster.host("green").cut_off()
        wait_until(lambda: cluster.nodes()["green"] == "lost", seconds=30)
        cluster.host("green").mend()
        wait_until(lambda: cluster.nodes()["green"] == "up", seconds=60)
        leases = json.loads(cluster.sh("head", f"{HERE}\nhal lease list --json").stdout)["leases"]
        assert [(lease["state"], lease["suspended"]) for lease in leases] == [("active", False)]
        assert holder.poll() is None
    finally:
        holder.kill()
        holder.communicate()
