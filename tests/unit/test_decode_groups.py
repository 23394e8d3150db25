"""How decode sequences are put into padded calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_engine.attention import GROUP_WASTE, group_rows


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ([], 10, []),
        ([5], 10, [(0, 1)]),
        ([50], 10, [(0, 1)]),
        ([5, 5], 10, [(0, 2)]),
        ([5, 5, 5], 10, [(0, 2), (2, 3)]),
        ([1, 1, 1, 9], 100, [(0, 3), (3, 4)]),
        ([8, 9, 10], 100, [(0, 3)]),
        ([1, 2], 100, [(0, 1), (1, 2)]),
    ],
)
def test_sequences_of_like_length_share_a_call_up_to_the_limit(
    counts: list[int], limit: int, expected: list[tuple[int, int]]
) -> None:
    assert group_rows(counts, limit) == expected


@given(st.lists(st.integers(1, 200), max_size=60).map(sorted), st.integers(1, 2000))
def test_runs_cover_all_rows_once_and_keep_both_bounds(counts: list[int], limit: int) -> None:
    runs = group_rows(counts, limit)
    assert [row for begin, end in runs for row in range(begin, end)] == list(range(len(counts)))
    for begin, end in runs:
        padded = (end - begin) * counts[end - 1]
        assert padded <= GROUP_WASTE * sum(counts[begin:end])
        assert padded <= limit or end - begin == 1
