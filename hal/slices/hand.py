"""Slices made by hand: no scheduler, no lease; they last until they are destroyed or the node restarts."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hal.backend import GoneError, StateError, TemporaryError, UnsupportedError
from hal.backend import Group as MetricGroup
from hal.enforce.cgroup import Group, Tree
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger, RunState, SliceUse
from hal.enforce.mapped import Mapped
from hal.inventory import Machine
from hal.model import Enforcement, Rung
from hal.slices.claims import Book, Claim, free_units
from hal.slices.ladder import climb

__all__ = ["HandMade", "Shown"]

BY = "slice"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Shown(Struct, frozen=True):
    """A slice in the node's book. ``use`` is None for another user's, whose ledger is not ours to read."""

    claim: Claim
    uid: int
    use: SliceUse | None
    processes: tuple[tuple[int, int], ...] = ()  # (pid, bytes)
    reasons: tuple[str, ...] = ()  # of a slice just made: why no stronger rung holds its memory


class HandMade:
    """This user's slices on this node."""

    def __init__(self, machine: Machine, book: Book | None = None, tree: Tree | None = None) -> None:
        self._machine = machine
        self._book = Book() if book is None else book
        self._tree = Tree() if tree is None else tree

    def create(
        self,
        device: str,
        memory_bytes: int,
        *,
        compute_ratio: float | None = None,
        elastic: bool = False,
        spatial: bool = False,
        name: str = "",
    ) -> Shown:
        """Claim a part of a device and make its ledger.

        ``spatial``: the compute share is a fixed part of the device's units, not a share of its time.
        Raises TemporaryError when others claim too much of it, UnsupportedError when nothing can hold a
        part of it to the limit asked for, StateError when the name is taken, ValueError when it is no name.
        """
        found = self._machine.find(device)
        limits = self._machine.limits(found.id)
        if limits.memory is Rung.NONE:
            raise UnsupportedError(f"nothing here can hold a part of {found.id} to its memory")
        if compute_ratio is not None and limits.compute is Rung.NONE:
            raise UnsupportedError(f"nothing here can hold a part of {found.id} to a share of its time")
        if name and not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r:.80} is no name: it has 1 to 63 letters, digits, '.', '_' and '-', and begins with "
                "a letter or digit"
            )
        if name and any(shown.claim.name == name for shown in self.mine()):
            raise StateError(f"you have a slice '{name}' already; 'hal slice list' shows it")
        claim_id = secrets.token_hex(8)
        wanted = Claim(
            id=claim_id,
            device=found.id,
            memory_bytes=memory_bytes,
            compute_milli=0 if compute_ratio is None else round(compute_ratio * 1000),
            elastic=elastic,
            name=name or claim_id[:8],
            by=BY,
            kept=True,
        )
        if spatial:
            wanted = self._with_units(wanted)
        claim = self._book.claim(wanted, self.capacity(found.id))
        try:
            climbed = climb(self._machine, self._tree, claim.device, claim.id, memory_bytes)
            if climbed.group is not None:
                claim = msgspec.structs.replace(claim, group=climbed.group)
                self._book.change(claim, self.capacity(found.id))
            with self._made(claim) as ledger:
                self._set(ledger, claim, Enforcement(climbed.rung, limits.compute))
        except BaseException:
            self._forget(claim)
            raise
        return msgspec.structs.replace(self.find(claim.id), reasons=climbed.reasons)

    def _with_units(self, wanted: Claim) -> Claim:
        if not wanted.compute_milli or wanted.elastic:
            raise StateError("a fixed part of the compute units needs --compute, and cannot be elastic")
        first = free_units((held.claim for held in self._book.claims()), wanted.device, wanted.compute_milli)
        if first is None:
            raise TemporaryError(
                f"{wanted.device} has no {wanted.compute_milli / 10:g} % of its compute units side by side "
                "that nobody claims"
            )
        if self._machine.share_units(wanted.device, first, wanted.compute_milli) is None:
            raise UnsupportedError(
                f"the runtime of {wanted.device} gives no program a fixed part of the compute units; "
                "without --spatial it gets a share of the time"
            )
        return msgspec.structs.replace(wanted, units_from=first)

    @contextlib.contextmanager
    def _made(self, claim: Claim) -> Iterator[Ledger]:
        limits = [(claim.device, claim.memory_bytes)]
        ledger = Ledger.create(self._book.ledger_file(claim.id), claim.name, limits)
        try:
            yield ledger
        finally:
            ledger.close()

    def _set(self, ledger: Ledger, claim: Claim, offered: Enforcement) -> None:
        """Write a claim's terms into its ledger: units of the runtime are not charged as time."""
        by_time = claim.compute_milli and claim.units_from is None
        compute = offered.compute if by_time else Rung.RUNTIME if claim.compute_milli else Rung.NONE
        ledger.set_limit(0, claim.memory_bytes)
        ledger.set_compute(0, claim.compute_milli / 1000 if by_time else None)
        ledger.set_elastic(claim.elastic)
        ledger.set_enforcement(Enforcement(offered.memory, compute))

    def _forget(self, claim: Claim) -> None:
        if claim.group:
            group = Group(Path(claim.group))
            group.kill()
            with contextlib.suppress(StateError):  # what was killed may take a moment to go
                group.remove()
        self._book.ledger_file(claim.id).unlink(missing_ok=True)
        self._book.end(claim.id)

    def capacity(self, device: str) -> int:
        """Bytes of a device that programs can have: its size without what the driver keeps.

        Raises StateError when the device does not tell its size.
        """
        readings = self._machine.sample([MetricGroup.MEMORY], [device])
        figures = {r.name: int(r.value) for r in readings if r.value is not None and r.subject == device}
        total = self._machine.find(device).memory_bytes or figures.get("memory_total_bytes")
        if total is None:
            raise StateError(
                f"{device} does not tell how much memory it has, so no part of it can be claimed"
            )
        return total - figures.get("memory_reserved_bytes", 0)

    def mine(self) -> list[Shown]:
        return [shown for shown in self.all() if shown.uid == os.geteuid() and shown.claim.by == BY]

    def all(self) -> list[Shown]:
        """Every claim on the node, whoever made it; of this user's slices also what is used, by process."""
        return list(self._shown())

    def find(self, name: str) -> Shown:
        """By name, or by the beginning of its id. Raises GoneError when there is none or more than one."""
        mine = self.mine()
        found = [shown for shown in mine if shown.claim.name == name] or [
            shown for shown in mine if shown.claim.id.startswith(name)
        ]
        if len(found) != 1:
            known = ", ".join(shown.claim.name for shown in mine) or "there is none"
            raise GoneError(f"no slice '{name}' of yours here; your slices: {known}")
        return found[0]

    def environment(self, shown: Shown) -> dict[str, str]:
        """Variables that put a program, and all that it starts, into the slice."""
        claim = shown.claim
        exposed = dict(self._machine.expose([claim.device]).env)
        if claim.units_from is not None:
            units = self._machine.share_units(claim.device, claim.units_from, claim.compute_milli)
            exposed |= units.env if units is not None else {}
        return {**exposed, **guard_environment(self._book.ledger_file(shown.claim.id))}

    def resize(
        self,
        shown: Shown,
        *,
        memory_bytes: int | None = None,
        compute_ratio: float | None = None,
        elastic: bool | None = None,
    ) -> Shown:
        """Change what is given and leave the rest. A slice made smaller than its use refuses growth."""
        old = shown.claim
        if old.units_from is not None and (compute_ratio is not None or elastic):
            raise StateError(
                f"the slice '{old.name}' has a fixed part of the compute units, which its programs got at "
                "their start: it cannot be changed; make another slice"
            )
        new = msgspec.structs.replace(
            old,
            memory_bytes=old.memory_bytes if memory_bytes is None else memory_bytes,
            compute_milli=old.compute_milli if compute_ratio is None else round(compute_ratio * 1000),
            elastic=old.elastic if elastic is None else elastic,
        )
        self._book.change(new, self.capacity(new.device))
        offered = self._machine.limits(new.device)
        rung = offered.memory if shown.use is None else shown.use.control.enforcement.memory
        if new.group and memory_bytes is not None:
            rung = self._hold_again(new, offered.memory)
        with self._open(shown) as ledger:
            self._set(ledger, new, Enforcement(rung, offered.compute))
        return self.find(new.id)

    def _hold_again(self, claim: Claim, otherwise: Rung) -> Rung:
        """Whoever held the group is told of the new limit."""
        held = self._machine.hold_memory(claim.device, claim.group, claim.memory_bytes)
        if held.rung is not Rung.NONE:
            return held.rung
        pci = self._machine.find(claim.device).pci
        region = None if pci is None else self._tree.region_of(pci.bdf)
        if region is None:
            return otherwise
        Group(Path(claim.group)).limit_region(region, claim.memory_bytes)
        return Rung.KERNEL

    def set_state(self, shown: Shown, state: RunState) -> Shown:
        with self._open(shown) as ledger:
            ledger.set_state(state)
        return self.find(shown.claim.id)

    def destroy(self, shown: Shown, *, force: bool = False) -> None:
        """Take the slice away.

        Raises TemporaryError while programs are in it, unless ``force``: then these are killed.
        """
        try:
            with self._open(shown) as ledger:
                _check_empty(shown, ledger.pids(), force)
                ledger.set_limit(0, 0)  # who comes in meanwhile gets nothing
                ledger.set_state(RunState.STOP)
                ledger.signal(signal.SIGKILL)
        except StateError:  # it cannot be read: of another version, say, whose programs have it still
            with contextlib.closing(Mapped(self._book.ledger_file(shown.claim.id))) as file:
                _check_empty(shown, file.signal(0), force)
                file.signal(signal.SIGKILL)
        self._forget(shown.claim)

    def enter(self, shown: Shown) -> None:
        """Move this process into the slice's control group. Raises StateError when it may not."""
        Group(Path(shown.claim.group)).enter(os.getpid())

    @contextlib.contextmanager
    def _open(self, shown: Shown) -> Iterator[Ledger]:
        ledger = Ledger.open(self._book.ledger_file(shown.claim.id))
        try:
            yield ledger
        finally:
            ledger.close()

    def _shown(self) -> Iterator[Shown]:
        for held in self._book.claims():
            shown = Shown(held.claim, held.uid, None)
            if held.uid == os.geteuid() and held.claim.by == BY:
                with contextlib.suppress(StateError), self._open(shown) as ledger:
                    shown = Shown(held.claim, held.uid, ledger.use(), tuple(ledger.processes(0)))
            yield shown


def _check_empty(shown: Shown, pids: list[int], force: bool) -> None:
    if pids and not force:
        raise TemporaryError(
            f"{len(pids)} processes are in the slice '{shown.claim.name}': "
            f"{', '.join(map(str, pids))}; end them, or use --force"
        )
