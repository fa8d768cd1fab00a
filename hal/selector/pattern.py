"""Regular expressions that cannot run away: what RE2 and Python read alike, with a bounded cost."""

from __future__ import annotations

import re

from hal.selector.lex import SelectorError

__all__ = ["MAX_SUBJECT", "compiled"]

MAX_SUBJECT = 128  # characters that are looked at
_MAX_PATTERN = 100
_MAX_COST = MAX_SUBJECT * MAX_SUBJECT * 16  # ways to match that may have to be tried

_PART = re.compile(
    r"""
      \\[dDwWsSbB.\\+*?()\[\]{}|^$/-]
    | \[\^?(?:[^\]\[\\]|\\[dwsDWS\\\]\[.^-])+\]
    | [^\\\[\](){}|*+?]
    | \(\?:
    | [(|]
    | \)
    | [*+?]\??
    | \{\d{1,2}(?:,\d{0,2})?\}\??
    """,
    re.VERBOSE,
)


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises SelectorError for one that is none, or that could take long.

    Python tries ways to match one after the other: each repetition multiplies them by what it can span,
    each choice by its alternatives, and repeated groups without end. So groups are not repeated, and
    the product is bounded.
    """
    if len(pattern) > _MAX_PATTERN:
        raise SelectorError(f"a pattern has {len(pattern)} characters, and {_MAX_PATTERN} are allowed")
    cost, at, before = 1, 0, ""
    choices = [1]
    while at < len(pattern):
        match = _PART.match(pattern, at)
        if match is None:
            raise SelectorError(f"the pattern '{pattern[:60]}' has something at {at + 1} that is not taken")
        part = match.group()
        repeats = part[0] in "*+?{" and len(part) > 0
        if repeats and (not before or before[0] in "*+?{(|" or before == ")"):
            raise SelectorError(
                f"the pattern '{pattern[:60]}' repeats a group or nothing, which is not taken"
            )
        if repeats:
            cost *= 2 if part[0] == "?" else MAX_SUBJECT
        elif part[0] == "(":
            choices.append(1)
        elif part == "|":
            choices[-1] += 1
        elif part == ")":
            cost *= choices.pop()
            if not choices:
                raise SelectorError(f"the pattern '{pattern[:60]}' closes a group that is not open")
        before, at = part, match.end()
    for choice in choices:
        cost *= choice
    if cost > _MAX_COST:
        raise SelectorError(f"the pattern '{pattern[:60]}' could take too long: use fewer repetitions")
    try:
        return re.compile(pattern, re.ASCII)
    except re.error as error:
        raise SelectorError(f"the pattern '{pattern[:60]}' is none: {error}") from None
