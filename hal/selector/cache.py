"""Compiled selectors, and their answers by the values that they refer to.

A fleet has many devices and few kinds of them: an expression is evaluated once for each distinct set of
the values that it refers to.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hal.selector.evaluate import Evaluate, NoAnswer, compile_node, paths
from hal.selector.parse import Call, Has, Node, Path, Reference, parse
from hal.selector.short import to_cel

__all__ = ["Cache", "Selector", "selector"]

_ANSWERS = 65536  # that are kept; then all are forgotten


class Selector:
    """An expression in CEL, ready to be asked."""

    def __init__(self, cel: str) -> None:
        self.cel = cel
        tree = parse(cel)
        self._evaluate: Evaluate = compile_node(tree)
        self.paths = tuple(sorted(paths(tree)))  # that the answer depends on
        self._tree = tree

    def matches(self, values: Mapping[Path, Any]) -> bool:
        """Raises NoAnswer when it says nothing about such a device."""
        answer = self._evaluate(values)
        if answer is True or answer is False:
            return bool(answer)
        raise NoAnswer("the expression is neither true nor false")

    def conditions(self) -> tuple[str, ...]:
        """The expressions that ``&&`` joins: for saying which one fails."""
        return tuple(_conditions(self._tree, self.cel))


def _conditions(node: Node, text: str) -> list[str]:
    if isinstance(node, Call) and node.name == "&&":
        return [one for part in node.arguments for one in _conditions(part, text)]
    if isinstance(node, Call):
        return [text[node.begin : node.end]]
    if isinstance(node, Has | Reference) and len(node.path) == 3:
        name = 'device.{}["{}"]["{}"]'.format(*node.path)
        return [f"has({name})" if isinstance(node, Has) else name]
    return [text]


@lru_cache(maxsize=4096)
def selector(text: str) -> Selector:
    """From CEL or the short form. Raises SelectorError with a sentence."""
    return Selector(to_cel(text))


class Cache:
    """The answers that were given; ``evaluated`` counts how often an expression had to run."""

    def __init__(self) -> None:
        self.evaluated = 0
        self._answers: dict[tuple[str, tuple[Any, ...]], bool] = {}

    def matches(self, chosen: Selector, values: Mapping[Path, Any]) -> bool:
        """Whether a device with these values is meant; one of which nothing can be said is not."""
        # 1, 1.0 and true are equal as keys and not in CEL: the types belong to the key.
        referred = tuple((type(value := values.get(path)), value) for path in chosen.paths)
        key = (chosen.cel, referred)
        known = self._answers.get(key)
        if known is None:
            if len(self._answers) >= _ANSWERS:
                self._answers.clear()
            self.evaluated += 1
            try:
                known = chosen.matches(values)
            except NoAnswer:
                known = False
            self._answers[key] = known
        return known
