"""What a piece of work asks of a vendor's Python library: the least that its answers take."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["Bare", "counted", "record"]

_Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Bare(NamedTuple):
    """The library's own functions with what they are asked, in order."""

    calls: tuple[_Call, ...]

    def ask(self) -> None:
        """What has no answer says so by an exception, as it does for everybody."""
        for function, arguments in self.calls:
            with suppress(Exception):
                function(*arguments)

    def answered(self) -> Bare:
        """Without what has no answer: a program that has learnt so need not ask again."""
        return Bare(tuple(call for call in self.calls if _answers(*call)))


def record(library: ModuleType, prefix: str, work: Callable[[], object]) -> Bare:
    """What `work` calls of the functions whose names begin with `prefix`, each question once."""
    made: list[_Call] = []
    depth = 0

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
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

    functions = {n: f for n, f in vars(library).items() if n.startswith(prefix) and inspect.isfunction(f)}
    with _replaced(library, {name: watch(name, function) for name, function in functions.items()}):
        work()
    different: list[_Call] = []
    for one in made:
        if not any(_same(one, other) for other in different):
            different.append(one)
    return Bare(tuple(different))


def counted(nvml: ModuleType, work: Callable[[], object], *, after: Callable[[], object]) -> Counter[str]:
    """The calls of NVML's own functions that `work` makes, once `after` has been done, by name.

    Counted where pynvml hands its C functions out, so that what is called without pynvml's Python counts.
    """
    calls: Counter[str] = Counter()
    pointer: Callable[[str], Any] = nvml._nvmlGetFunctionPointer

    def count(name: str) -> Any:
        function = pointer(name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    with _replaced(nvml, {"_nvmlGetFunctionPointer": count}):
        after()
        calls.clear()
        work()
    return calls


def _same(one: _Call, other: _Call) -> bool:
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
def _replaced(library: ModuleType, functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    real = {name: getattr(library, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(library, name, function)
        yield
    finally:
        for name, function in real.items():
            setattr(library, name, function)
