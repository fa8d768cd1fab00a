"""A cluster of three hosts on one machine, and what docs/operations.md says to type on them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hal.emulation.description import load
from hal.emulation.run import emulated
from tests.netns import Host, Network

__all__ = ["HERE", "Cluster", "blocks", "set_up"]

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text()
MACHINES = {"head": "none", "green": "l40s-4", "red": "mi210-4"}
GONE = ("HAL_RUNTIME_DIR", "HAL_STATE_DIR", "HAL_NODE_DIR")  # each host has its own /run and /dev/shm
HERE = "export HAL_SCHEDULER=ipc:///run/hal/scheduler.sock"

# `scp -p FILE HOST:PATH`, where the hosts share all but some directories.
SCP = """#!/bin/sh
shift
cp -p "$1" "$STARTED/passed"
to=${2%%:*}
eval "exec $(cat "$STARTED/enter-$to") cp -p $STARTED/passed ${2#*:}"
"""


def blocks() -> list[tuple[list[str], str]]:
    """What the page says to type, and on which hosts."""
    found = re.findall(r"<!-- at: ([a-z ]+) -->\n```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    return [(hosts.split(), text) for hosts, text in found]


class Cluster:
    """Three hosts, and what was started on them."""

    def __init__(self, stack: ExitStack, folder: Path, **machines: str) -> None:
        self.folder = folder
        tools = folder / "tools"
        tools.mkdir()
        (tools / "scp").write_text(SCP)
        (tools / "systemctl").write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/systemctl.py "$@"\n')
        (tools / "hal").write_text(f'#!/bin/sh\nexec {sys.executable} -m hal "$@"\n')
        for tool in tools.iterdir():
            tool.chmod(0o755)
        stack.callback(self._end)
        network = Network(stack)
        self.envs: dict[str, dict[str, str]] = {}
        for name, machine in (MACHINES | machines).items():
            host = network.add(name)
            env = dict(stack.enter_context(emulated(load(machine))))
            env = {key: value for key, value in env.items() if key not in (*GONE, "XDG_RUNTIME_DIR")}
            own = {"HOST": name, "STARTED": str(folder), "PATH": f"{tools}:{os.environ['PATH']}"}
            self.envs[name] = env | own
            (folder / f"enter-{name}").write_text(" ".join(host.command()))
        self.hosts = network.hosts

    def host(self, name: str) -> Host:
        return self.hosts[name]

    def sh(self, name: str, text: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """As root types it there: what fails ends it."""
        done = self.hosts[name].run(
            "sh", "-euc", text, **({"env": self.envs[name], "check": False} | options)
        )
        assert done.returncode == 0, f"on {name}: {text}\n{done.stdout}{done.stderr}"
        return done

    def nodes(self) -> dict[str, str]:
        """Their states."""
        said = self.sh("head", f"{HERE}\nhal node list --json")
        return {node["id"]: node["state"] for node in json.loads(said.stdout)["nodes"]}

    def log(self, name: str, unit: str) -> str:
        return (self.folder / f"{name}-{unit}.log").read_text()

    def _end(self) -> None:
        for file in self.folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def set_up(cluster: Cluster, *, until: str, scheduler: str = "") -> None:
    """Do what the page says, up to the block that has ``until`` in it."""
    for hosts, text in blocks():
        if until in text:
            return
        for host in hosts:
            if scheduler:
                text = text.replace("[scheduler]\n", f"[scheduler]\n{scheduler}\n")
            cluster.sh(host, text)
