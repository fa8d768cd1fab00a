"""The frame of the benchmarks: verdicts, the table, and A B A B."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import frame
from benchmarks.frame import Figure, NotMeasured, at_least, at_most, compared, note, run, table, within


def module(name: str, figures: Any) -> ModuleType:
    made: Any = SimpleNamespace(__name__=f"benchmarks.{name}", figures=figures)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("figure", "reached", "target"),
    [
        (at_most("a", 1.25, "×", 1.25), True, "≤ 1.25"),
        (at_most("a", 1.26, "×", 1.25), False, "≤ 1.25"),
        (at_least("a", 9, "", 10), False, "≥ 10"),
        (at_least("a", 10, "", 10), True, "≥ 10"),
        (within("a", 27, "%", 30, 3), True, "30 ± 3"),
        (within("a", 33.1, "%", 30, 3), False, "30 ± 3"),
        (note("a", 3, "ms"), None, ""),
    ],
)
def test_a_figure_is_held_to_its_target(figure: Figure, reached: bool | None, target: str) -> None:
    assert (figure.reached, figure.target) == (reached, target)


def test_the_table_has_value_target_and_verdict_side_by_side() -> None:
    lines = table([
        at_most("short", 1.2, "×", 1.25, "why"),
        at_most("a longer name", 14, "×", 1),
        note("noted", 3.14159, "ms"),
        Figure("gone", None, "", remark="not measured: no peer"),
    ])  # fmt: skip
    assert lines == [
        "FIGURE           VALUE  TARGET  VERDICT",
        "short            1.2 ×  ≤ 1.25  reached       why",
        "a longer name     14 ×  ≤ 1     MISSED",
        "noted          3.14 ms",
        "gone                 –          not measured  not measured: no peer",
        "1 of 2 targets missed, 1 not measured",
    ]


def test_two_ways_are_measured_in_turn_and_a_slow_round_does_not_count() -> None:
    order: list[str] = []
    clock = iter([99, 1, 2, 1, 20, 2, 4, 2])

    def measure(work: Any) -> float:
        work()
        return next(clock)

    both = compared(lambda: order.append("A"), lambda: order.append("B"), rounds=3, measure=measure)
    assert order == ["A", "B"] * 4
    assert (both.ratio, both.difference, both.first, both.second) == (2, 2, 4, 2)


def test_what_cannot_be_measured_says_why_and_the_others_are_measured() -> None:
    def missing() -> Any:
        yield note("before", 1, "")
        raise NotMeasured("no nvitop")

    found = list(run([module("peers", missing), module("own", lambda: iter([note("own", 2, "")]))]))
    assert [(name, figure.name, figure.value) for name, figure in found] == [
        ("peers", "before", 1), ("peers", "peers", None), ("own", "own", 2),
    ]  # fmt: skip
    assert found[1][1].remark == "not measured: no nvitop"


def test_progress_is_for_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    frame.progress("round 1")
    assert capsys.readouterr().err == ""
