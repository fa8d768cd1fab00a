"""The rows of the table: each starts what it needs, loads it, and says what came of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from hal.backend import StateError
from hal.emulation.description import load as load_description
from hal.emulation.run import emulated
from hal.scheduler.bench.figures import Figure, at_least, at_most, missing
from hal.scheduler.bench.load import Measured

__all__ = ["ROWS", "at_address", "quantile"]

_START = 60.0  # seconds in which a process that is started has to be ready
_BATCH = 64
_NODES, _PER_NODE, _LEASES = 1000, 8, 10_000
_EVENTS = 100_000

Row = Callable[[float], Iterator[Figure]]


# ---- what is measured --------------------------------------------------------------------------------


def loaded(address: str, seconds: float, *, clients: int = 1, window: int = 1, batch: int = 1) -> Measured:
    """What ``clients`` processes did together. Raises StateError when one could not."""
    command = [sys.executable, "-m", "hal.scheduler.bench.load", address]
    command += [str(seconds), str(window), str(batch)]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(clients):
            processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
            stack.callback(_end, processes[-1])
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise StateError(f"a client of the bench could not begin: {_last_words(process)}")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        found = Measured()
        for process in processes:
            said, _ = process.communicate(timeout=seconds + _START)
            try:
                one = msgspec.json.decode(said, type=Measured)
            except msgspec.DecodeError:
                raise StateError("a client of the bench has failed: the scheduler does not answer") from None
            found.pairs += one.pairs
            found.refused += one.refused
            found.why = one.why or found.why
            found.took += one.took
    if not found.pairs:
        raise StateError(f"nothing was granted: {found.why or 'no answer in time'}")
    found.took.sort()
    return found


def quantile(ordered: list[float], part: float) -> float:
    """In milliseconds, of times in seconds."""
    return 1000 * ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def _remark(found: Measured, seconds: float, also: str = "") -> str:
    said = [f"{found.pairs / seconds:,.0f} pairs/s", f"p50 {quantile(found.took, 0.5):.2f} ms"]
    said.append(f"p99 {quantile(found.took, 0.99):.2f} ms")
    if also:
        said.append(also)
    if found.refused:
        said.append(f"{found.refused} refused")
    return ", ".join(said)


def _part(rate: float, floor: float) -> str:
    return f"{rate / floor:.0%} of the floor's"


# ---- grounds -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="hal-bench-") as directory:
        Path(directory).chmod(0o700)
        yield directory


@contextlib.contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the bench's that has said that it is ready; it ends with its standard input."""
    command = [sys.executable, "-m", f"hal.scheduler.bench.{module}", *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise StateError(f"a process of the bench could not begin: {_last_words(process)}")
        yield process
    finally:
        _end(process)


@contextlib.contextmanager
def simulated(devices: int = 64) -> Iterator[str]:
    """The address of a daemon over a cluster that is not there: a grant is durable, and nothing is made."""
    with _directory() as directory, _process("ground", directory, str(devices)):
        yield f"ipc://{directory}/scheduler.sock"


@contextlib.contextmanager
def serving(machine: str = "mixed") -> Iterator[str]:
    """The address of ``hal serve`` on an emulated machine, whose slices are really made."""
    with emulated(load_description(machine)) as environment:
        environment |= {"OPENBLAS_NUM_THREADS": "1"}
        command, pipe = [sys.executable, "-m", "hal", "serve"], subprocess.PIPE
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=pipe, env=environment)
        try:
            assert daemon.stderr is not None
            if b"serving leases" not in (said := daemon.stderr.readline()):
                raise StateError(f"the bench's scheduler could not start: {said.decode(errors='replace')}")
            yield f"ipc://{environment['HAL_RUNTIME_DIR']}/scheduler.sock"
        finally:
            _end(daemon)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_START)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _last_words(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    lines = process.communicate()[1].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# ---- rows --------------------------------------------------------------------------------------------


def _grants(seconds: float) -> Iterator[Figure]:
    floor = {}
    with _directory() as directory, _process("floor", directory):
        for clients in (1, 8):
            found = loaded(f"ipc://{directory}/scheduler.sock", seconds, clients=clients)
            floor[clients] = found.pairs / seconds
            name = f"nothing decided, {clients} client{'s' * (clients > 1)}"
            yield Figure(name, floor[clients], "/s", remark=_remark(found, seconds, "this machine's floor"))
    with simulated() as address:
        found = loaded(address, seconds)
        remark = _remark(found, seconds, _part(found.pairs / seconds, floor[1]))
        yield at_most("grant, 1 client, p50", quantile(found.took, 0.5), "ms", 1.5, remark)
        yield at_most("grant, 1 client, p99", quantile(found.took, 0.99), "ms", 5)
        found = loaded(address, seconds, clients=8)
        remark = _remark(found, seconds, _part(found.pairs / seconds, floor[8]))
        yield at_least("grant, 8 clients", found.pairs / seconds, "/s", 2500, remark)
        yield at_most("grant, 8 clients, p99", quantile(found.took, 0.99), "ms", 10)
        found = loaded(address, seconds, window=64)
        yield at_least("grant, 64 in flight", found.pairs / seconds, "/s", 5000, _remark(found, seconds))
        try:
            found = loaded(address, seconds, batch=_BATCH)
        except StateError as why:
            yield missing(f"grant, {_BATCH} in a message", "≥ 5000", str(why))
        else:
            remark = _remark(found, seconds, "times are of a message")
            yield at_least(f"grant, {_BATCH} in a message", found.pairs / seconds, "/s", 5000, remark)


def _binds(seconds: float) -> Iterator[Figure]:
    with serving() as address:
        found = loaded(address, seconds)
        remark = _remark(found, seconds)
        yield at_most("with bind, 1 client, p50", quantile(found.took, 0.5), "ms", 4, remark)
        found = loaded(address, seconds, clients=8)
        yield at_least("with bind, 8 clients", found.pairs / seconds, "/s", 800, _remark(found, seconds))


def _agents(seconds: float) -> Iterator[Figure]:
    """Beside the same load: before the agents join, while they beat, and after they have gone."""
    with _directory() as directory, _process("ground", directory, "64"):
        address = f"ipc://{directory}/scheduler.sock"
        before = loaded(address, seconds, clients=8)
        with _process("agents", address, str(_NODES), str(_PER_NODE), "0"):
            beside = loaded(address, seconds, clients=8)
    with simulated() as address:
        after = loaded(address, seconds, clients=8)
    alone = (before.pairs + after.pairs) / 2
    cost = 100 * (1 - beside.pairs / alone)
    remark = f"{_remark(beside, seconds)}; {alone / seconds:,.0f} pairs/s without them"
    yield at_most(f"cost of {_NODES:,} agents' beats", cost, "%", 20, remark)


def _memory(_: float) -> Iterator[Figure]:
    name = f"memory, {_NODES:,} nodes, {_NODES * _PER_NODE:,} devices, {_LEASES:,} leases"
    with _directory() as directory, _process("ground", directory, "0") as daemon:
        address = f"ipc://{directory}/scheduler.sock"
        with (
            _process("agents", address, str(_NODES), str(_PER_NODE), "192"),
            _process("load", address, "hold", str(_LEASES)),
        ):
            status = Path(f"/proc/{daemon.pid}/status").read_text()
    sizes = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM")))
    now, most = (int(sizes[field].split()[0]) / 1024 for field in ("VmRSS", "VmHWM"))
    yield at_most(name, now, "MiB", 500, f"resident; {most:.0f} MiB at the most")


def _start(_: float) -> Iterator[Figure]:
    with _directory() as directory:
        address = f"ipc://{directory}/scheduler.sock"
        with _process("ground", directory, "64") as daemon, _process("load", address, "hold", "1000"):
            events = 0
            while events < _EVENTS:
                events += 3 * loaded(address, 2.0, window=64).pairs  # granted, ending, ended
            daemon.kill()
            daemon.wait()
        begun = time.perf_counter()
        with _process("ground", directory, "64"):
            took = time.perf_counter() - begun
    remark = f"{events:,} events, 1,000 leases; the whole process"
    yield at_most("start after a crash", took, "s", 3, remark)


ROWS: dict[str, Row] = {
    "grant": _grants,
    "bind": _binds,
    "agents": _agents,
    "memory": _memory,
    "start": _start,
}


def at_address(address: str, seconds: float) -> Iterator[Figure]:
    """What a daemon that runs already does. Whatever it binds is in the figures; they have no target."""
    for name, clients, window in (("1 client", 1, 1), ("8 clients", 8, 1), ("64 in flight", 1, 64)):
        found = loaded(address, seconds, clients=clients, window=window)
        yield Figure(name, found.pairs / seconds, "/s", remark=_remark(found, seconds))
