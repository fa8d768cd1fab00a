"""What a rest of a device is worth, given the sizes that arrive: the prices of a cutting-stock problem.

The best a fleet can do with parts of devices is to cut each device by patterns that leave little over.
The linear program that finds the fewest devices for a given demand (Gilmore and Gomory, 1961) has a
price for each size as its dual; what a rest is worth is the most that fits into it at these prices.
Placing ``size`` into ``rest`` then wastes ``worth[rest] - worth[size] - worth[rest - size]``, which is
nothing when both go into a pattern that is worth having.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hal.scheduler.core.facts import WHOLE_MILLI

__all__ = ["WORTH", "worth_of_rests"]

WORTH = 720720  # of a whole device: halves, thirds and so on to sixteenths of it are whole numbers
_SIZES = 24  # that are told apart; of a longer list those that ask for the most count
_STEPS = 200
_NEAR = 1e-9


def worth_of_rests(demand: Mapping[int, float]) -> NDArray[np.float64]:
    """For each rest from 0 to a whole device, in milli-shares, its worth in whole numbers up to WORTH.

    ``demand`` says how many parts of each size are to be expected. The arithmetic is plain IEEE in a
    fixed order, so that every machine finds the same.
    """
    wanted = {size: count for size, count in demand.items() if 0 < size < WHOLE_MILLI and count > 0}
    most = sorted(wanted, key=lambda size: (-size * wanted[size], size))[:_SIZES]
    sizes = sorted(most)
    table = _best(sizes, _prices(sizes, [wanted[size] for size in sizes]))
    worth = np.floor(np.minimum(table, 1.0) * WORTH + 0.5)
    worth[WHOLE_MILLI] = WORTH
    return worth


def _prices(sizes: list[int], counts: list[float]) -> list[float]:
    """The dual prices, by the simplex method with columns generated as they are needed."""
    several = [WHOLE_MILLI // size for size in sizes]
    inverse = [[1.0 / n if i == j else 0.0 for j in range(len(sizes))] for i, n in enumerate(several)]
    amounts = [count / n for count, n in zip(counts, several, strict=True)]
    costs = [1.0] * len(sizes)
    prices: list[float] = [1.0 / n for n in several]
    for _ in range(_STEPS):
        prices = [
            sum(cost * line[j] for cost, line in zip(costs, inverse, strict=True)) for j in range(len(sizes))
        ]
        negative = next((j for j, price in enumerate(prices) if price < -_NEAR), None)
        if negative is not None:  # more of this size than is asked for costs nothing
            cost, column = 0.0, [-1.0 if j == negative else 0.0 for j in range(len(sizes))]
        else:
            table = _best(sizes, prices)
            if table[WHOLE_MILLI] <= 1.0 + _NEAR:
                break
            cost, column = 1.0, _pattern(sizes, prices, table)
        change = [sum(a * b for a, b in zip(line, column, strict=True)) for line in inverse]
        leaving = min(
            (i for i, step in enumerate(change) if step > _NEAR),
            key=lambda i: (amounts[i] / change[i], i),
            default=None,
        )
        if leaving is None:
            break
        pivot = [value / change[leaving] for value in inverse[leaving]]
        amount = amounts[leaving] / change[leaving]
        for i, step in enumerate(change):
            if i != leaving and step != 0.0:
                inverse[i] = [a - step * b for a, b in zip(inverse[i], pivot, strict=True)]
                amounts[i] = max(amounts[i] - step * amount, 0.0)
        inverse[leaving], amounts[leaving], costs[leaving] = pivot, amount, cost
    return [max(price, 0.0) for price in prices]


def _best(sizes: list[int], prices: list[float]) -> NDArray[np.float64]:
    """The most that fits into each capacity, any number of each size. Doubling reaches every number."""
    table = np.zeros(WHOLE_MILLI + 1)
    for size, price in zip(sizes, prices, strict=True):
        step, gain = size, price
        while step <= WHOLE_MILLI and gain > 0.0:
            table[step:] = np.maximum(table[step:], table[:-step] + gain)
            step, gain = 2 * step, 2 * gain
    return table


def _pattern(sizes: list[int], prices: list[float], table: NDArray[np.float64]) -> list[float]:
    """How many of each size make up the best for a whole device."""
    column = [0.0] * len(sizes)
    left, value = WHOLE_MILLI, float(table[WHOLE_MILLI])
    while value > _NEAR:
        for j, (size, price) in enumerate(zip(sizes, prices, strict=True)):
            if size <= left and price > 0.0 and float(table[left - size]) + price > value - _NEAR:
                column[j] += 1.0
                left, value = left - size, float(table[left - size])
                break
        else:
            break
    return column
