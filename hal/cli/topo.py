"""``hal topo``: as a matrix and as a tree."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hal.cli.output import print_json, print_table
from hal.inventory import Machine
from hal.model import Device, DeviceKind, Link
from hal.topology import LEVELS, matrix, tree
from hal.units import format_bytes


def configure_topo(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "Show how the accelerators are connected, as a matrix and as a tree of NUMA nodes."
    parser.epilog = "example:\n  hal topo --json"
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.topology/1)")
    return _topo


def _topo(options: argparse.Namespace) -> int:
    with Machine() as machine:
        inventory = machine.inventory()
    devices = [device for device in inventory.devices if device.kind is not DeviceKind.CPU]
    table = matrix(devices, inventory.links)
    if options.json:
        nodes = [{"numa_node": node, "devices": [d.id for d in on]} for node, on in tree(devices).items()]
        pairs = [link for n, row in enumerate(table) for link in row[n + 1 :] if link is not None]
        print_json("hal.topology/1", devices=[d.id for d in devices], links=pairs, nodes=nodes)
        return 0
    if not devices:
        print("This machine has no accelerator that hal can see; 'hal doctor' says what it looked for.")
        return 0
    print_table(
        ("", *(f"[{n}]" for n in range(len(devices))), "DEVICE"),
        [
            (f"[{n}]", *(_word(link, n == m) for m, link in enumerate(row)), device.id)
            for n, (device, row) in enumerate(zip(devices, table, strict=True))
        ],
    )
    print()
    used = {link.kind for row in table for link in row if link is not None}
    for kind, meaning in LEVELS.items():
        if kind in used:
            print(f"{kind:<9} {meaning}")
    print("?       no driver says\n")
    _print_tree(devices)
    return 0


def _word(link: Link | None, same: bool) -> str:
    if same:
        return "–"
    if link is None:
        return "?"
    speed = link.bandwidth_bytes_per_second
    return link.kind if speed is None else f"{link.kind} {format_bytes(speed)}/s"


def _print_tree(devices: list[Device]) -> None:
    for node, on_node in tree(devices).items():
        print("NUMA node unknown" if node is None else f"NUMA node {node}")
        for number, device in enumerate(on_node):
            branch = "└─" if number == len(on_node) - 1 else "├─"
            place = f" at {device.pci.bdf}" if device.pci else ""
            print(f"{branch} {device.id}  {device.model}{place}")
