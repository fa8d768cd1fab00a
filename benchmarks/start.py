"""`hal list` where there is no accelerator, from start to end, over the start of the bare interpreter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from benchmarks.frame import Figure, NotMeasured, at_most, compared
from benchmarks.installed import environment, path_of, program

LIMIT = 60  # milliseconds


def figures() -> Iterator[Figure]:
    command = [str(path_of("hal")), "list", "--json"]
    said = json.loads(subprocess.run(command, env=environment(), capture_output=True, check=True).stdout)
    there = [name for name, probe in said["backends"].items() if probe["state"] != "absent" and name != "cpu"]
    if there:
        raise NotMeasured(f"this machine has something for hal to find: {', '.join(there)}")
    both = compared(program("hal", "list"), program("python", "-c", "pass"), rounds=25)
    remark = f"{both.first * 1e3:.0f} ms, python -c pass {both.second * 1e3:.0f} ms"
    yield at_most("`hal list` without hardware - python", both.difference * 1e3, "ms", LIMIT, remark)
