"""``hal list`` and ``hal show``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from hal.cli.output import note, print_facts, print_json, print_table
from hal.inventory import Machine
from hal.model import Device, DeviceKind, ProbeState, Process
from hal.units import format_bytes

Run = Callable[[argparse.Namespace], int]


def configure_list(parser: argparse.ArgumentParser) -> Run:
    parser.description = "List the devices of this machine, all vendors together."
    parser.epilog = "example:\n  hal list --json | jq -r '.devices[].id'"
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.inventory/1)")
    return _list


def configure_show(parser: argparse.ArgumentParser) -> Run:
    parser.description = "Show one device: what it is, its slices, its readings and its processes."
    parser.epilog = "example:\n  hal show amd:pci-0000:9b:00.0"
    parser.add_argument("device", metavar="ID", help="its id, or a part of it that fits no other")
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.device/1)")
    return _show


def _list(options: argparse.Namespace) -> int:
    with Machine() as machine:
        inventory = machine.inventory()
        if options.json:
            print_json("hal.inventory/1", backends=machine.probes(), **_fields(inventory))
        else:
            print_devices(inventory.devices)
        say_what_is_missing(machine)
    if not options.json and all(device.kind is DeviceKind.CPU for device in inventory.devices):
        print("\nThis machine has no accelerator that hal can see; 'hal doctor' says what it looked for.")
    return 0


def print_devices(devices: Iterable[Device]) -> None:
    print_table(
        ("ID", "KIND", "MODEL", ">MEMORY", ">UNITS", "ARCH", ">NUMA", "DRIVER"),
        [
            (
                device.id,
                device.kind.value,
                device.model,
                format_bytes(device.memory_bytes),
                _or_dash(device.compute_units),
                device.architecture or "–",
                _or_dash(device.numa_node),
                device.driver or "–",
            )
            for device in devices
        ],
    )


def say_what_is_missing(machine: Machine) -> None:
    """On stderr: vendors whose devices may be here but cannot be used."""
    for name, probe in machine.probes().items():
        if probe.state in (ProbeState.BLOCKED, ProbeState.BROKEN):
            note(f"{name}: {probe.reason}" + (f" ({probe.fix})" if probe.fix else ""))


def _show(options: argparse.Namespace) -> int:
    with Machine() as machine:
        device = machine.find(options.device)
        slices = [one for one in machine.inventory().slices if one.device == device.id]
        readings = machine.sample(ids=[device.id])
        processes = machine.processes([device.id])
        limits = machine.limits(device.id)
        if options.json:
            print_json(
                "hal.device/1",
                device=device,
                slices=slices,
                readings=readings,
                processes=processes,
                soft_slice_enforcement=limits,
            )
            return 0
    facts = [
        ("id", device.id),
        ("model", device.model),
        ("vendor", device.vendor),
        ("kind", device.kind.value),
        ("architecture", device.architecture or "–"),
        ("compute units", _or_dash(device.compute_units)),
        *((f"heap {heap.name}", format_bytes(heap.total_bytes)) for heap in device.heaps),
        ("PCI address", device.pci.bdf if device.pci else "–"),
        ("NUMA node", _or_dash(device.numa_node)),
        ("UUID", device.uuid or "–"),
        ("serial", device.serial or "–"),
        ("driver", device.driver or "–"),
        ("numbered by others", ", ".join(f"{k} {v}" for k, v in device.indices.items()) or "–"),
        *sorted(device.attributes.items()),
        ("a part of it is held by", f"memory: {limits.memory.value}, compute: {limits.compute.value}"),
    ]
    print_facts(facts)
    print()
    print_table(
        ("SLICE", "KIND", ">MEMORY", "MEMORY HELD BY", "COMPUTE HELD BY"),
        [
            (
                one.id,
                one.kind.value,
                format_bytes(one.memory.bytes),
                one.enforcement.memory.value,
                one.enforcement.compute.value,
            )
            for one in slices
        ],
    )
    print()
    from hal.cli.sample import print_readings

    print_readings(readings)
    print_processes(processes)
    return 0


def print_processes(processes: list[Process]) -> None:
    """Who uses the devices; nothing when nobody does."""
    if not processes:
        return
    print()
    print_table(
        (">PID", "PROCESS", ">MEMORY", "DEVICE"),
        [(str(p.pid), p.name or "–", format_bytes(p.memory_bytes), p.device) for p in processes],
    )


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)


def _fields(inventory: object) -> dict[str, object]:
    from msgspec import structs

    return structs.asdict(inventory)  # type: ignore[arg-type]
