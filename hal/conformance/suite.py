"""The runner: which checks there are, which apply, and how each came out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from enum import StrEnum

from msgspec import Struct

from hal.backend import Backend
from hal.conformance.checks import CHECKS, Broken, Check, Subject
from hal.model import ProbeState

__all__ = ["CHECKS", "Outcome", "Result", "run"]


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # the backend has no such group, or there is nothing here to check
    UNSUPPORTED = "unsupported"  # permanent, with a reason
    EXPECTED = "expected failure"
    UNEXPECTED = "unexpected pass"


class Result(Struct, frozen=True):
    check: str
    outcome: Outcome
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome in (Outcome.FAILED, Outcome.UNEXPECTED)


def run(
    make: Callable[[], Backend],
    *,
    unsupported: Mapping[str, str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Result]:
    """Every check over backends made by ``make``. Raises ValueError for a list that names no check."""
    never, not_yet = dict(unsupported or {}), dict(expected_failures or {})
    unknown = (never.keys() | not_yet.keys()) - {check.name for check in CHECKS}
    if unknown:
        raise ValueError(f"there is no check '{min(unknown)}'")
    return [
        Result(check.name, Outcome.UNSUPPORTED, never[check.name])
        if check.name in never
        else _one(check, make, not_yet.get(check.name))
        for check in CHECKS
    ]


def _one(check: Check, make: Callable[[], Backend], expected: str | None) -> Result:
    subject = Subject(make)
    try:
        if check.needs_devices and subject.backend.probe().state is not ProbeState.READY:
            return Result(check.name, Outcome.SKIPPED, f"not ready: {subject.backend.probe().reason}")
        if check.needs is not None and not isinstance(subject.backend, check.needs):
            return Result(check.name, Outcome.SKIPPED, f"no {check.needs.__name__}")
        check.body(subject)
    except Broken as broken:
        failure = str(broken)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
    else:
        if expected is None:
            return Result(check.name, Outcome.PASSED)
        return Result(check.name, Outcome.UNEXPECTED, f"it was expected to fail: {expected}")
    finally:
        subject.close()
    if expected is not None:
        return Result(check.name, Outcome.EXPECTED, f"{expected}: {failure}")
    return Result(check.name, Outcome.FAILED, failure)
