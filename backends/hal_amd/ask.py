"""Asking AMD SMI: once, with None for no answer; or within one sample, where no question is put twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hal_amd import errors
from hal_amd.metrics import CALL, metrics

__all__ = ["Answers", "Guarded", "RefusedError", "ask"]

_log = logging.getLogger(__name__)


def ask(smi: Any, call: str, *arguments: Any) -> Any:
    """One answer, or None when this card, driver or amdsmi has none."""
    try:
        return getattr(smi, call)(*arguments)
    except Exception as failure:  # amdsmi raises KeyError and ValueError on odd answers, too
        _log.debug("%s: %s", call, failure)
        return None


class RefusedError(Exception):
    """A call that was not made, because library and wrapper do not fit."""

    err_code = errors.NOT_SUPPORTED

    @property
    def err_info(self) -> str:
        return f"not asked: {self}"


class Guarded:
    """The module amdsmi, without the calls that this library must not be asked."""

    def __init__(self, smi: Any, refused: Mapping[str, str]) -> None:
        self.module = smi
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        if name in self._refused:
            reason = self._refused[name]

            def refuse(*arguments: Any) -> Any:
                raise RefusedError(reason)

            return refuse
        return getattr(self.module, name)


class Answers:
    """What one processor says now. Rows that share a call, and partitions that share a card, ask once."""

    def __init__(
        self, smi: Any, processor: Any, hopeless: dict[tuple[Any, ...], Exception] | None = None
    ) -> None:
        """``hopeless`` is what it does not support, as an earlier sample learnt; this one adds to it."""
        self.smi = smi
        self._hopeless = {} if hopeless is None else hopeless
        self._processor = processor
        self._said: dict[tuple[Any, ...], Any] = {}
        self.shared: dict[object, Any] = {}  # what was made of the answers, by who made it
        self.codes: set[int] = set()  # what the library said instead of an answer

    def __call__(self, call: str, *arguments: Any) -> Any:
        """The answer, or amdsmi's own exception."""
        question = (call, *arguments)
        if question not in self._said:
            try:
                self._said[question] = self._hopeless.get(question) or self._ask(call, arguments)
            except Exception as failure:
                self._said[question] = failure
                code = errors.code_of(failure)
                if code is not None:
                    self.codes.add(code)
                if code == errors.NOT_SUPPORTED:
                    self._hopeless[question] = failure
        answer = self._said[question]
        if isinstance(answer, Exception):
            raise answer.with_traceback(None)
        return answer

    def maybe(self, call: str, *arguments: Any) -> Any:
        """The answer, or None."""
        try:
            return self(call, *arguments)
        except Exception:  # which one is in the row that is about this call
            return None

    def _ask(self, call: str, arguments: tuple[Any, ...]) -> Any:
        if call == CALL and not arguments:
            return metrics(self.smi, self._processor)
        return getattr(self.smi, call)(self._processor, *arguments)
