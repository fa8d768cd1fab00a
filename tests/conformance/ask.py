"""Asks one backend everything, in a process of its own, and prints the answers: ``ask.py ENTRY-POINT``.

It runs where the vendor's library is found: on an emulated machine, or for the others on this one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import msgspec

from hal.backend import Group

UNKNOWN = "no-such-device"
REQUIRED = ("probe", "enumerate", "sample", "close")
OPTIONAL = ("processes", "expose", "limits")


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or the name and words of what was raised."""
    try:
        return call(*arguments)
    except Exception as error:
        return {
            "raised": type(error).__name__,
            "kinds": [k.__name__ for k in type(error).__mro__],
            "says": str(error),
        }


def everything(name: str) -> dict[str, Any]:
    (point,) = entry_points(group="hal.backends", name=name)
    backend = point.load()()
    calls = [call for call in (*REQUIRED, *OPTIONAL) if callable(getattr(backend, call, None))]
    answers: dict[str, Any] = {
        "name": backend.name,
        "calls": calls,
        "probes": [backend.probe(), backend.probe()],
    }
    first = backend.enumerate()
    answers["inventory"], answers["again"] = first, backend.enumerate()
    ids = [device.id for device in first.devices]
    stranger = f"{name}:{UNKNOWN}"
    for _ in range(2):  # the first look may have to wait for a window
        now = time.monotonic()
        answers["all"] = backend.sample(tuple(Group), ids, now + 10)
    answers["groups"] = {group: backend.sample((group,), ids, time.monotonic() + 10) for group in Group}
    answers["each"] = {id: backend.sample(tuple(Group), [id], time.monotonic() + 10) for id in ids}
    answers["no_groups"] = backend.sample((), ids, time.monotonic() + 10)
    answers["no_ids"] = backend.sample(tuple(Group), [], time.monotonic() + 10)
    answers["late"] = backend.sample(tuple(Group), ids, time.monotonic() - 1)
    unknown = {"sample": outcome(backend.sample, tuple(Group), [stranger], time.monotonic() + 10)}
    if "processes" in calls:
        answers["processes"] = backend.processes(ids, time.monotonic() + 10)
        unknown["processes"] = outcome(backend.processes, [stranger], time.monotonic() + 10)
        answers["late_processes"] = outcome(backend.processes, ids, time.monotonic() - 1)
    if "expose" in calls:
        shown = {"none": [], "all": ids, "reversed": ids[::-1]} | {id: [id] for id in ids}
        answers["expose"] = {label: backend.expose(wanted) for label, wanted in shown.items()}
        unknown["expose"] = outcome(backend.expose, [stranger])
    if "limits" in calls:
        answers["limits"] = backend.limits()
    answers["unknown"] = unknown
    backend.close()
    backend.close()
    answers["reopened"] = backend.enumerate()
    backend.close()
    return answers


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(everything(sys.argv[1])))
