"""Slices made by hand: no scheduler, no lease; they last until they are destroyed or the node restarts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from hal.backend import GoneError, Group, StateError, UnsupportedError
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger, RunState, SliceUse
from hal.inventory import Machine
from hal.model import Enforcement, Rung
from hal.slices.claims import Book, Claim

__all__ = ["HandMade", "Shown"]

BY = "slice"


class Shown(Struct, frozen=True):
    """A slice in the node's book. ``use`` is None for another user's, whose ledger is not ours to read."""

    claim: Claim
    uid: int
    use: SliceUse | None
    processes: tuple[tuple[int, int], ...] = ()  # (pid, bytes)


class HandMade:
    """This user's slices on this node."""

    def __init__(self, machine: Machine, book: Book | None = None) -> None:
        self._machine = machine
        self._book = Book() if book is None else book

    def create(
        self,
        device: str,
        memory_bytes: int,
        *,
        compute_ratio: float | None = None,
        elastic: bool = False,
        name: str = "",
    ) -> Shown:
        """Claim a part of a device and make its ledger.

        Raises TemporaryError when others claim too much of it, UnsupportedError when nothing can hold a part
        of it to the limit asked for, StateError when the name is taken.
        """
        found = self._machine.find(device)
        limits = self._machine.limits(found.id)
        if limits.memory is Rung.NONE:
            raise UnsupportedError(f"nothing here can hold a part of {found.id} to its memory")
        if compute_ratio is not None and limits.compute is Rung.NONE:
            raise UnsupportedError(f"nothing here can hold a part of {found.id} to a share of its time")
        if name and any(shown.claim.name == name for shown in self.mine()):
            raise StateError(f"you have a slice '{name}' already; 'hal slice list' shows it")
        wanted = Claim(
            id="",
            device=found.id,
            memory_bytes=memory_bytes,
            compute_milli=0 if compute_ratio is None else round(compute_ratio * 1000),
            elastic=elastic,
            name=name,
            by=BY,
            kept=True,
        )
        claim = self._book.claim(wanted, self.capacity(found.id))
        if not claim.name:
            claim = msgspec.structs.replace(claim, name=claim.id[:8])
            self._book.change(claim, self.capacity(found.id))
        try:
            path = self._book.ledger_file(claim.id)
            ledger = Ledger.create(path, claim.name, [(claim.device, claim.memory_bytes)])
            ledger.set_compute(0, compute_ratio)
            ledger.set_elastic(elastic)
            held_by = limits.compute if compute_ratio is not None else Rung.NONE
            ledger.set_enforcement(Enforcement(limits.memory, held_by))
            ledger.close()
        except BaseException:
            self._book.end(claim.id)
            raise
        return self.find(claim.name)

    def capacity(self, device: str) -> int:
        """Bytes of a device that programs can have: its size without what the driver keeps.

        Raises StateError when the device does not tell its size.
        """
        readings = self._machine.sample([Group.MEMORY], [device])
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
        exposed = self._machine.expose([shown.claim.device]).env
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
        milli = old.compute_milli if compute_ratio is None else round(compute_ratio * 1000)
        new = msgspec.structs.replace(
            old,
            memory_bytes=old.memory_bytes if memory_bytes is None else memory_bytes,
            compute_milli=milli,
            elastic=old.elastic if elastic is None else elastic,
        )
        self._book.change(new, self.capacity(new.device))
        ledger = self._open(shown)
        try:
            ledger.set_limit(0, new.memory_bytes)
            ledger.set_compute(0, milli / 1000 if milli else None)
            ledger.set_elastic(new.elastic)
            limits = self._machine.limits(new.device)
            ledger.set_enforcement(Enforcement(limits.memory, limits.compute if milli else Rung.NONE))
        finally:
            ledger.close()
        return self.find(new.id)

    def set_state(self, shown: Shown, state: RunState) -> Shown:
        ledger = self._open(shown)
        try:
            ledger.set_state(state)
        finally:
            ledger.close()
        return self.find(shown.claim.id)

    def destroy(self, shown: Shown, *, force: bool = False) -> None:
        """Take the slice away. Raises StateError while programs are in it, unless ``force``: then these are
        killed."""
        try:
            ledger = self._open(shown)
        except StateError:  # its file is gone or damaged: the claim is all that is left
            self._book.end(shown.claim.id)
            return
        try:
            pids = ledger.pids()
            if pids and not force:
                raise StateError(
                    f"{len(pids)} processes are in the slice '{shown.claim.name}': "
                    f"{', '.join(map(str, pids))}; end them, or use --force"
                )
            ledger.set_state(RunState.STOP)
            ledger.set_limit(0, 0)  # who comes in meanwhile gets nothing
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            ledger.unlink()
        finally:
            ledger.close()
        self._book.end(shown.claim.id)

    def _open(self, shown: Shown) -> Ledger:
        return Ledger.open(self._book.ledger_file(shown.claim.id))

    def _shown(self) -> Iterator[Shown]:
        for held in self._book.claims():
            shown = Shown(held.claim, held.uid, None)
            if held.uid == os.geteuid() and held.claim.by == BY:
                try:
                    ledger = self._open(shown)
                except StateError:
                    yield shown
                    continue
                try:
                    yield Shown(held.claim, held.uid, ledger.use(), tuple(ledger.processes(0)))
                finally:
                    ledger.close()
            else:
                yield shown
