"""Sizes and spans as people write and read them, and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.units import LARGEST_BYTES, format_bytes, format_seconds, parse_bytes

POWERS = {letter: power for power, letter in enumerate("KMGTP", start=1)}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GiB", 20 << 30),
        ("512 MiB", 512 << 20),
        ("  1KiB\n", 1024),
        ("1.5TB", 1_500_000_000_000),
        ("0.5KiB", 512),
        ("1b", 1),
        ("7 B", 7),
        ("1g", 10**9),
        ("1Gi", 1 << 30),
        ("1gib", 1 << 30),
        ("0.1GiB", 107374182),  # whole bytes, downwards: never more than was asked for
        ("1024PiB", LARGEST_BYTES),
    ],
)
def test_what_a_size_means(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "write it like 20GiB"),
        ("20", "say its unit, for example 20GiB"),
        ("1.5", "for example 1.5GiB"),
        ("-1GiB", "write it like"),
        ("GiB", "write it like"),
        ("1,5GiB", "write it like"),
        ("1e3MiB", "write it like"),
        (".5GiB", "write it like"),
        ("5.GiB", "write it like"),
        ("20GiBs", "write it like"),
        ("0GiB", "more than nothing"),
        ("0.1B", "more than nothing"),
        ("1025PiB", "more memory than any machine has"),
        ("9" * 400 + "GiB", "more memory than any machine has"),
    ],
)
def test_what_is_no_size_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as refused:
        parse_bytes(text)
    assert hint in str(refused.value)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_size_within_bounds_or_a_value_error(text: str) -> None:
    try:
        size = parse_bytes(text)
    except ValueError as refused:
        assert str(refused).startswith(f"'{text}' is ")
    else:
        assert 0 < size <= LARGEST_BYTES


@settings(deadline=None)
@given(st.integers(1, 1024), st.sampled_from("KMGTP"), st.sampled_from(["", " "]), st.booleans())
def test_whole_numbers_of_a_unit_are_exact(count: int, letter: str, space: str, lower: bool) -> None:
    for base, suffix in ((1024, "iB"), (1000, "B")):
        text = f"{count}{space}{letter}{suffix}"
        assert parse_bytes(text.lower() if lower else text) == count * base ** POWERS[letter]


@settings(deadline=None)
@given(st.integers(1, LARGEST_BYTES))
def test_a_printed_size_reads_back_to_its_precision(size: int) -> None:
    back = parse_bytes(format_bytes(size))
    unit = max((1024**power for power in POWERS.values() if 1024**power <= size), default=1)
    assert abs(back - size) <= unit * 0.05 + 1


@settings(deadline=None)
@given(st.integers(1, LARGEST_BYTES))
def test_bytes_read_back_exactly(size: int) -> None:
    assert parse_bytes(f"{size}B") == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (20 << 30, "20.0 GiB"),
        (85_520_809_984, "79.6 GiB"),
    ],
)
def test_how_a_size_is_printed(size: int | None, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0, "0 s"), (8.4, "8 s"), (59, "59 s"), (60, "1 min"), (180, "3 min"), (9000, "2.5 h")],
)
def test_how_a_span_is_printed(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
