"""How it is doing: the rows that a card has, read by the deadline, no question put twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from hal.backend import Answer, Call, Cost, Figure, Group, Value, read_table
from hal.model import Reading, Scope
from hal_amd import errors, rows
from hal_amd.ask import Answers
from hal_amd.device import Card, Cards, Shape

__all__ = ["sample"]


def sample(
    cards: Cards, groups: Sequence[Group], ids: Sequence[str], deadline: float, costs: frozenset[Cost]
) -> list[Reading]:
    """Readings of each device or slice in turn. Raises GoneError for an id that AMD SMI does not know."""
    subjects = [(subject, *cards.find(subject)) for subject in ids]
    wanted = frozenset(groups)
    asked: dict[tuple[str, int | None], Answers] = {}
    readings: list[Reading] = []

    def answers(card: Card, part: int | None) -> Answers:
        key = (card.id, part)
        if key not in asked:
            processor = card.first if part is None else card.processors[part]
            # Fast figures alone are asked for on every tick; with others, it is time to ask for all anew.
            known = card.hopeless.setdefault(part, {}) if Cost.SLOW not in costs else {}
            asked[key] = Answers(cards.smi, processor, known)
        return asked[key]

    for subject, card, part in subjects:
        of = rows.Subject(card, answers(card, None), answers(card, part), part or 0)
        table = _table(card.shape, part, wanted, costs)
        readings += read_table(table, cards.versions, of, subject, deadline, _failed)
    codes = {code for each in asked.values() for code in each.codes}
    if codes & errors.INVALID_HANDLE:
        cards.forget()
    cards.lost = errors.NOT_INITIALISED in codes
    return readings


@lru_cache(maxsize=256)
def _table(
    shape: Shape, part: int | None, groups: frozenset[Group], costs: frozenset[Cost]
) -> tuple[Call, ...]:
    """Of a partition, what is not its own is its parent's."""
    table = rows.of_card(shape)
    if part is not None:
        own = rows.of_partition(shape, part)
        kinds = {_kind(figure) for row in own for figure in row.figures}
        table = (*own, *(_of_parent(row, kinds) for row in table))
    return tuple(row for row in table if row.figures and row.group in groups and row.cost in costs)


_Kind = tuple[str, ...]


def _kind(figure: Figure) -> _Kind:
    """compute0 and compute1 are of one kind."""
    return (figure.name, *(label.rstrip("0123456789") for label in figure.labels.values()))


def _of_parent(row: Call, own: set[_Kind]) -> Call:
    """The card's row as a partition has it: said to be the card's, without the figures of its own."""
    kept = [place for place, figure in enumerate(row.figures) if _kind(figure) not in own]

    def read(library: object, subject: rows.Subject) -> tuple[Answer, ...]:
        shared = subject.card_says.shared  # with the card's other partitions
        values = shared.get(row.read)
        if values is None:
            values = shared[row.read] = row.read(library, subject)
        return tuple(values[place] for place in kept)

    return row._replace(figures=tuple(row.figures[place] for place in kept), scope=Scope.PARENT, read=read)


def _failed(failure: Exception) -> Value:
    return Value(None, *errors.status(failure))
