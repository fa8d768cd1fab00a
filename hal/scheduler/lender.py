"""Whose the slices of a runtime directory are: those of its own scheduler, or of one elsewhere that its agent
obeys. Only one of them may end what it does not know of, or forget whom this node has obeyed.

A file says so, also while neither runs: what is lent here goes on, and waits for its own one.
"""

from __future__ import annotations

import contextlib

from hal.backend import StateError
from hal.scheduler.places import Places

__all__ = ["RUN", "SERVE", "Lender"]

RUN = "hal run"  # the private scheduler of one user's commands
SERVE = "hal serve"


class Lender:
    """``who`` is RUN, SERVE, or the address of the scheduler that an agent obeys."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def there(self) -> str:
        """Who has lent what is here; "": nobody."""
        try:
            return self._places.lender.read_text().strip()
        except (OSError, UnicodeError):
            return ""

    def elsewhere(self) -> str:
        """The address of the scheduler that this node's agent obeys; "": it is no node of another's."""
        there = self.there()
        return "" if there in (RUN, SERVE) else there

    def check(self, who: str) -> None:
        """Raises StateError when ``who`` is not to lend what is here."""
        there, directory = self.there(), self._places.directory
        if who in (RUN, SERVE) and (address := self.elsewhere()):
            raise StateError(
                f"this machine's devices are lent by the scheduler at {address}: set HAL_SCHEDULER to that, "
                f"and HAL_KEY to your key's file (or remove {self._places.lender} if it is so no more)"
            )
        if there == SERVE == who and not self._places.store.exists():
            raise StateError(
                f"the lease store {self._places.store} is gone, though what it had lent was not given back: "
                f"restore a backup ('hal admin restore'), or remove {self._places.lender} to begin anew, by "
                "which all that runs on its nodes is ended"
            )
        left = any(self._places.slices.glob("*.binding"))
        if there == SERVE and who != SERVE and left:
            raise StateError(
                f"what runs in {directory} was lent by a scheduler that does not run now: start it again "
                "('hal serve'), or end with it what is left"
            )
        if there == RUN and who not in (RUN, SERVE) and left:
            raise StateError(f"what runs in {directory} was lent by 'hal run': wait until it has ended")

    def taken(self) -> StateError:
        """Why another process has to do with what is here."""
        there, directory = self.there(), self._places.directory
        if there in (RUN, SERVE):
            return StateError(f"a scheduler already serves {directory}, with an agent of its own")
        return StateError(f"an agent already serves {directory}" + (f", for {there}" if there else ""))

    def write(self, who: str) -> None:
        """Raises StateError."""
        if who == self.there():
            return
        new = self._places.lender.with_suffix(".new")
        try:
            new.write_text(f"{who}\n")
            new.replace(self._places.lender)
        except OSError as error:
            raise StateError(f"cannot write {self._places.lender}: {error.strerror}") from None

    def remove(self) -> None:
        """Nothing is lent here any more, nor was, that has to be remembered."""
        with contextlib.suppress(OSError):
            self._places.lender.unlink(missing_ok=True)
