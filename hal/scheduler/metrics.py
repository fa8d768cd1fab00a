"""``status`` and ``nodes`` as Prometheus reads them (docs/operations.md).

Times are seconds, sizes bytes, shares of a device 0 to 1; what is not known is left out. Counters begin
with the daemon. Users are named nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NODE_STATES = ("up", "cordoned", "draining", "drained", "lost", "absent")
_LEASE_STATES = ("binding", "active", "suspended", "ending")


def exposition(status: dict[str, Any], nodes: Iterable[dict[str, Any]]) -> bytes:
    """The page, of the bodies of the replies to ``status`` and to ``nodes``."""
    return generate_latest(_Page(status, list(nodes)))


class _Page(Collector):
    def __init__(self, status: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
        self._status, self._nodes = status, nodes

    def collect(self) -> Iterator[Metric]:
        status = self._status
        families = chain(_own(status), _fleet(status), _queues(status["queues"]), _by_node(self._nodes))
        return (family for family in families if family.samples)


def _own(status: dict[str, Any]) -> Iterator[Metric]:
    """Of the scheduler itself."""
    yield InfoMetricFamily("hal_scheduler", "The scheduler that runs.", {"version": status["version"]})
    yield GaugeMetricFamily(
        "hal_scheduler_start_time_seconds", "When it started.", status["started_ms"] / 1000
    )
    yield GaugeMetricFamily("hal_scheduler_term", "How often it was started.", status["term"])
    cpu = status["cpu_seconds"]
    yield CounterMetricFamily("hal_scheduler_cpu_seconds", "Processor time that it took.", cpu)
    well = float(status.get("trouble") is None)
    yield GaugeMetricFamily("hal_scheduler_store_writable", "0: nothing new can be promised.", well)
    yield GaugeMetricFamily(
        "hal_scheduler_log_lines_lost",
        "Lines of the log that wait to be told lost.",
        status["log_lines_lost"],
    )
    requests = CounterMetricFamily(
        "hal_scheduler_requests",
        "Requests by operation and outcome; op is empty where it could not be read.",
        labels=("op", "outcome"),
    )
    for op, outcome, count in status["requests"]:
        requests.add_metric((op, outcome), count)
    yield requests
    events = CounterMetricFamily(
        "hal_scheduler_events", "What has happened, as 'hal events' tells it.", labels=("kind",)
    )
    for kind, count in status["events"].items():
        events.add_metric((kind,), count)
    yield events
    commits = status["commits"]
    bounds = [*map(str, commits["bounds"]), "+Inf"]
    yield HistogramMetricFamily(
        "hal_scheduler_commit_seconds",
        "How long it took to make decisions durable.",
        list(zip(bounds, accumulate(commits["counts"]), strict=True)),
        commits["seconds"],
    )


def _fleet(status: dict[str, Any]) -> Iterator[Metric]:
    yield _by_state("hal_leases", "Leases by state.", status["leases"], _LEASE_STATES)
    yield GaugeMetricFamily("hal_waiting_requests", "Requests that wait.", status["waiting"])
    waited = status["longest_wait_seconds"]
    yield GaugeMetricFamily("hal_longest_wait_seconds", "How long the oldest of them waits.", waited)
    yield _by_state("hal_nodes", "Nodes by state.", status["nodes"], _NODE_STATES)
    devices = status["devices"]
    yield GaugeMetricFamily("hal_devices", "Devices of nodes that report.", devices["total"])
    yield GaugeMetricFamily(
        "hal_devices_usable", "Of these, what may be lent: not cordoned and not failed.", devices["usable"]
    )
    yield GaugeMetricFamily("hal_devices_lent", "Of these, what is lent, whole or in part.", devices["lent"])
    yield GaugeMetricFamily("hal_device_memory_bytes", "Memory of these devices.", devices["memory_bytes"])
    yield GaugeMetricFamily("hal_device_memory_lent_bytes", "Memory lent of it.", devices["lent_bytes"])


def _queues(queues: list[dict[str, Any]]) -> Iterator[Metric]:
    def of(name: str, text: str, value: Callable[[dict[str, Any]], float | None]) -> Metric:
        return _gauges(name, text, ("queue",), (((one["name"],), value(one)) for one in queues))

    def devices(limits: dict[str, Any]) -> float | None:
        return None if limits["devices_milli"] is None else limits["devices_milli"] / 1000

    yield of("hal_queue_waiting_requests", "Requests that wait in a queue.", lambda one: one["waiting"])
    yield of("hal_queue_devices", "Devices, or parts, that it has.", lambda one: devices(one["used"]))
    yield of("hal_queue_memory_bytes", "Device memory that it has.", lambda one: one["used"]["memory_bytes"])
    yield of("hal_queue_quota_devices", "What it can always have.", lambda one: devices(one["quota"]))
    yield of("hal_queue_limit_devices", "What it can have at most.", lambda one: devices(one["limit"]))


def _by_node(nodes: list[dict[str, Any]]) -> Iterator[Metric]:
    def of(name: str, text: str, value: Callable[[dict[str, Any]], float | None]) -> Metric:
        return _gauges(name, text, ("node",), (((node["id"],), value(node)) for node in nodes))

    def of_device(name: str, text: str, value: Callable[[dict[str, Any]], float]) -> Metric:
        return _gauges(
            name,
            text,
            ("node", "device", "vendor"),
            (
                ((node["id"], one["id"], one["vendor"]), value(one))
                for node in nodes
                for one in node["devices"]
            ),
        )

    yield of("hal_node_up", "1: it reports.", lambda node: node["state"] not in ("lost", "absent"))
    yield of("hal_node_last_beat_seconds", "Since it was heard last.", lambda node: node["last_beat_seconds"])
    yield of("hal_node_leases", "Leases that have a part of it.", lambda node: node["leases"])
    yield of_device(
        "hal_device_lent_ratio",
        "Share of the device that is lent: of its time or its memory, the greater; 1: it is lent whole.",
        lambda one: max(one["lent_milli"] / 1000, one["lent_bytes"] / max(one["memory_bytes"], 1)),
    )
    yield of_device(
        "hal_device_lent_bytes", "Memory of the device that is lent.", lambda one: one["lent_bytes"]
    )
    yield of_device(
        "hal_device_failed", "1: it has failed, and is not lent.", lambda one: one["failed"] is not None
    )


def _by_state(name: str, text: str, counts: dict[str, int], states: Iterable[str]) -> GaugeMetricFamily:
    """Of each state, also of those that are 0: a series that comes and goes cannot be watched."""
    return _gauges(name, text, ("state",), (((state,), counts.get(state, 0)) for state in states))


def _gauges(
    name: str,
    text: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float | None]],
) -> GaugeMetricFamily:
    """Without those of which nothing is known."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, float(value))
    return family
