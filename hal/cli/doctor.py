"""``hal doctor``: every backend with its reason, every device with what can be read of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

from hal.backend import Group, HalError
from hal.cli.output import print_facts, print_json, print_table
from hal.inventory import Machine
from hal.model import Reading, Status
from hal.scheduler.places import Places
from hal.telemetry.catalogue import CATALOGUE

# The best status a group's readings have is what the group can do.
_CAPABILITY = {
    Status.OK: "yes",
    Status.ESTIMATED: "yes",
    Status.SATURATED: "yes",
    Status.DENIED: "denied",
    Status.STALE: "no answer",
    Status.ERROR: "error",
    Status.UNSUPPORTED: "no",
}


def configure_doctor(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "Say for each backend and device what works, what does not, and how to mend it."
    parser.epilog = "example:\n  hal doctor --json"
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.doctor/1)")
    return _doctor


def capabilities(readings: Iterable[Reading]) -> dict[str, dict[str, str]]:
    """By device and group: "yes", "no", "denied", "error" or "no answer"."""
    order = list(_CAPABILITY)
    best: dict[str, dict[str, Status]] = {}
    for reading in readings:
        groups = best.setdefault(reading.subject, {})
        group = CATALOGUE[reading.name].group.value
        groups[group] = min(groups.get(group, reading.status), reading.status, key=order.index)
    return {
        device: {group: _CAPABILITY[status] for group, status in groups.items()}
        for device, groups in best.items()
    }


def _doctor(options: argparse.Namespace) -> int:
    with Machine() as machine:
        inventory = machine.inventory()
        table = capabilities(machine.sample())
        limits = {device.id: machine.limits(device.id) for device in inventory.devices}
        probes = machine.probes()
    service = _service()
    if options.json:
        print_json(
            "hal.doctor/1", backends=probes, capabilities=table, soft_slice_enforcement=limits, **service
        )
        return 0
    print_table(
        ("BACKEND", "STATE", "REASON", "WHAT TO DO"),
        [(name, p.state.value, p.reason or "–", p.fix or "–") for name, p in probes.items()],
    )
    groups = [group.value for group in Group]
    if inventory.devices:
        print()
        print_table(
            ("DEVICE", *(group.upper() for group in groups), "MEMORY OF A PART", "COMPUTE OF A PART"),
            [
                (
                    device.id,
                    *(table.get(device.id, {}).get(group, "no") for group in groups),
                    f"held by {limits[device.id].memory.value}",
                    f"held by {limits[device.id].compute.value}",
                )
                for device in inventory.devices
            ],
        )
    print()
    print_facts((name.replace("_", " "), str(value)) for name, value in service.items())
    return 0


def _service() -> dict[str, str]:
    from hal.scheduler.client import Client
    from hal.scheduler.endpoint import Endpoint
    from hal.scheduler.errors import Unreachable
    from hal.scheduler.lender import Lender
    from hal_native import guard_library

    places = Places()
    try:
        endpoint = Endpoint.chosen()
        with Client(endpoint, timeout=1.0) as client:
            daemon = f"running, process {client.call('hello')['pid']}"
            daemon += "" if endpoint.places else f" at {endpoint.address}"
    except HalError as wrong:
        own = (
            isinstance(wrong, Unreachable) and endpoint.places is not None and not Lender(places).elsewhere()
        )
        daemon = "none is running; 'hal run' starts its own" if own else str(wrong)
    machine = os.environ.get("HAL_EMULATED_MACHINE")
    return {
        "runtime_directory": str(places.directory),
        "scheduler": daemon,
        "guard": str(guard_library()) if guard_library().is_file() else "missing: hal is not installed whole",
        "machine": f"emulated ({machine})" if machine else "this one",
    }
