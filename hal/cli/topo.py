"""``hal topo``: as a matrix and as a tree."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from hal.cli.output import print_json, print_table
from hal.inventory import Machine
from hal.model import Device, DeviceKind, Link
from hal.topology import KINDS, LEVELS, Branch, by_node, matrix, pairs, tree
from hal.units import format_bytes


def configure_topo(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Show how the accelerators are connected: as a matrix of the closest link between each two, and as\n"
        "a tree of NUMA nodes and PCIe bridges. A bandwidth is that of one direction."
    )
    parser.epilog = (
        "examples:\n  hal topo\n  hal topo --tree\n  hal topo --json | jq '.links[] | {a, b, level}'"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--matrix", action="store_true", help="the matrix only")
    shape.add_argument("--tree", action="store_true", help="the tree only")
    shape.add_argument("--json", action="store_true", help="print JSON (schema hal.topology/1)")
    return _topo


def _topo(options: argparse.Namespace) -> int:
    with Machine() as machine:
        inventory = machine.inventory()
    devices = [device for device in inventory.devices if device.kind is not DeviceKind.CPU]
    table = matrix(devices, inventory.links)
    branches = tree(devices)
    if options.json:
        ids = [device.id for device in devices]
        nodes = [{"numa_node": n, "devices": [d.id for d in on]} for n, on in by_node(devices).items()]
        print_json("hal.topology/1", devices=ids, links=pairs(table), nodes=nodes, tree=branches)
        return 0
    if not devices:
        print("This machine has no accelerator that hal can see; 'hal doctor' says what it looked for.")
        return 0
    if not options.tree:
        _print_matrix(devices, table)
    if not (options.tree or options.matrix):
        print()
    if not options.matrix:
        by_id = {device.id: device for device in devices}
        for branch in branches:
            print(branch.name)
            _print_below(branch, by_id, "")
    return 0


def _print_matrix(devices: list[Device], table: list[list[Link | None]]) -> None:
    print_table(
        ("", *(f"[{n}]" for n in range(len(devices))), "DEVICE"),
        [
            (f"[{n}]", *("–" if n == m else _word(link) for m, link in enumerate(row)), device.id)
            for n, (device, row) in enumerate(zip(devices, table, strict=True))
        ],
    )
    words = {_kind(link) for link in pairs(table)}
    if len(devices) > 1:
        print()
    for word, meaning in [*KINDS.items(), *LEVELS.items()]:
        if word in words:
            print(f"{word:<7} {meaning}")
    if any(link is None for n, row in enumerate(table) for m, link in enumerate(row) if n != m):
        print("?       nothing says")


def _kind(link: Link) -> str:
    """What to call a link: by its kind, and over PCIe by its level where that is known."""
    return link.level if link.kind == "pcie" and link.level is not None else link.kind


def _word(link: Link | None) -> str:
    if link is None:
        return "?"
    count = "" if link.count is None else f" ×{link.count}"
    speed = link.bandwidth_bytes_per_second
    return _kind(link) + count + ("" if speed is None else f" {format_bytes(speed)}/s")


def _print_below(branch: Branch, devices: Mapping[str, Device], indent: str) -> None:
    entries: list[Branch | Device] = [*branch.branches, *(devices[id] for id in branch.devices)]
    for number, entry in enumerate(entries):
        last = number == len(entries) - 1
        corner = "└─" if last else "├─"
        if isinstance(entry, Branch):
            print(f"{indent}{corner} bridge {entry.name.removeprefix('pci')}")
            _print_below(entry, devices, indent + ("   " if last else "│  "))
        else:
            place = f" at {entry.pci.bdf}" if entry.pci else ""
            print(f"{indent}{corner} {entry.id}  {entry.model}{place}")
