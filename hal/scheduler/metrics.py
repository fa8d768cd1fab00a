"""``status`` and ``nodes`` as Prometheus reads them: its text format, version 0.0.4 (docs/operations.md).

Times are seconds, sizes bytes, shares of a device 0 to 1; what is not known is left out. Counters begin
with the daemon. Users are named nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NODE_STATES = ("up", "cordoned", "draining", "drained", "lost", "absent")
_LEASE_STATES = ("binding", "active", "suspended", "ending")

Sample = tuple[dict[str, str], float | None]


def exposition(status: dict[str, Any], nodes: Iterable[dict[str, Any]]) -> str:
    """The page, of the bodies of the replies to ``status`` and to ``nodes``."""
    lines: list[str] = []
    for name, kind, text, samples in _families(status, list(nodes)):
        there = [(labels, value) for labels, value in samples if value is not None]
        if there:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [_line(name, labels, value) for labels, value in there]
    lines += _commits(status["commits"])
    return "\n".join(lines) + "\n"


def _families(
    status: dict[str, Any], nodes: list[dict[str, Any]]
) -> Iterator[tuple[str, str, str, list[Sample]]]:
    info = {"version": status["version"]}
    yield "hal_scheduler_info", "gauge", "The scheduler that runs.", [(info, 1)]
    started = status["started_ms"] / 1000
    yield "hal_scheduler_start_time_seconds", "gauge", "When it started.", [({}, started)]
    yield "hal_scheduler_term", "gauge", "How often it was started.", [({}, status["term"])]
    yield (
        "hal_scheduler_cpu_seconds_total",
        "counter",
        "Processor time that it took.",
        [({}, status["cpu_seconds"])],
    )
    well = float(status.get("trouble") is None)
    yield "hal_scheduler_store_writable", "gauge", "0: nothing new can be promised.", [({}, well)]
    yield "hal_leases", "gauge", "Leases by state.", _by("state", status["leases"], _LEASE_STATES)
    yield "hal_waiting_requests", "gauge", "Requests that wait.", [({}, status["waiting"])]
    waited = status["longest_wait_seconds"]
    yield "hal_longest_wait_seconds", "gauge", "How long the oldest of them waits.", [({}, waited)]
    yield "hal_nodes", "gauge", "Nodes by state.", _by("state", status["nodes"], _NODE_STATES)
    devices = status["devices"]
    for what, text in (
        ("total", "Devices of nodes that report."),
        ("usable", "Of these, what may be lent: not cordoned and not failed."),
        ("lent", "Of these, what is lent, whole or in part."),
    ):
        name = "hal_devices" if what == "total" else f"hal_devices_{what}"
        yield name, "gauge", text, [({}, devices[what])]
    yield "hal_device_memory_bytes", "gauge", "Memory of these devices.", [({}, devices["memory_bytes"])]
    yield "hal_device_memory_lent_bytes", "gauge", "Memory lent of it.", [({}, devices["lent_bytes"])]
    yield from _queues(status["queues"])
    yield from _nodes(nodes)
    requests = [({"op": op, "outcome": outcome}, n) for op, outcome, n in status["requests"]]
    text = "Requests by operation and outcome; op is empty where it could not be read."
    yield "hal_scheduler_requests_total", "counter", text, requests
    events = [({"kind": kind}, n) for kind, n in status["events"].items()]
    yield "hal_scheduler_events_total", "counter", "What has happened, as 'hal events' tells it.", events
    lost = status["log_lines_lost"]
    yield "hal_scheduler_log_lines_lost", "gauge", "Lines of the log that wait to be told lost.", [({}, lost)]


def _queues(queues: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[Sample]]]:
    def of(value: Any) -> list[Sample]:
        return [({"queue": queue["name"]}, value(queue)) for queue in queues]

    def devices(limits: dict[str, Any]) -> float | None:
        return None if limits["devices_milli"] is None else limits["devices_milli"] / 1000

    yield "hal_queue_waiting_requests", "gauge", "Requests that wait in a queue.", of(lambda q: q["waiting"])
    yield "hal_queue_devices", "gauge", "Devices, or parts, that it has.", of(lambda q: devices(q["used"]))
    memory = of(lambda q: q["used"]["memory_bytes"])
    yield "hal_queue_memory_bytes", "gauge", "Device memory that it has.", memory
    yield "hal_queue_quota_devices", "gauge", "What it can always have.", of(lambda q: devices(q["quota"]))
    yield "hal_queue_limit_devices", "gauge", "What it can have at most.", of(lambda q: devices(q["limit"]))


def _nodes(nodes: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[Sample]]]:
    up: list[Sample] = [({"node": n["id"]}, float(n["state"] not in ("lost", "absent"))) for n in nodes]
    yield "hal_node_up", "gauge", "1: it reports.", up
    beats: list[Sample] = [({"node": n["id"]}, n["last_beat_seconds"]) for n in nodes]
    yield "hal_node_last_beat_seconds", "gauge", "Since it was heard last.", beats
    leases: list[Sample] = [({"node": n["id"]}, n["leases"]) for n in nodes]
    yield "hal_node_leases", "gauge", "Leases that have a part of it.", leases
    devices = [
        ({"node": n["id"], "device": d["id"], "vendor": d["vendor"]}, d) for n in nodes for d in n["devices"]
    ]
    yield (
        "hal_device_lent_ratio",
        "gauge",
        "Share of the device's time that is lent; 1 where it is lent whole.",
        [(labels, device["lent_milli"] / 1000) for labels, device in devices],
    )
    yield (
        "hal_device_lent_bytes",
        "gauge",
        "Memory of the device that is lent.",
        [(labels, device["lent_bytes"]) for labels, device in devices],
    )
    yield (
        "hal_device_failed",
        "gauge",
        "1: it has failed, and is not lent.",
        [(labels, float(device["failed"] is not None)) for labels, device in devices],
    )


def _commits(commits: dict[str, Any]) -> list[str]:
    name = "hal_scheduler_commit_seconds"
    lines = [f"# HELP {name} How long it took to make decisions durable.", f"# TYPE {name} histogram"]
    sum_so_far = 0
    for bound, count in zip([*commits["bounds"], "+Inf"], commits["counts"], strict=True):
        sum_so_far += count
        lines.append(_line(f"{name}_bucket", {"le": str(bound)}, sum_so_far))
    return [*lines, _line(f"{name}_sum", {}, commits["seconds"]), _line(f"{name}_count", {}, sum_so_far)]


def _by(label: str, counts: dict[str, int], values: Iterable[str]) -> list[Sample]:
    """Of each value, also of those that are 0: a series that comes and goes cannot be watched."""
    return [({label: value}, counts.get(value, 0)) for value in values]


def _line(name: str, labels: dict[str, str], value: float) -> str:
    said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{said}}} {value!r}" if said else f"{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
