"""Which devices are meant: CEL in the shape of Kubernetes DRA's device selectors, and its short form.

    device.attributes["hal"].vendor == "amd" && device.capacity["hal"].memory.compareTo(quantity("64Gi")) >= 0
    vendor == "amd" && memory >= 64Gi

A subset of CEL is compiled here to closures, so that what reaches the scheduler is bounded before it
runs: no loops, no macros, no patterns that backtrack. Where both take an expression, this and a full
CEL agree (the tests ask one).
"""

from hal.selector.cache import Cache, Selector, selector
from hal.selector.evaluate import Missing, NoAnswer
from hal.selector.lex import MAX_CHARACTERS, SelectorError
from hal.selector.parse import Path
from hal.selector.quantity import Quantity
from hal.selector.short import to_cel, to_short

__all__ = [
    "MAX_CHARACTERS",
    "Cache",
    "Missing",
    "NoAnswer",
    "Path",
    "Quantity",
    "Selector",
    "SelectorError",
    "selector",
    "to_cel",
    "to_short",
]
