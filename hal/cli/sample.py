"""``hal sample``: once, or at a steady pace."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice

from hal.backend import Group
from hal.cli.exits import UsageError
from hal.cli.inventory import print_processes, say_what_is_missing
from hal.cli.output import cell, print_json, print_table
from hal.inventory import Machine
from hal.model import Device, DeviceKind, Reading, Status, jsonable
from hal.telemetry.sampler import Sampler

_ALL = tuple(group.value for group in Group)
_GLANCE = (Group.MEMORY, Group.ACTIVITY, Group.POWER, Group.TEMPERATURE)


def configure_sample(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Read how the devices are doing. The table shows memory, activity, power and temperature;\n"
        "with --groups it lists every figure of those groups."
    )
    parser.epilog = (
        "examples:\n  hal sample\n  hal sample --groups clocks,errors 0000:9b\n  hal sample --watch 1\n"
        "  hal sample --watch 5 --json >> log.jsonl"
    )
    parser.add_argument("devices", metavar="ID", nargs="*", help="these devices only")
    parser.add_argument("--groups", metavar="NAMES", help=f"with commas between: all, {', '.join(_ALL)}")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=1.0,
        help="again and again, until stopped",
    )
    parser.add_argument("--count", metavar="N", type=int, help="with --watch: stop after so many samples")
    parser.add_argument(
        "--json", action="store_true", help="print JSON (schema hal.samples/1); with --watch a line each"
    )
    return _sample


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.05 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("an interval is between 0.05 and 86400 seconds")
    return seconds


def _sample(options: argparse.Namespace) -> int:
    groups = _groups(options.groups)
    with Machine() as machine:
        ids = [machine.find(text).id for text in options.devices] or None
        devices = [d for d in machine.inventory().devices if ids is None or d.id in ids]
        if options.watch is not None:
            return _watch(options, Sampler(machine, groups or _GLANCE, ids, interval=options.watch), devices)
        readings = machine.sample(groups or (None if options.json else _GLANCE), ids)
        processes = machine.processes(ids)
        if options.json:
            print_json("hal.samples/1", readings=readings, processes=processes)
        else:
            _print(devices, readings, every=groups is not None)
            accelerated = {d.id for d in devices if d.kind is not DeviceKind.CPU}
            print_processes([p for p in processes if ids is not None or p.device in accelerated])
        say_what_is_missing(machine)
    return 0


def _watch(options: argparse.Namespace, sampler: Sampler, devices: list[Device]) -> int:
    clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
    for sample in islice(sampler, options.count):
        if options.json:
            print(
                json.dumps(
                    {"schema": "hal.samples/1", "time": sample.time, "readings": jsonable(sample.readings)}
                )
            )
        else:
            stamp = time.strftime("%H:%M:%S", time.localtime(sample.time))
            print(f"{clear}{stamp}, read in {sample.seconds * 1000:.1f} ms")
            _print(devices, list(sample.readings), every=options.groups is not None)
            print(end="" if clear else "\n")
        sys.stdout.flush()
    return 0


# column: the reading's name and the labels that it has to carry
_COLUMNS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (">USED", "memory_used_bytes", {}),
    (">MEMORY", "memory_total_bytes", {}),
    (">COMPUTE", "compute_busy_ratio", {}),
    (">BANDWIDTH", "memory_bandwidth_busy_ratio", {}),
    (">POWER", "power_watts", {}),
    (">LIMIT", "power_limit_watts", {}),
    (">CORE", "temperature_celsius", {"sensor": "core"}),
    (">HOTSPOT", "temperature_celsius", {"sensor": "hotspot"}),
    (">HBM", "temperature_celsius", {"sensor": "memory"}),
)


def _print(devices: list[Device], readings: list[Reading], *, every: bool) -> None:
    if every:
        print_readings(readings)
        return
    asked = {reading.name for reading in readings}
    columns = [column for column in _COLUMNS if column[1] in asked]
    subjects = list(dict.fromkeys([*(d.id for d in devices), *(r.subject for r in readings)]))
    print_table(
        ("ID", *(title for title, _, _ in columns)),
        [(s, *(cell(_best(readings, s, name, labels)) for _, name, labels in columns)) for s in subjects],
    )


def _best(readings: list[Reading], subject: str, name: str, labels: dict[str, str]) -> Reading | None:
    """The reading for a cell: of several (average and instant power), one with a value."""
    matching = [
        r for r in readings if r.subject == subject and r.name == name and labels.items() <= r.labels.items()
    ]
    return next((r for r in matching if r.value is not None), matching[0] if matching else None)


def print_readings(readings: Iterable[Reading]) -> None:
    print_table(
        ("DEVICE", "READING", ">VALUE", "STATUS", "SCOPE", "SOURCE"),
        [(r.subject, _name(r), cell(r), _status(r), r.scope.value, r.source) for r in readings],
    )


def _status(reading: Reading) -> str:
    plain = reading.status in (Status.OK, Status.UNSUPPORTED) or not reading.detail
    return reading.status.value if plain else f"{reading.status.value}: {reading.detail}"


def _name(reading: Reading) -> str:
    labels = ",".join(f"{key}={value}" for key, value in reading.labels.items())
    return f"{reading.name}{{{labels}}}" if labels else reading.name


def _groups(text: str | None) -> list[Group] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return list(Group)
    unknown = [word for word in words if word not in _ALL]
    if unknown:
        raise UsageError(f"no group '{unknown[0]}'; the groups are: all, {', '.join(_ALL)}")
    return [Group(word) for word in words]
