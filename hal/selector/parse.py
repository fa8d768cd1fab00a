"""Tokens to a tree: the part of CEL that can neither loop nor grow.

Attributes are referred to by constant names only, so that before anything runs it is known which
attributes an expression depends on.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from hal.selector.lex import MAX_DEPTH, MAX_LIST, MAX_OPERATORS, SelectorError, Token, tokens

__all__ = ["Call", "Has", "Items", "Literal", "Node", "Path", "Reference", "parse"]

# ("attributes", "hal", "vendor"), ("capacity", "hal", "memory") or ("driver",)
Path = tuple[str, ...]


class Literal(Struct, frozen=True):
    value: Any


class Reference(Struct, frozen=True):
    path: Path


class Has(Struct, frozen=True):
    path: Path


class Items(Struct, frozen=True):
    items: tuple[Node, ...]


class Call(Struct, frozen=True):
    """An operator or function; ``begin`` and ``end`` are where its text is."""

    name: str
    arguments: tuple[Node, ...]
    begin: int = 0
    end: int = 0


Node = Literal | Reference | Has | Items | Call

_LEVELS = (("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">=", "in"), ("+", "-"), ("*", "/", "%"))
# Name and number of arguments, a method's object among them.
_FUNCTIONS = {"quantity": 1, "size": 1}
_METHODS = {
    "startsWith": 2,
    "endsWith": 2,
    "contains": 2,
    "matches": 2,
    "size": 1,
    "compareTo": 2,
    "isGreaterThan": 2,
    "isLessThan": 2,
}
_MACROS = frozenset({"all", "exists", "exists_one", "map", "filter", "existsOne", "transformList"})


def parse(text: str) -> Node:
    """Raises SelectorError with a sentence that says where."""
    parser = _Parser(text)
    node = parser.expression()
    if parser.index < len(parser.tokens):
        raise parser.unexpected()
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.index = 0
        self.depth = 0
        self.operators = 0

    # ---- tokens -----------------------------------------------------------------------------

    def peek(self) -> str:
        token = self.token()
        return token.text if token is not None and token.kind in ("sign", "name") else ""

    def token(self) -> Token | None:
        return self.tokens[self.index] if self.index < len(self.tokens) else None

    def take(self, text: str) -> bool:
        if self.peek() != text:
            return False
        self.index += 1
        return True

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.unexpected(f"'{text}' is expected")

    def unexpected(self, what: str = "") -> SelectorError:
        token = self.token()
        where = "at the end" if token is None else f"at character {token.at + 1}, before '{token.text[:20]}'"
        return SelectorError(f"{what or 'this does not belong'} {where}")

    def where(self) -> int:
        token = self.token()
        return len(self.text) if token is None else token.at

    def ended(self) -> int:
        last = self.tokens[self.index - 1]
        return last.at + len(last.text)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise SelectorError(f"it is nested more than {MAX_DEPTH} deep")

    # ---- grammar ----------------------------------------------------------------------------

    def expression(self) -> Node:
        self.deeper()
        begin = self.where()
        node = self.level(0)
        if self.take("?"):
            chosen = self.level(0)
            self.need(":")
            node = Call("?", (node, chosen, self.expression()), begin, self.ended())
        self.depth -= 1
        return node

    def level(self, number: int) -> Node:
        if number == len(_LEVELS):
            return self.unary()
        begin = self.where()
        node = self.level(number + 1)
        while (operator := self.peek()) in _LEVELS[number]:
            self.index += 1
            self.operators += 1
            if self.operators > MAX_OPERATORS:
                raise SelectorError(f"it has more than {MAX_OPERATORS} operators")
            right = self.level(number + 1)
            if operator == "in" and isinstance(right, Reference) and len(right.path) == 2:
                if not (isinstance(node, Literal) and isinstance(node.value, str)):
                    raise SelectorError('only a constant name can be looked for with "name" in attributes')
                node = Has((*right.path, node.value))
            else:
                node = Call(operator, (node, right), begin, self.ended())
        return node

    def unary(self) -> Node:
        begin, operator = self.where(), self.peek()
        if operator not in ("!", "-"):
            return self.member()
        self.index += 1
        token = self.token()
        if operator == "-" and token is not None and token.kind in ("int", "float"):
            self.index += 1
            return self.members(self.literal(token, "-"), begin)
        self.deeper()
        node = Call("not" if operator == "!" else "negate", (self.unary(),), begin, self.ended())
        self.depth -= 1
        return node

    def member(self) -> Node:
        begin = self.where()
        return self.members(self.primary(), begin)

    def members(self, node: Node, begin: int) -> Node:
        while True:
            if self.take("."):
                name = self.name()
                if self.peek() == "(":
                    node = self.called(name, (node,), _METHODS, begin)
                else:
                    node = self.part(node, name)
            elif self.take("["):
                inner = self.expression()
                self.need("]")
                if not (isinstance(inner, Literal) and isinstance(inner.value, str)):
                    raise SelectorError("what stands in [ ] has to be a constant string")
                node = self.part(node, inner.value)
            else:
                return node

    def primary(self) -> Node:
        token = self.token()
        if token is None:
            raise self.unexpected("an expression is expected")
        begin = self.index
        self.index += 1
        if token.kind in ("int", "float", "string"):
            return self.literal(token)
        if token.kind == "quantity":
            raise SelectorError(f"'{token.text}' at character {token.at + 1} cannot be compared here")
        if token.text in ("true", "false", "null"):
            return Literal({"true": True, "false": False, "null": None}[token.text])
        if token.text == "device":
            return Reference(())
        if token.text == "has":
            return self.has()
        if token.text == "(":
            node = self.expression()
            self.need(")")
            return node
        if token.text == "[":
            return self.items()
        if token.kind == "name" and token.text != "in":
            if self.peek() == "(":
                return self.called(token.text, (), _FUNCTIONS, token.at)
            raise SelectorError(f"'{token.text}' is not known; devices are called 'device'")
        self.index = begin
        raise self.unexpected("an expression is expected")

    def literal(self, token: Token, sign: str = "") -> Literal:
        if token.kind == "string":
            return Literal(token.value)
        if token.kind == "float":
            return Literal(float(sign + token.text))
        number = int(sign + token.text, 16 if token.text[:2] in ("0x", "0X") else 10)
        if not -(1 << 63) <= number < 1 << 63:
            raise SelectorError(f"{sign}{token.text[:20]} is a larger number than 64 bits hold")
        return Literal(number)

    def name(self) -> str:
        token = self.token()
        if token is None or token.kind != "name":
            raise self.unexpected("a name is expected")
        self.index += 1
        return token.text

    def part(self, node: Node, name: str) -> Reference:
        if not isinstance(node, Reference):
            raise SelectorError(f"only a device has parts, and '.{name[:20]}' is asked of something else")
        path = (*node.path, name)
        if path[0] not in ("attributes", "capacity", "driver"):
            raise SelectorError(f"a device has attributes, capacity and driver, and no '{path[0][:20]}'")
        if len(path) > (1 if path[0] == "driver" else 3):
            raise SelectorError(f"'{'.'.join(path[:-1])[:60]}' has no parts")
        return Reference(path)

    def has(self) -> Has:
        self.need("(")
        node = self.expression()
        self.need(")")
        if not (isinstance(node, Reference) and len(node.path) == 3):
            raise SelectorError('has() asks for one attribute, as in has(device.attributes["hal"].vendor)')
        return Has(node.path)

    def items(self) -> Items:
        found: list[Node] = []
        while not self.take("]"):
            found.append(self.expression())
            if len(found) > MAX_LIST:
                raise SelectorError(f"a list has more than {MAX_LIST} elements")
            if self.peek() != "]":
                self.need(",")
        return Items(tuple(found))

    def called(self, name: str, before: tuple[Node, ...], known: dict[str, int], begin: int) -> Call:
        if name in _MACROS:
            raise SelectorError(f"{name}() is not taken here: an expression may not loop")
        if name not in known:
            raise SelectorError(f"there is no function {name[:20]}() here")
        self.need("(")
        arguments = list(before)
        while not self.take(")"):
            arguments.append(self.expression())
            if len(arguments) > known[name]:
                break
            if self.peek() != ")":
                self.need(",")
        if len(arguments) != known[name]:
            raise SelectorError(f"{name}() has another number of arguments")
        return Call(name, tuple(arguments), begin, self.ended())
