"""Health: each rule of the policy that comes with hal, from figure or event to state and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.backend import StateError
from hal.model import Event, EventKind, Reading, Status
from hal.telemetry.health import EventRule, FigureRule, HealthState, assess, load_policy

POLICY = load_policy()
ORDER = ["ok", "unknown", "predicted", "degraded", "failed"]  # the worst last
HEAD = 'schema = "hal.health/1"\n'
RULE = '[[figures]]\nmetric = "power_watts"\nabove = 700\nstate = "degraded"\nreason = "hot"\nsource = "us"\n'
EVENT = '[[events]]\nstate = "ok"\nreason = "r"\nsource = "s"\n'


def reading(rule: FigureRule, value: float | None, status: Status = Status.OK) -> Reading:
    return Reading("x:1", rule.metric, value, "count", status, labels={**rule.labels, "more": "1"})


def happened(rule: EventRule, code: int | None) -> Event:
    kind = rule.kind or EventKind.ERROR
    return Event("x:1", kind, 1.0, rule.code_space or "", code, "words", "us")


@pytest.mark.parametrize("rule", POLICY.figures, ids=lambda rule: f"{rule.metric}-{rule.state}")
def test_each_figure_rule_counts_above_its_bound_and_not_at_it(rule: FigureRule) -> None:
    at, above = (assess("x:1", [reading(rule, rule.above + more)], [], POLICY) for more in (0, 1))
    assert (at.state, at.conditions) == (HealthState.OK, ())
    assert above.state is rule.state
    (condition,) = above.conditions
    assert (condition.state, condition.reason, condition.source) == (rule.state, rule.reason, rule.source)
    assert rule.metric in condition.evidence
    assert f"{rule.above + 1:g}" in condition.evidence


@pytest.mark.parametrize("rule", [r for r in POLICY.figures if r.labels], ids=lambda rule: str(rule.labels))
def test_another_label_is_another_figure(rule: FigureRule) -> None:
    other = Reading("x:1", rule.metric, rule.above + 1, "count", labels=dict.fromkeys(rule.labels, "other"))
    assert rule.reason not in [c.reason for c in assess("x:1", [other], [], POLICY).conditions]


@pytest.mark.parametrize(
    ("rule", "code"),
    [(rule, code) for rule in POLICY.events for code in rule.codes or (None,)],
    ids=lambda value: str(value) if isinstance(value, int) else getattr(value, "state", "any"),
)
def test_each_event_rule(rule: EventRule, code: int | None) -> None:
    found = assess("x:1", [], [happened(rule, code)], POLICY)
    assert found.state is rule.state
    assert [(c.reason, c.source) for c in found.conditions] == [(rule.reason, rule.source)]
    assert "words" in found.conditions[0].evidence
    assert code is None or str(code) in found.conditions[0].evidence


def test_no_code_is_in_two_rules_and_an_unknown_one_in_none() -> None:
    codes = [(rule.code_space, code) for rule in POLICY.events for code in rule.codes]
    assert len(codes) == len(set(codes))
    strange = Event("x:1", EventKind.ERROR, 1.0, "xid", 65535)
    same_number = Event("x:1", EventKind.ERROR, 1.0, "ras", 79)  # another's numbers mean other things
    assert assess("x:1", [], [strange, same_number], POLICY).conditions == ()


@given(
    st.lists(st.sampled_from(POLICY.figures), max_size=6),
    st.lists(st.sampled_from(POLICY.events), max_size=4),
)
def test_the_worst_counts_and_every_reason_is_told(
    figures: list[FigureRule], events: list[EventRule]
) -> None:
    readings = [reading(rule, rule.above + 1) for rule in figures]
    happenings = [happened(rule, next(iter(rule.codes), None)) for rule in events]
    found = assess("x:1", readings, happenings, POLICY)
    states = [rule.state for rule in (*figures, *events)]
    if states:
        assert found.state == max([*states, "ok"], key=ORDER.index)
    else:
        assert found.state is HealthState.UNKNOWN
    assert len(found.conditions) == len(states)


@pytest.mark.parametrize("status", [Status.UNSUPPORTED, Status.DENIED, Status.ERROR])
def test_a_figure_that_is_not_there_is_neither_well_nor_ill(status: Status) -> None:
    readings = [reading(rule, None, status) for rule in POLICY.figures]
    found = assess("x:1", readings, [], POLICY)
    assert (found.state, found.conditions) == (HealthState.UNKNOWN, ())


def test_a_stale_figure_does_not_make_a_device_well() -> None:
    rule = POLICY.figures[0]
    assert assess("x:1", [reading(rule, 0, Status.STALE)], [], POLICY).state is HealthState.UNKNOWN
    assert assess("x:1", [reading(rule, 9, Status.STALE)], [], POLICY).state is rule.state


def test_one_figure_that_is_there_is_enough_to_be_well() -> None:
    readings = [reading(rule, None, Status.UNSUPPORTED) for rule in POLICY.figures[1:]]
    readings.append(reading(POLICY.figures[0], POLICY.figures[0].above))
    assert assess("x:1", readings, [], POLICY).state is HealthState.OK


def test_others_figures_and_events_do_not_count() -> None:
    figure, event = POLICY.figures[0], next(rule for rule in POLICY.events if rule.kind is EventKind.LOST)
    assert assess("x:2", [reading(figure, 9)], [happened(event, None)], POLICY).state is HealthState.UNKNOWN


# ---- the policy file -----------------------------------------------------------------------------------


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(HEAD + RULE)
    policy = load_policy(path)
    hot = Reading("x:1", "power_watts", 701.5, "watts")
    assert [c.reason for c in assess("x:1", [hot], [], policy).conditions] == ["hot"]
    assert assess("x:1", [hot], [], POLICY).conditions == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["schema"]),
        ('schema = "hal.health/2"', ["line 1", 'schema = "hal.health/1"']),
        (HEAD + "[[figures]\n", ["line 2", "not TOML"]),
        (HEAD + "rules = 3", ["line 2", "unknown key 'rules'"]),
        (HEAD + RULE.replace("metric", "metrik"), ["line 3", "figures[0]: unknown", "did you mean 'metric'"]),
        (HEAD + RULE.replace("power_watts", "power"), ["line 3", "figures[0]: no metric 'power'"]),
        (HEAD + RULE + RULE.replace("700", '"much"'), ["line 10", "figures[1]", "above", "`str`"]),
        (HEAD + RULE.replace('"degraded"', '"bad"'), ["line 5", "figures[0]", "state", "'bad'"]),
        (HEAD + RULE.replace('reason = "hot"\n', ""), ["line 2", "figures[0]", "`reason`"]),
        (HEAD + RULE + "labels = { window = 3 }", ["line 8", "figures[0]", "labels"]),
        (HEAD + EVENT + 'codes = ["x"]', ["line 6", "events[0].codes"]),
        (HEAD + EVENT + 'kind = "boom"', ["line 6", "events[0].kind", "'boom'"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_policy_names_file_line_and_rule(
    text: str, words: list[str], tmp_path: Path, hal: Callable[..., CompletedProcess[str]]
) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(text)
    with pytest.raises(StateError) as refused:
        load_policy(path)
    message = str(refused.value)
    assert "ours.toml" in message
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_policy_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(StateError, match="cannot read the health policy"):
            load_policy(path)


def test_the_command_takes_a_policy_and_says_what_is_wrong_with_it(
    hal: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(HEAD + RULE.replace("power_watts", "pcie_replays_total").replace("700", "-1"))
    result = hal("health", "--policy", str(path), "--json", on="mixed")
    assert result.returncode == 0, result.stderr
    devices = json.loads(result.stdout)["devices"]
    assert {device["state"] for device in devices} == {"degraded"}
    assert {c["reason"] for device in devices for c in device["conditions"]} == {"hot"}
    path.write_text(HEAD + RULE.replace("degraded", "bad"))
    wrong = hal("health", "--policy", str(path), on="mixed")
    assert (wrong.returncode, wrong.stdout) == (6, "")
    assert wrong.stderr.startswith("hal: the health policy ")
    assert wrong.stderr.count("\n") == 1


def test_an_emulated_fault_is_seen_as_its_rule_says(
    hal: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    path = tmp_path / "ill.toml"
    path.write_text(
        'schema = "hal.machine/1"\n[[devices]]\nmodel = "h100-sxm-80gb"\npci = "0000:19:00.0"\n'
        'nvidia_rows_failed = 1\n[[devices]]\nmodel = "h100-sxm-80gb"\npci = "0000:3b:00.0"\n'
        'nvidia_rows_pending = 1\n[[devices]]\nmodel = "h100-sxm-80gb"\npci = "0000:4b:00.0"\n'
    )
    result = hal("health", "--json", on=str(path))
    assert [device["state"] for device in json.loads(result.stdout)["devices"]] == [
        "failed",
        "predicted",
        "ok",
    ]
