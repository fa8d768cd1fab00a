"""HSA_CU_MASK: whole strides over the XCCs, whole WGPs, nothing that ROCr would drop in silence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal_amd.cumask import mask, parse

PARTS = [
    (304, 8, "gfx942"),
    (38, 1, "gfx942"),
    (104, 1, "gfx90a"),
    (96, 1, "gfx1100"),
    (40, 1, "gfx1151"),
    (7, 2, "gfx942"),
]


def test_a_share_of_a_mi300x_takes_the_same_of_each_xcc() -> None:
    assert mask(304, 8, "gfx942", 0, 250) == "0:0-71"
    units = parse(mask(304, 8, "gfx942", 0, 250))[0]
    assert [sum(1 for unit in units if unit % 8 == die) for die in range(8)] == [9] * 8


def test_a_share_of_an_rdna_part_is_whole_wgps() -> None:
    assert mask(96, 1, "gfx1100", 0, 300) == "0:0-27"
    assert mask(96, 1, "gfx1100", 300, 10, ordinal=2) == "2:28-29"


@given(st.sampled_from(PARTS), st.integers(0, 999), st.integers(1, 1000))
def test_every_share_is_valid_and_never_empty(part: tuple[int, int, str], first: int, milli: int) -> None:
    units, dies, arch = part
    if first + milli > 1000:
        with pytest.raises(ValueError, match="no part of a GPU"):
            mask(units, dies, arch, first, milli)
        return
    left = parse(mask(units, dies, arch, first, milli))[0]
    assert left
    assert max(left) < units
    stride = dies if dies > 1 else 2 if arch.startswith("gfx1") else 1
    assert min(left) % stride == 0
    assert (max(left) + 1) % stride == 0 or max(left) == units - 1


@given(st.sampled_from(PARTS), st.lists(st.integers(100, 400), min_size=1, max_size=6))
def test_shares_side_by_side_do_not_overlap_where_there_is_a_stride_for_each(
    part: tuple[int, int, str], shares: list[int]
) -> None:
    units, dies, arch = part
    if units < 38:
        return
    taken: set[int] = set()
    at = 0
    for milli in shares:
        if at + milli > 1000:
            break
        here = parse(mask(units, dies, arch, at, milli))[0]
        assert not here & taken
        taken |= here
        at += milli


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "set 1 of the mask, ''"),
        ("0", "set 1"),
        ("0:", "set 1"),
        ("0:1-", "set 1"),
        ("0:0-3;", "set 2 of the mask, ''"),
        ("0:0-3;0:4-5", "names GPU 0 a second time"),
        ("0:9-3", "'9-3', which is no range"),
        ("0:0-99999", "no range below 1024"),
        ("a:0-3", "set 1"),
        ("0:0xff", "set 1"),
    ],
)
def test_what_rocr_would_drop_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_lists_and_ranges_are_read() -> None:
    assert parse("0,2:0-1,5; 1:3") == {0: {0, 1, 5}, 2: {0, 1, 5}, 1: {3}}
