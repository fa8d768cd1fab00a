"""Selectors: what CEL says, within bounds, and nothing that could hold up a scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.selector import Cache, Missing, NoAnswer, Path, Quantity, SelectorError, selector, to_cel, to_short

cel = pytest.importorskip("cel", reason="common-expression-language, the oracle, is not installed")

Values = dict[Path, Any]
HAL = {"vendor": "amd", "model": "MI300X", "units": 304, "share": 0.5, "fast": True, "empty": ""}
VALUES: Values = {
    **{("attributes", "hal", name): value for name, value in HAL.items()},
    ("attributes", "amd", "mode"): "SPX",
    ("capacity", "hal", "memory"): Quantity.of(192 << 30),
    ("driver",): "hal",
}
CONTEXT = {"device": {"attributes": {"hal": HAL, "amd": {"mode": "SPX"}}, "driver": "hal"}}


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ('vendor == "nvidia"', 'device.attributes["hal"].vendor == "nvidia"'),
        ("memory >= 64Gi", 'device.capacity["hal"].memory.compareTo(quantity("64Gi")) >= 0'),
        ("64Gi < memory", 'quantity("64Gi").compareTo(device.capacity["hal"].memory) < 0'),
        ("memory != 1.5G", 'device.capacity["hal"].memory.compareTo(quantity("1.5G")) != 0'),
        ("memory > 1000", 'device.capacity["hal"].memory.compareTo(quantity("1000")) > 0'),
        (
            'vendor in ["a", "b"] && !fast',
            'device.attributes["hal"].vendor in ["a", "b"] && !device.attributes["hal"].fast',
        ),
        ('model.startsWith("MI")', 'device.attributes["hal"].model.startsWith("MI")'),
        ("has(vendor)", 'has(device.attributes["hal"].vendor)'),
        ('"vendor == memory" == model', '"vendor == memory" == device.attributes["hal"].model'),
        ('device.attributes["amd"].mode == "SPX"', 'device.attributes["amd"].mode == "SPX"'),
    ],
)
def test_the_short_form_is_put_into_cel(short: str, long: str) -> None:
    assert to_cel(short) == long
    assert to_cel(long) == long
    assert to_cel(to_short(long)) == long
    selector(short)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('vendor == "amd" && memory >= 64Gi', True),
        ("memory >= 192Gi && memory <= 192Gi && memory == 192Gi", True),
        ("memory > 206158430208", False),
        ("memory < 0.2T || memory > 0.19Ti", False),
        ('device.capacity["hal"].memory.isGreaterThan(quantity("191Gi"))', True),
        ('model.matches("^MI(250|300)X$") && !model.contains("H")', True),
        ('has(vendor) && !has(nothing) && "mode" in device.attributes["amd"]', True),
        ('nothing == 1 || vendor == "amd"', True),
        ('vendor == "nvidia" && nothing == 1', False),
        ('device.driver == "hal"', True),
        ('device.attributes["amd"]["mode"] == "SPX" ? fast : !fast', True),
        ("units % 100 == 4 && units / 100 == 3 && -units < 0 && 0x10 == 16", True),
    ],
)
def test_a_selector_says_which_device_is_meant(text: str, answer: bool) -> None:
    assert selector(text).matches(VALUES) is answer


@pytest.mark.parametrize(
    "text", ["nothing == 1", "!nothing", 'nothing == 1 && vendor == "amd"', "has(vendor) && nothing"]
)
def test_what_is_not_known_is_no_answer(text: str) -> None:
    with pytest.raises(Missing, match="nothing is not known"):
        selector(text).matches(VALUES)


@pytest.mark.parametrize(
    "text",
    ["vendor < 1", "vendor", "1 + 1", "vendor && fast", "!units", "units / 0 == 1", "memory == 1.0 + 1"],
)
def test_what_cannot_be_compared_is_no_answer(text: str) -> None:
    with pytest.raises((NoAnswer, SelectorError)):
        selector(text).matches(VALUES)


BAD = {
    "": "an expression is expected at the end",
    'vendor = "amd"': "'=' at character 8 is not understood",
    "vendor == ": "an expression is expected at the end",
    '"open': "not understood",
    "(vendor": "')' is expected",
    "vendor vendor": "this does not belong",
    "device": "write an attribute as",
    'device.attributes["hal"]': "write an attribute as",
    "device.attributes[vendor].x": "has to be a constant string",
    "device.price == 1": "no 'price'",
    'device.attributes["a"].b.c == 1': "has no parts",
    "[1].all(x, x > 0)": "an expression may not loop",
    'device.attributes["hal"].exists(x, true)': "an expression may not loop",
    "run(1)": "no function run()",
    "vendor.size(1)": "another number of arguments",
    "vendor.matches(model)": "a constant string",
    'vendor.matches("(a+)+$")': "repeats a group",
    'vendor.matches("a*a*a*a*a*b")': "could take too long",
    f'vendor.matches("{"(a|b)" * 19}")': "could take too long",
    'vendor.matches("(?=a)")': "not taken",
    r'vendor.matches(r"(a)\1")': "not taken",
    'vendor.matches("[")': "not taken",
    "9223372036854775808 == 1": "64 bits",
    "1" * 2049: "2048 are allowed",
    "(" * 40 + "true" + ")" * 40: "nested more than",
    "!" * 40 + "true": "nested more than",
    "1+" * 200 + "1 == 1": "operators",
    "1 in [" + "1," * 70 + "1]": "more than 64 elements",
    'quantity("1 apple") == 1': "is not a quantity",
    "64Gi == quantity(vendor)": "constant string",
    r'"\q" == vendor': "escape",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_taken_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(SelectorError) as error:
        selector(text)
    assert BAD[text] in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="()[]!&|=<>.\"'\\a1Gi, ", max_size=200))
def test_any_text_is_a_selector_or_a_sentence(text: str) -> None:
    try:
        found = selector(text)
    except SelectorError as error:
        assert str(error)
        return
    try:
        assert found.matches(VALUES) in (True, False)
    except NoAnswer as error:
        assert str(error)


def test_each_distinct_set_of_values_is_evaluated_once() -> None:
    """Not each device: of ten thousand there may be two kinds."""
    cache, chosen = Cache(), selector('vendor == "amd" && memory >= 64Gi')
    for number in range(10_000):
        values = dict(VALUES) | {("attributes", "hal", "id"): f"amd:{number}"}
        values["attributes", "hal", "vendor"] = ("amd", "nvidia")[number % 2]
        assert cache.matches(chosen, values) is (number % 2 == 0)
    assert cache.evaluated == 2


def test_values_of_different_types_are_different_values() -> None:
    cache, chosen = Cache(), selector("x")
    assert cache.matches(chosen, {("attributes", "hal", "x"): True})
    assert not cache.matches(chosen, {("attributes", "hal", "x"): 1})


# ---- the oracle -------------------------------------------------------------------------------

literals = st.sampled_from(
    ["1", "0", "-7", "304", "2.5", "0.5", "1e3", "0x1F", "true", "false", "null", '"amd"', '""', "[1, 2]"]
)
names = st.sampled_from(
    [f'device.attributes["hal"].{name}' for name in HAL]
    + ['device.attributes["hal"].nothing', "device.driver"]
)


BINARY = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&&", "||", "+", "-", "*", "/", "%", "in"])
METHODS = st.sampled_from(["startsWith", "endsWith", "contains"])


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, BINARY, inner).map(lambda t: "({} {} {})".format(*t)),
        st.tuples(inner, BINARY, inner).map(lambda t: "{} {} {}".format(*t)),
        inner.map(lambda one: f"!{one}"),
        st.tuples(inner, inner, inner).map(lambda t: "({} ? {} : {})".format(*t)),
        st.tuples(names, METHODS, inner).map(lambda t: "{}.{}({})".format(*t)),
        inner.map(lambda one: f"size({one})"),
        names.filter(lambda name: "attributes" in name).map(lambda name: f"has({name})"),
    )


@settings(max_examples=1500, deadline=None)
@given(st.recursive(literals | names, combined, max_leaves=4))
def test_whatever_both_take_a_full_cel_says_the_same(text: str) -> None:
    """The answer of a library that others maintain, or no answer where that has none."""
    if "!!" in text:  # the library takes !!x for x, whatever x is; the language does not
        return
    try:
        found = selector(text)
    except SelectorError:
        return
    ours: object
    try:
        ours = found._evaluate(VALUES)
    except NoAnswer:
        ours = None
    try:
        theirs = cel.evaluate(text, CONTEXT)
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError, ZeroDivisionError):
        theirs = None
    assert (type(ours), ours) == (type(theirs), theirs), text


def test_a_pattern_sees_a_bounded_part_of_a_text() -> None:
    """Without the bound on what is looked at, this would not end."""
    chosen = selector('vendor.matches("a*a*b")')
    assert not chosen.matches({("attributes", "hal", "vendor"): "a" * 1_000_000})
