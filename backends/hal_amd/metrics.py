"""gpu_metrics without amdsmi's Python: it makes 900 Python values of each, and a sample wants twenty.

The library's function and structure are the wrapper's own. Words and "N/A" are those of
``amdsmi_get_gpu_metrics_info``; where anything is not as expected, that is asked.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

__all__ = ["CALL", "Metrics", "metrics"]

CALL = "amdsmi_get_gpu_metrics_info"
_STRUCTURE = "amdsmi_gpu_metrics_t"
_PARTITIONS = "xcp_stats."
_ABSENT = "N/A"
_NO_PERCENT = 100  # an activity above it is none


class Metrics:
    """One reading of the structure; a figure is made when it is asked for."""

    def __init__(self, raw: ctypes.Structure) -> None:
        self._raw = raw
        self._said: dict[str, Any] = {}  # all partitions of a card ask for the same
        self._types = _types(raw.__class__)

    def __getitem__(self, word: str) -> Any:
        """Raises KeyError for what this version does not have."""
        if word not in self._said:
            self._said[word] = self._read(word)
        return self._said[word]

    def _read(self, word: str) -> Any:
        if word.startswith(_PARTITIONS):
            name = word.removeprefix(_PARTITIONS)
            return [_figure(name, getattr(part, name), _types(part.__class__)[name])
                    for part in self._field("xcp_stats")]  # fmt: skip
        return _figure(word, self._field(word), self._types[word])

    def get(self, word: str) -> Any:
        try:
            return self[word]
        except KeyError:
            return None

    def _field(self, word: str) -> Any:
        if word not in self._types:
            raise KeyError(word)
        return getattr(self._raw, word)


@cache
def _types(structure: type[ctypes.Structure]) -> dict[str, Any]:
    return {field[0]: field[1] for field in structure._fields_}


def _figure(word: str, value: Any, kind: Any) -> Any:
    if isinstance(value, int):
        said = _number(word, value, ctypes.sizeof(kind))
        return bool(said) if word == "throttle_status" and said != _ABSENT else said
    size = ctypes.sizeof(kind._type_)
    return [_number(word, each, size) for each in value]


def _number(word: str, value: int, size: int) -> int | str:
    most = (1 << 8 * size) - 1
    if value == most or (
        value > _NO_PERCENT and ("activity" in word or "busy" in word) and "acc" not in word
    ):
        return _ABSENT
    return value


def metrics(smi: Any, processor: Any) -> Any:
    """Metrics, or what amdsmi gives. Raises amdsmi's own exceptions."""
    ask = getattr(smi, CALL)  # first of all: it may be refused
    wrapper = getattr(smi, "amdsmi_wrapper", None)
    function, kind = getattr(wrapper, CALL, None), getattr(wrapper, _STRUCTURE, None)
    if function is None or kind is None or getattr(ask, "__name__", "") != CALL:
        return ask(processor)
    raw = kind.__new__(kind)  # its __init__ goes through all fields
    try:
        status = function(processor, ctypes.byref(raw))
    except ctypes.ArgumentError:
        status = 1
    return Metrics(raw) if status == 0 else ask(processor)
