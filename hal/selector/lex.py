"""An expression as tokens, and the bounds on what is taken in at all."""

from __future__ import annotations

import ast
import re

from msgspec import Struct

from hal.selector.quantity import SUFFIX

__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "MAX_LIST", "MAX_OPERATORS", "SelectorError", "Token", "tokens"]

MAX_CHARACTERS = 2048
MAX_DEPTH = 24  # of brackets, negations and conditions within one another
MAX_LIST = 64  # elements
MAX_OPERATORS = 128  # between two operands

_TOKEN = re.compile(
    rf"""
      (?P<space>[ \t\r\n]+)
    | (?P<quantity>(?:\d+(?:\.\d+)?)(?:{SUFFIX})(?![A-Za-z0-9_]))
    | (?P<float>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    | (?P<int>0[xX][0-9a-fA-F]+|\d+)(?![A-Za-z0-9_])
    | (?P<string>[rR]?(?:"(?:[^"\\\r\n]|\\.)*"|'(?:[^'\\\r\n]|\\.)*'))
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]])
    """,
    re.VERBOSE,
)
# Escapes that CEL and Python read alike.
_ESCAPES = re.compile(r"""\\(?:[abfnrtv\\'"]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})""")


class SelectorError(ValueError):
    """An expression that is not taken; ``str()`` is one sentence that says where and why."""


class Token(Struct, frozen=True):
    kind: str
    text: str
    at: int  # the character it begins with

    @property
    def value(self) -> str:
        """What a string says."""
        raw = self.text[0] in "rR"
        body = self.text[2:-1] if raw else self.text[1:-1]
        if raw or "\\" not in body:
            return body
        if "\\" in _ESCAPES.sub("", body):
            raise SelectorError(f"a string at character {self.at + 1} has an escape that is not known")
        try:
            read = ast.literal_eval(f'"{_ESCAPES.sub(_kept, body)}"')
        except (SyntaxError, ValueError):
            raise SelectorError(
                f"a string at character {self.at + 1} has an escape of no character"
            ) from None
        assert isinstance(read, str)
        if any("\ud800" <= character <= "\udfff" for character in read):
            raise SelectorError(f"a string at character {self.at + 1} has an escape of no character")
        return read


def _kept(match: re.Match[str]) -> str:
    return match.group()


def tokens(text: str) -> list[Token]:
    """Raises SelectorError when it is too long, or has a character that belongs nowhere."""
    if len(text) > MAX_CHARACTERS:
        raise SelectorError(f"it has {len(text)} characters, and {MAX_CHARACTERS} are allowed")
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise SelectorError(f"{text[at]!r} at character {at + 1} is not understood")
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            found.append(Token(kind, match.group(), at))
        at = match.end()
    return found
