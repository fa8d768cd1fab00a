"""What an agent keeps on its node's disk, as one version had it, for the next one to take over.

`python -m tests.kept FILE` records it anew, when a version is released: the file of the version before stays,
and is taken over by the present code (tests/integration/test_skew.py). Of a slice's file, which has 1.2 MB,
only what is not 0 is kept.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.inventory import Machine
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.binding import Binding, BindOrder, BoundPart, RunOrder
from hal.scheduler.agent.slices import Slices
from hal.scheduler.agent.until import boot, clock
from hal.scheduler.core.fleet import Spot
from hal.scheduler.core.shape import Shape
from hal.scheduler.jobs import table
from hal.scheduler.jobs.launch import Launcher
from hal.scheduler.jobs.spec import JobSpec
from hal.scheduler.places import Places
from hal.scheduler.sections import JobsSection
from hal_native import drivers_directory
from tests.conftest import ALLOCATE, wait_until

__all__ = ["KEPT", "unpack"]

KEPT = sorted((Path(__file__).parent / "recorded").glob("node-*.json"))
GIB = 1 << 30
_ZEROS = re.compile(rb"\0{64,}")
_LEFT_OUT = (".spare", ".lock")


def unpack(recorded: dict[str, Any], directory: Path) -> None:
    """Its files, with this directory and this boot of the machine in place of those of then."""
    for name, text in recorded["files"].items():
        path = directory / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = text.replace("/run/hal", str(directory)).replace("BOOT", boot())
        path.write_bytes(now.encode("latin-1"))
    for name, ledger in recorded["ledgers"].items():
        with (directory / name).open("xb") as file:
            file.truncate(ledger["size"])
            for at, content in ledger["bytes"].items():
                file.seek(int(at))
                file.write(bytes.fromhex(content))


def _pack(directory: Path) -> dict[str, Any]:
    files, ledgers = {}, {}
    named = {str(directory): "/run/hal", str(directory.parent): "/tmp/machine", boot(): "BOOT"}
    named[str(drivers_directory().parent)] = "/opt/hal"
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(directory)), path.read_bytes()
        if path.suffix == ".ledger":
            ledgers[name] = {"size": len(content), "bytes": dict(_runs(content))}
        elif path.suffix not in _LEFT_OUT:
            text = content.decode("latin-1")
            for before, after in named.items():
                text = text.replace(before, after)
            files[name] = text
    return {"files": files, "ledgers": ledgers}


def _runs(content: bytes) -> list[tuple[int, str]]:
    found, at = [], 0
    for zeros in [*_ZEROS.finditer(content), None]:
        end = len(content) if zeros is None else zeros.start()
        if end > at:
            found.append((at, content[at:end].hex()))
        at = end if zeros is None else zeros.end()
    return found


def _record() -> dict[str, Any]:
    """A slice with a share of the time, in which one job has ended and one runs; and a whole device."""
    places = Places()
    me = pwd.getpwuid(os.geteuid()).pw_name
    plain = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
    launcher = Launcher(JobsSection(run_as={"alice": me}), own=False, inherited={**os.environ, **plain})
    with Machine() as machine:
        agent = Agent(Slices(machine, places), places, "green", launcher)
        agent.start()
        first, second = [one.id for one in agent.facts().devices if one.vendor == "nvidia"][:2]
        part = Spot("green", (first,), Shape(memory_bytes=2 * GIB, compute_milli=300))
        whole = Spot("green", (second,), Shape(memory_bytes=0, whole=True))
        agent.bind(BindOrder(7, Binding("SLICE-01", 3, "train", 1000, 2, (BoundPart(0, (part,)),))))
        agent.bind(BindOrder(7, Binding("WHOLE-01", 4, "all", 1000, 1, (BoundPart(0, (whole,)),))))
        agent.allow(clock() + 55)
        holds = f"sleep 1000 | {ALLOCATE} cuda 'alloc 512' wait"
        for lease, epoch, script in (("WHOLE-01", 4, "echo said; exit 3"), ("SLICE-01", 3, holds)):
            spec = JobSpec(["/bin/sh", "-c", script], {"BROUGHT": "it"}, "/")
            agent.run(RunOrder(7, lease, epoch, 0, "job-1", "alice", 1000, spec, {"RANK": "0"}))

        def settled() -> bool:
            agent.turn(clock())
            return bool(agent.ended_runs()) and agent.use("SLICE-01")[0].used_bytes == GIB // 2

        try:
            wait_until(settled)
            found = _pack(places.directory)
            found["told"] = msgspec.to_builtins({
                "bound": agent.bound(), "term": 7, "runs": agent.ended_runs(), "use": agent.use("SLICE-01"),
            })  # fmt: skip
        finally:
            agent.stop_all()
            wait_until(lambda: agent.turn(clock()) or not agent.busy)
            agent.close()
    # What an agent sends to a supervisor, by what it means.
    found["signals"] = {"end": 15, "kill": int(table._KILL), "SIGTERM": int(table._PASS_TERM), "SIGUSR1": 10}
    return found


if __name__ == "__main__":
    with emulated(load("l40s-4")) as env:
        os.environ.update(env)
        recording = {"version": version("gpu-hal"), **_record()}
    Path(sys.argv[1]).write_text(json.dumps(recording, indent=1) + "\n")
