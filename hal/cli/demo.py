"""``hal demo``: the main job, step by step, on what the machine has."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hal.backend import Group, HalError, UnsupportedError
from hal.cli.child import adopt_orphans, end_orphans, supervise
from hal.cli.inventory import print_devices, say_what_is_missing
from hal.cli.lease import print_leases
from hal.cli.output import print_table
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.inventory import Machine
from hal.model import Device, Rung
from hal.scheduler.client import Client
from hal.scheduler.errors import Unreachable
from hal.scheduler.lease import HeldLease, lease
from hal.scheduler.places import Places
from hal.units import format_bytes
from hal_native import program

_MIB = 1 << 20
_GIB = 1 << 30
_SLICE = 20 * _GIB
_NEIGHBOUR = 8 * _GIB
_EMULATED = "mixed"


def configure_demo(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Show on this machine what hal does: list the devices, start a scheduler, lease a slice of one\n"
        "device of each vendor, fill it until the guard refuses, look at it through the vendor's own\n"
        "library, give everything back. Without an accelerator it happens on an emulated machine."
    )
    parser.epilog = "example:\n  hal demo"
    parser.add_argument("--here", action="store_true", help="never emulate: this machine or nothing")
    return _demo


def _demo(options: argparse.Namespace) -> int:
    with Machine() as machine:
        real = _shareable(machine)
        say_what_is_missing(machine)
    if options.here and not real:
        raise UnsupportedError("this machine has no accelerator that can be shared; see 'hal doctor'")
    if options.here:
        return _show(Machine())
    if real:
        print("Using the accelerators of this machine.")
        return _show(Machine())
    description = load(_EMULATED)
    print(
        f"No accelerator in this machine, so this is an emulated one: {description.description}.\n"
        "The vendors' Python libraries are real; the drivers under them are hal's stand-ins."
    )
    adopt_orphans()
    with emulated(description) as env:
        try:
            return supervise([sys.executable, "-m", "hal", "demo", "--here"], [env])
        finally:
            end_orphans()


def _show(machine: Machine) -> int:
    with ExitStack() as stack:
        stack.enter_context(machine)
        _step("What is here")
        print_devices(machine.inventory().devices)

        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hal-demo-")))
        places = Places(directory / "run")
        _step("A scheduler, for this user only")
        daemon = stack.enter_context(_scheduler(places))
        print(f"serving leases at {places.socket} (process {daemon.pid})")

        outcomes = [_one_vendor(machine, device, places) for device in _shareable(machine)]

        _step("Afterwards")
        with Client(places) as client:
            left = client.call("list")["leases"]
        print(f"leases left: {len(left)}")
        daemon.terminate()
        print(f"scheduler: ended with code {daemon.wait()}")
        files = [path for path in directory.rglob("*") if path.is_file() or path.is_socket()]
        print(f"files left: {len(files)}")
        ok = all(outcomes) and not left and not files and daemon.returncode == 0
        print("\nEverything was given back." if ok else "\nThis did not go as it should; see above.")
        return 0 if ok else 1


def _one_vendor(machine: Machine, device: Device, places: Places) -> bool:
    _step(f"A slice of one {device.model}")
    before = _used(machine, device)
    memory = device.memory_bytes or 0
    # Real cards may be small, or partly in use: then the slices are smaller, in the same proportion.
    scale = min(1.0, (memory - before) * 0.8 / (_SLICE + _NEIGHBOUR))
    size, beside = (int(wanted * scale) // _GIB * _GIB for wanted in (_SLICE, _NEIGHBOUR))
    with ExitStack() as stack:

        def slice_of(bytes_: int, name: str) -> HeldLease:
            return stack.enter_context(lease(memory_bytes=bytes_, device=device.id, name=name, places=places))

        slice_, neighbour = slice_of(size, "slice"), slice_of(beside, "neighbour")
        with Client(places) as client:
            print_leases([x for x in client.call("list")["leases"] if x["device"] == device.id])
        print()
        other = stack.enter_context(_program(neighbour))
        other.ask(f"alloc {beside // 2 // _MIB}")
        inside = stack.enter_context(_program(slice_))
        rows = []
        quarter = size // 4
        for _ in range(3):
            answer = inside.ask(f"alloc {quarter // _MIB}")
            rows.append(_row(machine, device, inside, f"allocates {format_bytes(quarter)}", answer))
        answer = inside.ask(f"fill {quarter // 4 // _MIB}")
        rows.append(_row(machine, device, inside, "allocates until it is refused", answer))
        print_table(
            ("THE PROGRAM IN THE SLICE", ">IT HOLDS", "IT IS TOLD", ">VENDOR SAYS: PROGRAM", ">WHOLE CARD"),
            rows,
        )
        print(f"(the vendor's figures are from {_source(machine, device)})")
        refused_at = int(answer["held"])
        after = other.ask(f"alloc {beside // 4 // _MIB}")
        unharmed = after["word"] == "allocated"
        print(
            f"\nrefused past {format_bytes(refused_at)} with the vendor's own {answer.get('name')} "
            f"(code {answer.get('code')})"
        )
        print(
            f"the neighbour on the same card: {'unharmed, ' if unharmed else 'HARMED, '}"
            f"holds {format_bytes(int(after['held']))} of its {format_bytes(beside)}"
        )
    given_back = _settles(machine, device, before)
    print(f"after the release, in use on the card: {format_bytes(_used(machine, device))}")
    return refused_at == size and answer["word"] == "refused" and unharmed and given_back


class _Talk:
    """A running hal-allocate: one command, one answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(self._answer()["pid"])

    def ask(self, command: str) -> dict[str, str]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HalError(f"the program in the slice ended early (code {self._process.wait()})")
        word, *pairs = line.split()
        return {"word": word} | dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@contextmanager
def _program(held: HeldLease) -> Iterator[_Talk]:
    command = [str(program("hal-allocate")), "auto"]
    with subprocess.Popen(
        command,
        env=held.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield _Talk(process)
        # Leaving the with closes its input, and it ends.


@contextmanager
def _scheduler(places: Places) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "hal", "serve"]
    env = {**os.environ, "HAL_RUNTIME_DIR": str(places.directory), "HAL_STATE_DIR": str(places.directory)}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as daemon:
        try:
            with Client(places, timeout=1.0) as client:
                deadline = time.monotonic() + 20
                while True:
                    try:
                        client.call("hello")
                        break
                    except Unreachable:
                        if daemon.poll() is not None or time.monotonic() > deadline:
                            raise
                        time.sleep(0.02)
            yield daemon
        finally:
            if daemon.poll() is None:
                daemon.terminate()


def _shareable(machine: Machine) -> list[Device]:
    """The first device of each vendor of which a part can be held to its limit."""
    first: dict[str, Device] = {}
    for device in machine.inventory().devices:
        if device.memory_bytes and machine.limits(device.id).memory is not Rung.NONE:
            first.setdefault(device.vendor, device)
    return list(first.values())


def _row(
    machine: Machine, device: Device, inside: _Talk, what: str, answer: dict[str, str]
) -> tuple[str, str, str, str, str]:
    told = "success" if answer["word"] == "allocated" else f"{answer.get('name')} ({answer.get('code')})"
    own = next((p.memory_bytes for p in machine.processes([device.id]) if p.pid == inside.pid), None)
    return (
        what,
        format_bytes(int(answer["held"])),
        told,
        format_bytes(own),
        format_bytes(_used(machine, device)),
    )


def _source(machine: Machine, device: Device) -> str:
    return next(
        r.source for r in machine.sample([Group.MEMORY], [device.id]) if r.name == "memory_used_bytes"
    )


def _used(machine: Machine, device: Device) -> int:
    for reading in machine.sample([Group.MEMORY], [device.id]):
        if reading.name == "memory_used_bytes" and reading.value is not None:
            return int(reading.value)
    return 0


def _settles(machine: Machine, device: Device, before: int) -> bool:
    """Drivers take a moment to take back what an ended process held."""
    deadline = time.monotonic() + 5
    while _used(machine, device) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    return _used(machine, device) <= before


def _step(title: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}── {title} {'─' * max(70 - len(title), 3)}{plain}", flush=True)
