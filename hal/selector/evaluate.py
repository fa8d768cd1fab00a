"""A tree as a closure over attribute values, with CEL's rules.

Comparing what cannot be compared has no answer, and neither has an attribute that a device does not
have; ``&&`` and ``||`` answer all the same where the other side decides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from hal.selector.lex import SelectorError
from hal.selector.parse import Call, Has, Items, Literal, Node, Path, Reference
from hal.selector.pattern import MAX_SUBJECT, compiled
from hal.selector.quantity import Quantity

__all__ = ["Evaluate", "Missing", "NoAnswer", "compile_node", "paths"]

Values = Mapping[Path, Any]
Evaluate = Callable[[Values], Any]


class NoAnswer(Exception):
    """The expression says nothing about this device."""


class Missing(NoAnswer):
    """It asks for an attribute that the device does not have."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path[-1]} is not known")
        self.path = path


def paths(node: Node) -> frozenset[Path]:
    """The attributes that the answer can depend on."""
    match node:
        case Reference(path=path) | Has(path=path):
            return frozenset([path])
        case Items(items=parts) | Call(arguments=parts):
            return frozenset().union(*map(paths, parts))
    return frozenset()


def compile_node(node: Node) -> Evaluate:
    """Raises SelectorError for what can be seen to be wrong before it runs."""
    match node:
        case Literal(value=value):
            return lambda _: value
        case Reference(path=path):
            if len(path) != 3 and path != ("driver",):
                raise SelectorError('write an attribute as device.attributes["hal"].vendor')
            return _reference(path)
        case Has(path=path):
            return lambda values: path in values
        case Items(items=items):
            each = [compile_node(item) for item in items]
            return lambda values: [one(values) for one in each]
    parts = [compile_node(part) for part in node.arguments]
    match node.name, parts:
        case "&&", [left, right]:
            return _decided(left, right, False)
        case "||", [left, right]:
            return _decided(left, right, True)
        case "?", [condition, then, otherwise]:
            return lambda values: (then if _bool(condition(values)) else otherwise)(values)
        case "not", [one]:
            return lambda values: not _bool(one(values))
        case "matches", [one, _]:
            return _matches(one, node.arguments[1])
        case "quantity", _:
            return _quantity(node.arguments[0])
        case name, [one]:
            unary = _UNARY[name]
            return lambda values: unary(one(values))
        case name, [left, right]:
            binary = _BINARY[name]
            return lambda values: binary(left(values), right(values))
    raise AssertionError(node)


def _reference(path: Path) -> Evaluate:
    def evaluate(values: Values) -> Any:
        try:
            return values[path]
        except KeyError:
            raise Missing(path) from None

    return evaluate


def _decided(left: Evaluate, right: Evaluate, by: bool) -> Evaluate:
    def evaluate(values: Values) -> bool:
        try:
            if _bool(left(values)) is by:
                return by
        except NoAnswer:
            if _bool(right(values)) is by:
                return by
            raise
        return _bool(right(values))

    return evaluate


def _matches(subject: Evaluate, pattern: Node) -> Evaluate:
    if not (isinstance(pattern, Literal) and isinstance(pattern.value, str)):
        raise SelectorError("a pattern has to be a constant string")
    search = compiled(pattern.value).search
    return lambda values: search(_text(subject(values))[:MAX_SUBJECT]) is not None


def _quantity(node: Node) -> Evaluate:
    if not (isinstance(node, Literal) and isinstance(node.value, str)):
        raise SelectorError('quantity() takes a constant string, as in quantity("64Gi")')
    try:
        value = Quantity.parse(node.value)
    except ValueError as error:
        raise SelectorError(str(error)) from None
    return lambda _: value


# ---- values -----------------------------------------------------------------------------------


def _bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise NoAnswer("a condition is neither true nor false")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise NoAnswer("text is expected")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: int) -> int:
    if -(1 << 63) <= value < 1 << 63:
        return value
    raise NoAnswer("a number has become larger than 64 bits hold")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(((_number(a) and _number(b)) or type(a) is type(b)) and a == b)


def _in(a: Any, b: Any) -> bool:
    if not isinstance(b, list):
        raise NoAnswer("'in' looks into a list")
    return any(_equal(a, item) for item in b)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def evaluate(a: Any, b: Any) -> bool:
        alike = type(a) is type(b) and isinstance(a, str | bool)
        if not (alike or (_number(a) and _number(b))):
            raise NoAnswer("these two cannot be compared")
        return compare(a, b)

    return evaluate


def _add(a: Any, b: Any) -> Any:
    alike = type(a) is type(b) and isinstance(a, str | list)
    return operator.add(a, b) if alike else _arithmetic(operator.add)(a, b)


def _arithmetic(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def evaluate(a: Any, b: Any) -> Any:
        if not (_number(a) and type(a) is type(b)):
            raise NoAnswer("these two cannot be calculated with")
        try:
            result = compute(a, b)
        except (ZeroDivisionError, OverflowError):
            raise NoAnswer("a division by zero, or a number that is too large") from None
        return _whole(result) if isinstance(a, int) else result

    return evaluate


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, float):
        return a / b
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: Any, b: Any) -> Any:
    if isinstance(a, float):
        raise NoAnswer("% is for whole numbers")
    return abs(a) % abs(b) * (-1 if a < 0 else 1)


def _negate(value: Any) -> Any:
    if not _number(value):
        raise NoAnswer("- is for numbers")
    return _whole(-value) if isinstance(value, int) else -value


def _size(value: Any) -> int:
    if not isinstance(value, str | list):
        raise NoAnswer("only texts and lists have a size")
    return len(value)


def _compare_quantities(a: Any, b: Any) -> int:
    if not (isinstance(a, Quantity) and isinstance(b, Quantity)):
        raise NoAnswer("a quantity is compared with a quantity")
    return (a > b) - (a < b)


_UNARY: dict[str, Callable[[Any], Any]] = {"negate": _negate, "size": _size}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "!=": lambda a, b: not _equal(a, b),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "in": _in,
    "+": _add,
    "-": _arithmetic(operator.sub),
    "*": _arithmetic(operator.mul),
    "/": _arithmetic(_divide),
    "%": _arithmetic(_remainder),
    "startsWith": lambda a, b: _text(a).startswith(_text(b)),
    "endsWith": lambda a, b: _text(a).endswith(_text(b)),
    "contains": lambda a, b: _text(b) in _text(a),
    "compareTo": _compare_quantities,
    "isGreaterThan": lambda a, b: _compare_quantities(a, b) > 0,
    "isLessThan": lambda a, b: _compare_quantities(a, b) < 0,
}
