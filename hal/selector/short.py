"""The short form: ``vendor == "nvidia" && memory >= 64Gi``, which is not CEL, put into CEL.

A bare name is an attribute of hal's own; ``memory`` is a capacity, and capacities are compared with
quantities. What is CEL already stays as it is, so that either form can be given anywhere.
"""

from __future__ import annotations

import re

from hal.selector.lex import Token, tokens

__all__ = ["CAPACITIES", "to_cel", "to_short"]

CAPACITIES = frozenset({"memory"})
_NOT_OURS = frozenset({"device", "true", "false", "null", "in", "has", "quantity", "size"})
_COMPARISON = re.compile(
    r'device\.capacity\["hal"\]\.(\w+)\.compareTo\(quantity\("([^"]*)"\)\) (==|!=|<=|>=|<|>) 0'
)
_COMPARED = frozenset({"==", "!=", "<", "<=", ">", ">="})


def to_cel(text: str) -> str:
    """The same in CEL; nothing else changes, not even the spaces. Raises SelectorError."""
    found = tokens(text)
    out: list[str] = []
    copied = 0
    index = 0
    while index < len(found):
        end, written = _translated(found, index)
        if written is not None:
            out += (text[copied : found[index].at], written)
            copied = found[end - 1].at + len(found[end - 1].text)
        index = end
    return "".join([*out, text[copied:]])


def to_short(cel: str) -> str:
    """For people: what `to_cel` would read as the same, where it is simple."""
    text = _COMPARISON.sub(r"\1 \3 \2", cel)
    return text.replace('device.attributes["hal"].', "")


def _translated(found: list[Token], index: int) -> tuple[int, str | None]:
    """The tokens that begin here and belong together: where they end, and their CEL if it differs."""
    here = found[index]
    if _bare(found, index):
        if here.text not in CAPACITIES:
            return index + 1, f'device.attributes["hal"].{here.text}'
        path = f'device.capacity["hal"].{here.text}'
        if _compares(found, index + 1) and (amount := _amount(found, index + 2)):
            return index + 3, f"{path}.compareTo({amount}) {found[index + 1].text} 0"
        return index + 1, path
    amount = _amount(found, index)
    if amount and _compares(found, index + 1) and _bare(found, index + 2):
        name = found[index + 2].text
        if name in CAPACITIES and not _goes_on(found, index + 3):
            path = f'device.capacity["hal"].{name}'
            return index + 3, f"{amount}.compareTo({path}) {found[index + 1].text} 0"
    if here.kind == "quantity":
        return index + 1, amount
    return index + 1, None


def _bare(found: list[Token], index: int) -> bool:
    """A name that is neither a member of something nor a function."""
    if index >= len(found) or found[index].kind != "name" or found[index].text in _NOT_OURS:
        return False
    return not (index and found[index - 1].text == ".") and not (
        index + 1 < len(found) and found[index + 1].text == "("
    )


def _compares(found: list[Token], index: int) -> bool:
    return index < len(found) and found[index].text in _COMPARED


def _goes_on(found: list[Token], index: int) -> bool:
    return index < len(found) and found[index].text in (".", "[")


def _amount(found: list[Token], index: int) -> str | None:
    if (
        index < len(found)
        and found[index].kind in ("quantity", "int")
        and "x" not in found[index].text.lower()
    ):
        return f'quantity("{found[index].text}")'
    return None
