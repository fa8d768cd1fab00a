"""What a piece of work asks of a vendor's Python library: the least that its answers take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["Bare", "record"]


class Bare(NamedTuple):
    """The library's own functions with what they were asked, in order."""

    calls: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...]
    made: int  # calls in all: more than `calls` when something was asked twice

    def ask(self) -> None:
        """Ask again. What has no answer says so by an exception, as it does for everybody."""
        for function, arguments in self.calls:
            with suppress(Exception):
                function(*arguments)

    def answered(self) -> Bare:
        """Without what has no answer: a program that has learnt so need not ask again."""
        return self._replace(calls=tuple(call for call in self.calls if _answers(*call)))


def record(library: ModuleType, prefix: str, work: Callable[[], object]) -> Bare:
    """What `work` calls of the functions whose names begin with `prefix`, each question once."""
    made: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    with _watched(library, prefix, made):
        work()
    different: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    for call in made:
        if not any(_same(call, other) for other in different):
            different.append(call)
    return Bare(tuple(different), len(made))


def _same(one: tuple[Any, tuple[Any, ...]], other: tuple[Any, tuple[Any, ...]]) -> bool:
    """Handles are compared as objects: a pointer of ctypes equals itself only."""
    return one[0] is other[0] and len(one[1]) == len(other[1]) and all(map(_equal, one[1], other[1]))


def _equal(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def _answers(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    try:
        function(*arguments)
    except Exception:  # the vendor's "not supported"
        return False
    return True


@contextmanager
def _watched(library: ModuleType, prefix: str, made: list[Any]) -> Iterator[None]:
    real = {n: f for n, f in vars(library).items() if n.startswith(prefix) and inspect.isfunction(f)}
    depth = 0

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal depth
            if depth == 0:  # what the library itself calls is not asked by us
                made.append((function, arguments))
            depth += 1
            try:
                return function(*arguments)
            finally:
                depth -= 1

        return call

    try:
        for name, function in real.items():
            setattr(library, name, watch(function))
        yield
    finally:
        for name, function in real.items():
            setattr(library, name, function)
