"""What a node holds for its scheduler, and whom it obeys.

A binding is written down before its slices are made, so that the next agent of this node takes over what
this one leaves. Orders carry the scheduler's *term*, which rises with each of its starts, and the lease's
*epoch*, which rises with each grant: an order of an older scheduler, or for an older grant, is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hal.backend import StateError
from hal.enforce.ledger import DeviceUse
from hal.scheduler.agent.binding import (
    Binding,
    BindOrder,
    Bound,
    Order,
    OutputOrder,
    RunOrder,
    SignalOrder,
    Started,
    UnbindOrder,
    Unbound,
)
from hal.scheduler.agent.slices import Slices
from hal.scheduler.agent.until import Until
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.jobs.launch import Launcher
from hal.scheduler.jobs.output import Piece
from hal.scheduler.jobs.rendezvous import free_port
from hal.scheduler.jobs.spec import Ended
from hal.scheduler.jobs.table import Jobs
from hal.scheduler.places import Places

__all__ = ["Agent", "StaleError", "ended_as_unknown"]

_BURIED = 4096  # leases that have ended are remembered
_REAP = 0.05  # seconds between looks at who has died
_NAMED = 8  # leases in a sentence
_TOLD = 32  # ended runs in one message
_GRACE = 2.0  # seconds from SIGTERM to SIGKILL for what is left in an ended slice


class StaleError(StateError):
    """An order that a newer one has overtaken: of an older scheduler, or for an older grant."""


class Agent:
    """One node's slices. For one thread; times are seconds on any one clock that the caller reads."""

    def __init__(
        self,
        slices: Slices,
        places: Places,
        node: str,
        launcher: Launcher | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Without a ``launcher`` it runs no jobs. ``say`` is told of what it cannot take over."""
        self.node = node
        self.launcher = launcher
        self._slices = slices
        self._jobs = Jobs(places.jobs)
        self._places = places
        self._say = say
        self._bound: dict[str, Binding] = {}
        self._ending: dict[str, float] = {}  # since when
        self._unusable: dict[str, str] = {}  # why, until whoever lent it has heard so
        self._ended: dict[str, int] = {}  # epochs of what has ended and was not asked for yet
        self._over_with: dict[str, int] = {}  # epochs that are not to be bound again
        self._noted = 0  # the term that is written down
        self._reaped = float("-inf")
        self._promise = Until(places.until)
        self._until: float | None = None
        self.term = 0

    def start(self) -> None:
        """Take over what an earlier agent of this node left. Raises StateError."""
        self._places.make()
        try:
            self.term = self._noted = int(self._places.term.read_text())
        except FileNotFoundError:
            self.term = self._noted = 0
        except (OSError, ValueError) as error:
            raise StateError(f"cannot read {self._places.term}: {error}") from None
        for path in sorted(self._places.slices.glob("*.binding")):
            try:
                binding = msgspec.msgpack.decode(path.read_bytes(), type=Binding)
            except (OSError, msgspec.DecodeError) as wrong:
                self._say(f"cannot read {path}: {wrong}; what runs in that slice is ended")
                binding = None
            if binding is None or not self._adopt(binding):
                path.unlink(missing_ok=True)
        self._jobs.open()
        self._end_unowned()

    def take_over(self, binding: Binding) -> bool:
        """Whether its slices are here; if an agent of before wrote nothing down, they are from now on."""
        there = self._bound.get(binding.lease)
        if there is not None and there.epoch == binding.epoch:
            return True
        if there is not None or not self._adopt(binding):
            return False
        _write(self._places.binding_file(binding.lease), msgspec.msgpack.encode(binding))
        return True

    def _adopt(self, binding: Binding) -> bool:
        """What cannot be used is held, too, until none of its programs is left and its scheduler knows why:
        else its devices would be lent to others beside them."""
        try:
            if not self._slices.adopt(binding):
                return False
        except StateError as wrong:
            self._say(f"the lease '{binding.lease}' has lost its slice, and its programs are ended: {wrong}")
            self._unusable[binding.lease] = str(wrong)
            self._ending[binding.lease] = float("inf")  # from the next turn on
        self._bound[binding.lease] = binding
        return True

    def forget(self) -> None:
        """The scheduler ends for good: the next one counts its starts anew."""
        if not self._bound:
            self._places.term.unlink(missing_ok=True)
            self._promise.remove()

    def close(self) -> None:
        """Jobs run on, for the next agent."""
        self._jobs.close()
        self._slices.close()

    def allow(self, until: float) -> None:
        """What is lent here may run until then, in seconds since the boot: jobs end themselves after it,
        whether an agent lives or not."""
        self._until = until
        if self._bound:
            self._keep_promise()

    def allowed(self) -> float | None:
        """What the agent before this one was allowed, since the boot; None where nothing is lent: what was
        promised for others that have ended since says nothing."""
        return self._promise.read() if self._bound else None

    def _keep_promise(self) -> None:
        if self._until is not None:
            with contextlib.suppress(OSError):  # they end too early then, and not too late
                self._promise.write(self._until)

    # ---- orders -----------------------------------------------------------------------------

    def obey(self, term: int) -> None:
        """From now on this scheduler's orders count. Raises StaleError when another has come after it."""
        if term < self.term:
            raise StaleError(f"node '{self.node}' obeys a newer scheduler (term {self.term}, not {term})")
        self.term = term
        if term > self._noted:
            with contextlib.suppress(StateError):  # what runs here is not stopped by a disk that is full
                _write(self._places.term, str(term).encode())
                self._noted = term

    def perform(self, order: Order, now: float) -> Bound | Unbound | Started | Piece:
        """Carry out any order. Raises as the method that does it, and StateError for what the system does
        not do for it."""
        try:
            return self._perform(order, now)
        except OSError as error:
            raise StateError(f"node '{self.node}' cannot do it: {error.strerror or error}") from None

    def _perform(self, order: Order, now: float) -> Bound | Unbound | Started | Piece:
        match order:
            case BindOrder():
                return self.bind(order)
            case UnbindOrder():
                return Unbound(self.unbind(order, now))
            case RunOrder():
                return self.run(order)
            case SignalOrder():
                self.obey(order.term)
                self._jobs.signal((order.lease, order.epoch, order.member), order.signal)
                return Started()
            case OutputOrder():
                run = (order.lease, order.epoch, order.member)
                return self._jobs.output(run, order.stream, order.offset, order.limit)

    def bind(self, order: BindOrder) -> Bound:
        """Make the slices of a lease; again is no error. Raises StaleError, or StateError when it cannot."""
        self.obey(order.term)
        binding = order.binding
        there = self._bound.get(binding.lease)
        if there is not None and there.epoch > binding.epoch:
            raise StaleError(f"the lease '{binding.lease}' was granted anew since (epoch {there.epoch})")
        if self._over_with.get(binding.lease, -1) >= binding.epoch:
            raise StaleError(f"the lease '{binding.lease}' of epoch {binding.epoch} has ended here")
        if there is not None and there.epoch == binding.epoch and binding.lease in self._unusable:
            raise StateError(self._unusable[binding.lease])
        if there is not None and (there.epoch < binding.epoch or binding.lease in self._ending):
            raise StateError(f"what ran in the lease '{binding.lease}' before has not ended yet")
        if there is None:
            path = self._places.binding_file(binding.lease)
            if binding.members > 1 and any(part.number == 0 for part in binding.parts):
                taken = {other.port for other in self._bound.values()}
                binding = msgspec.structs.replace(binding, port=free_port(taken, binding.epoch))
            there = binding
            try:
                _write(path, msgspec.msgpack.encode(binding))
                self._slices.create(binding)
            except StateError:
                _forget(path)
                raise
            self._bound[binding.lease] = binding
            self._ended.pop(binding.lease, None)
            self._keep_promise()
        else:
            self._slices.renew_limits(binding)
        environments = sorted(self._slices.environments(binding).items())
        return Bound(environments, self._slices.enforcement(binding), there.port)

    def unbind(self, order: UnbindOrder, now: float) -> bool:
        """Stop what runs in it and take it away; True when nothing of it is left. Raises StaleError."""
        self.obey(order.term)
        self._bury(order.lease, order.epoch)
        there = self._bound.get(order.lease)
        if there is None:
            return True
        if there.epoch > order.epoch:
            raise StaleError(f"the lease '{order.lease}' was granted anew since (epoch {there.epoch})")
        return self._end(there, now)

    def run(self, order: RunOrder) -> Started:
        """Start a program in a slice that is bound. Raises StaleError, or StateError when it cannot."""
        self.obey(order.term)
        there = self._bound.get(order.lease)
        if there is None or there.epoch != order.epoch:
            raise StaleError(f"the lease '{order.lease}' of epoch {order.epoch} is not bound here")
        if order.lease in self._ending or order.lease in self._unusable:
            raise StateError(f"the lease '{order.lease}' is ending")
        slices = self._slices.environments(there)
        if order.member not in slices:
            raise StateError(f"the lease '{order.lease}' has no member {order.member} here")
        run = (order.lease, order.epoch, order.member)
        if self._jobs.was_started(run):  # whether it would be now or not
            return Started()
        if self.launcher is None:
            raise StateError(f"node '{self.node}' runs no jobs")
        launch = self.launcher.launch(order, slices[order.member])
        if self._until is not None:
            launch = msgspec.structs.replace(launch, until=str(self._promise.path))
        if launch.user is not None:
            self._slices.give(there, order.member, launch.user.uid)
        self._jobs.start(run, launch)
        return Started()

    def keep(self, term: int, wanted: Mapping[str, int], now: float) -> list[str]:
        """End all that the scheduler does not know of: the leases that did not end already. Raises
        StaleError."""
        self.obey(term)
        found = []
        for binding in list(self._bound.values()):
            if wanted.get(binding.lease) != binding.epoch:
                if binding.lease not in self._ending:
                    found.append(binding.lease)
                self._end(binding, now)
        self._slices.sweep(self._bound)
        return found

    def stop_all(self) -> None:
        """This node is cut off, and the time in which others leave it its devices has passed."""
        self._unusable.clear()
        for lease in list(self._bound):
            self._ending[lease] = float("-inf")
            self._slices.stop(lease, signal.SIGKILL)
            self._jobs.end(lease, signal.SIGKILL, lost=True)

    # ---- time -------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Go on with endings, give back what dead processes held, correct shares."""
        for lease, since in list(self._ending.items()):
            self._ending[lease] = min(since, now)
            # Signal 0 only looks who is left.
            late = signal.SIGKILL if now - since >= _GRACE else 0
            if self._stop(lease, signal.SIGTERM if since > now else late):
                if lease in self._unusable:
                    del self._ending[lease]
                else:
                    self._over(lease)
        self._jobs.turn()
        if now - self._reaped >= _REAP:
            self._reaped = now
            self._end_unowned()
            self._slices.reap()
            self._slices.correct_shares(now)

    @property
    def busy(self) -> bool:
        """Something is ending: ``turn`` is wanted soon."""
        return bool(self._ending) or self._jobs.busy

    @property
    def descriptor(self) -> int:
        """Ready to be read when a job has ended: ``turn`` is wanted then."""
        return self._jobs.descriptor

    # ---- what is told -----------------------------------------------------------------------

    def bound(self) -> dict[str, int]:
        """The epoch of each lease that has something here."""
        return {binding.lease: binding.epoch for binding in self._bound.values()}

    def ended(self) -> list[tuple[str, int]]:
        """What has ended since, with its epoch, until ``acknowledge``."""
        return list(self._ended.items())

    def acknowledge(self, ended: list[tuple[str, int]]) -> None:
        for lease, epoch in ended:
            if self._ended.get(lease) == epoch:
                del self._ended[lease]

    def ended_runs(self) -> list[Ended]:
        """Programs of jobs that have ended, the first of them, until ``acknowledge_runs``."""
        return self._jobs.ended()[:_TOLD]

    def acknowledge_runs(self, ended: list[Ended]) -> None:
        self._jobs.told(ended)

    def facts(self) -> NodeFacts:
        return self._slices.facts(self.node)

    def use(self, lease: str) -> list[DeviceUse]:
        return self._slices.use(lease)

    def uses(self) -> dict[str, list[DeviceUse]]:
        """Of all leases that have a ledger."""
        found = {lease: self._slices.use(lease) for lease in self._bound}
        return {lease: use for lease, use in found.items() if use}

    # ---- endings ----------------------------------------------------------------------------

    def _end(self, binding: Binding, now: float) -> bool:
        self._unusable.pop(binding.lease, None)
        if binding.lease not in self._ending:
            self._ending[binding.lease] = now
            if self._stop(binding.lease, signal.SIGTERM):
                self._over(binding.lease)
        return binding.lease not in self._bound

    def _stop(self, lease: str, number: int) -> bool:
        """True when neither a job nor any other program in the slices is left."""
        over = self._slices.stop(lease, number)
        return self._jobs.end(lease, number) and over

    def _end_unowned(self) -> None:
        """A job lives in a lease that is bound here, or not at all."""
        for lease in {run[0] for run in self._jobs.living()} - self._bound.keys():
            self._jobs.end(lease, signal.SIGKILL)

    def _over(self, lease: str) -> None:
        self._ending.pop(lease, None)
        binding = self._bound.pop(lease, None)
        self._slices.remove(lease)
        _forget(self._places.binding_file(lease))
        if binding is not None:
            self._ended[lease] = binding.epoch
            self._bury(lease, binding.epoch)

    def _bury(self, lease: str, epoch: int) -> None:
        self._over_with[lease] = max(epoch, self._over_with.pop(lease, epoch))
        while len(self._over_with) > _BURIED:
            del self._over_with[next(iter(self._over_with))]


def ended_as_unknown(leases: list[str]) -> str:
    """What ``keep`` has done, for an operator."""
    named = ", ".join(leases[:_NAMED]) + (", ..." if len(leases) > _NAMED else "")
    which = "it: 1 lease" if len(leases) == 1 else f"them: {len(leases)} leases"
    return f"ended here, as the scheduler does not know of {which} ({named})"


def _forget(path: Path) -> None:
    """One that cannot be removed now is found by the next agent, whose scheduler does not know of it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all. Raises StateError."""
    fresh = f"{path}.new"
    try:
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
        os.replace(fresh, path)  # noqa: PTH105 – each of pathlib's steps takes as long as the system's
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from None
