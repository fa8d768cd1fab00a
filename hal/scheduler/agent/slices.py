"""The slices that a node holds: claims, ledgers, the environment of their programs, and their end."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from hal.backend import HalError, StateError
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import DeviceUse, Ledger
from hal.enforce.mapped import Mapped
from hal.enforce.spares import Spares
from hal.inventory import Machine
from hal.model import Enforcement, Rung
from hal.scheduler.agent.binding import Binding, BoundPart
from hal.scheduler.agent.facts import node_facts
from hal.scheduler.agent.shares import Shares
from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.places import Places
from hal.scheduler.security.connections import count_files
from hal.slices.claims import Book, Claim
from hal_native import guard_library

__all__ = ["Slices"]

BY = "scheduler"


class Slices:
    """What an agent holds open. A whole device needs no ledger: nothing limits it.

    Each device of a binding is claimed in the node's book for as long as the binding and the agent live.
    """

    def __init__(self, machine: Machine, places: Places, book: Book | None = None) -> None:
        self._machine = machine
        self._places = places
        self._book = Book() if book is None else book
        self._shares = Shares(machine)
        self._spares = Spares(places.directory)
        self._open: dict[str, dict[int, Ledger]] = {}  # by lease, then by member
        self._unreadable: dict[str, list[Mapped]] = {}  # by lease, its files: of one that cannot be used
        self._claims: dict[str, list[Claim]] = {}  # by lease
        self._memory: dict[str, int] = {}  # of each device, as it was last seen

    def create(self, binding: Binding) -> None:
        """Claim the devices and make the slices, and look whether they are as they were asked for.

        Raises StateError when others have claimed them first, or a file cannot be made, and leaves none.
        """
        made = self._open[binding.lease] = {}
        try:
            _check_files()
            self._claim(binding, anyway=False)
            for number, limits in _limits(binding).items():
                path = self._file(binding, number)
                made[number] = self._spares.take(path, binding.name, limits)
                _give(path, binding.uid)
                self._share(made[number], binding, number)
                _verify(made[number], limits, _shares(binding, number))
        except (HalError, OSError) as error:
            self.remove(binding.lease)
            raise error if isinstance(error, StateError) else StateError(str(error)) from error

    def adopt(self, binding: Binding) -> bool:
        """Take over slices from before a restart; False when one was never made, and nobody uses it.

        Raises StateError when a file cannot be used. Until ``remove`` its devices stay claimed, and ``stop``
        ends the programs that have it.
        """
        opened: dict[int, Ledger] = {}
        path, readable = self._places.slices, True
        try:
            for number, limits in _limits(binding).items():
                path, readable = self._file(binding, number), False
                opened[number] = Ledger.open(path)
                there, readable = [use.device for use in opened[number].devices()], True
                if there != [device for device, _ in limits]:
                    raise StateError(f"the slice file {path} is not that of its lease")
        except StateError:
            for ledger in opened.values():
                ledger.close()
            files = [Mapped(self._file(binding, number)) for number in _limits(binding)]
            # An agent may have been killed before a file was there, or said whose it is.
            if (readable or not path.exists()) and not any(file.signal(0) for file in files):
                for file in files:
                    file.close()
                return False
            self._unreadable[binding.lease] = files
            self._claim_anyway(binding)
            raise
        self._open[binding.lease] = opened
        self._claim_anyway(binding)
        return True

    def renew_limits(self, binding: Binding) -> None:
        """Whoever began to stop it may not have got so far as to say so: it has its limits again.

        Raises StateError when a ledger was cut short.
        """
        for number, limits in _limits(binding).items():
            for index, (_, limit) in enumerate(limits):
                self._open[binding.lease][number].set_limit(index, limit)

    def sweep(self, bindings: Iterable[str]) -> None:
        """Remove files that belong to no lease: an agent was killed between file and promise."""
        known = {ledger.path for ledger in self._ledgers()}
        known |= {file.path for files in self._unreadable.values() for file in files}
        known |= {self._places.binding_file(lease) for lease in bindings}
        for path in self._places.slices.iterdir():
            if path not in known and not _is_used(path):
                with suppress(OSError):  # read-only now: at another time
                    path.unlink(missing_ok=True)
        self._spares.sweep()

    def environments(self, binding: Binding) -> dict[int, dict[str, str]]:
        """For each member, what a program needs to run in its slice and see nothing else. Without the
        caller's own LD_PRELOAD: the client adds that, for it knows it."""
        limited = _limits(binding)
        found = {}
        for part in binding.parts:
            env = dict(self._machine.expose(_devices(part)).env)
            if part.number in limited:
                env |= guard_environment(self._file(binding, part.number), inherited={})
            if binding.members > 1:
                env |= {"HAL_MEMBER": str(part.number), "HAL_MEMBERS": str(binding.members)}
            found[part.number] = env
        return found

    def enforcement(self, binding: Binding) -> Enforcement:
        """Who holds it to its limits: a whole device is its own limit."""
        slices = [spot for spot in binding.spots() if not spot.shape.whole]
        if not slices:
            return Enforcement(Rung.HARDWARE, Rung.HARDWARE)
        offered = self._machine.limits(slices[0].devices[0])
        limited = any(0 < spot.shape.compute_milli < WHOLE_MILLI for spot in slices)
        return offered if limited else Enforcement(offered.memory, Rung.NONE)

    def give(self, binding: Binding, number: int, uid: int) -> None:
        """Let the programs of a member, which run as another user, charge its slice."""
        if number in _limits(binding):
            os.chown(self._file(binding, number), uid, -1)

    def use(self, lease: str) -> list[DeviceUse]:
        """Of all its slices; nothing for whole devices, which have no ledger, and for ledgers cut short."""
        return [use for ledger in self._open.get(lease, {}).values() for use in _uses(ledger)]

    def reap(self) -> None:
        """Give back, in every slice, what dead processes held."""
        for ledger in self._ledgers():
            with suppress(StateError):  # it was cut short
                ledger.reap()

    def correct_shares(self, now: float) -> None:
        """Correct what slices with a share of the time are charged, once a second (hal/enforce/trim.py)."""
        self._shares.correct(list(self._ledgers()), now)

    def stop(self, lease: str, with_signal: int) -> bool:
        """Refuse all growth and signal the slices' processes (0: none); True when none was left."""
        none_left = True
        for ledger in self._open.get(lease, {}).values():
            with suppress(StateError):  # cut short: its programs have nothing left to allocate from
                for index in range(len(ledger.devices())):
                    ledger.set_limit(index, 0)
            none_left = not ledger.signal(with_signal) and none_left
        for file in self._unreadable.get(lease, []):
            none_left = not file.signal(with_signal) and none_left
        return none_left

    def remove(self, lease: str) -> None:
        for ledger in self._open.pop(lease, {}).values():
            self._spares.retire(ledger)
        for file in self._unreadable.pop(lease, []):
            file.close()
            with suppress(OSError):
                file.path.unlink(missing_ok=True)
        for claim in self._claims.pop(lease, []):
            with suppress(StateError):
                self._book.end(claim.id)

    def close(self) -> None:
        """Unmap everything and leave the files: leases outlive the agent, its claims do not."""
        for ledger in self._ledgers():
            ledger.close()
        self._spares.close()
        for files in self._unreadable.values():
            for file in files:
                file.close()
        self._open.clear()
        self._unreadable.clear()
        self._book.close()

    def facts(self, node: str) -> NodeFacts:
        """The machine as placement sees it, with what programs outside our slices use or have claimed."""
        inside: dict[str, int] = {}
        for ledger in self._ledgers():
            for use in _uses(ledger):
                inside[use.device] = inside.get(use.device, 0) + use.used_bytes
        mine = {claim.id for claims in self._claims.values() for claim in claims}
        others = [held.claim for held in self._book.claims() if held.claim.id not in mine]
        facts = node_facts(node, self._machine, inside, others)
        self._memory = {device.id: device.memory_bytes for device in facts.devices}
        return facts

    def _ledgers(self) -> Iterator[Ledger]:
        return (ledger for ledgers in self._open.values() for ledger in ledgers.values())

    def _claim_anyway(self, binding: Binding) -> None:
        """It has them, whether the book can be written or not."""
        with suppress(HalError):
            self._claim(binding, anyway=True)

    def _claim(self, binding: Binding, *, anyway: bool) -> None:
        claims = self._claims[binding.lease] = []
        for spot in binding.spots():
            for device in spot.devices:
                memory = self._memory.get(device, spot.shape.memory_bytes)
                wanted = Claim(
                    id="",
                    device=device,
                    memory_bytes=memory if spot.shape.whole else spot.shape.memory_bytes,
                    compute_milli=0 if spot.shape.whole else spot.shape.compute_milli,
                    whole=spot.shape.whole,
                    name=binding.name,
                    by=BY,
                )
                claims.append(self._book.claim(wanted, memory, anyway=anyway))

    def _share(self, ledger: Ledger, binding: Binding, number: int) -> None:
        """The shares of the devices' time that go with a slice, and who holds it to what."""
        for index, share in enumerate(_shares(binding, number)):
            if share is not None:
                ledger.set_compute(index, share)
        ledger.set_enforcement(self.enforcement(binding))

    def _file(self, binding: Binding, number: int) -> Path:
        return self._places.slice_file(binding.lease if number == 0 else f"{binding.lease}.{number}")


def _devices(part: BoundPart) -> list[str]:
    return [device for spot in part.spots for device in spot.devices]


def _limits(binding: Binding) -> dict[int, list[tuple[str, int]]]:
    """Devices and bytes of each part that is a slice, in the order in which its programs see them."""
    return {
        part.number: [(device, spot.shape.memory_bytes) for spot in part.spots for device in spot.devices]
        for part in binding.parts
        if not part.spots[0].shape.whole
    }


def _shares(binding: Binding, number: int) -> list[float | None]:
    """Of the time of each device of a part; None: no limit."""
    (part,) = (part for part in binding.parts if part.number == number)
    each = [spot.shape.compute_milli for spot in part.spots for _ in spot.devices]
    return [milli / WHOLE_MILLI if 0 < milli < WHOLE_MILLI else None for milli in each]


def _check_files() -> None:
    """Each slice keeps some open. Without any left nothing could be done, nor started: slices get no more
    than half. Raises StateError."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and 2 * count_files() > most:
        raise StateError(f"so many slices are open here that of {most} files too few are left (LimitNOFILE)")


def _verify(ledger: Ledger, limits: list[tuple[str, int]], shares: list[float | None]) -> None:
    """What is to hold its programs is there, and knows what they may have. Raises StateError."""
    there = ledger.devices()
    if [(use.device, use.limit_bytes) for use in there] != limits or [
        use.compute_ratio for use in there
    ] != shares:
        raise StateError(f"the slice {ledger.path} is not as it was asked for")
    if not guard_library().is_file():
        raise StateError(f"the guard {guard_library()} is gone: hal is not installed whole here")


def _is_used(path: Path) -> bool:
    """By programs of a slice that nobody knows of: they are killed."""
    if path.suffix != ".ledger":
        return False
    with closing(Mapped(path)) as file:
        return bool(file.signal(signal.SIGKILL))


def _uses(ledger: Ledger) -> list[DeviceUse]:
    """Nothing, of one that its programs have cut short."""
    try:
        return ledger.devices()
    except StateError:
        return []


def _give(ledger: Path, uid: int) -> None:
    """To the user whose programs charge it, who may be another when the agent is root's."""
    if os.geteuid() == 0 and 0 < uid < 1 << 32:
        os.chown(ledger, uid, -1)
