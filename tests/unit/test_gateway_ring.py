"""Where prompts were routed, told from one gateway process to the others."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_gateway.index import PrefixIndex, Routed
from baton_gateway.ring import SLOT_BYTES, SLOT_KEYS, SLOTS, SLOTS_AT_ONCE, Rings

KEYS = st.lists(st.binary(min_size=16, max_size=16), max_size=5) | st.lists(
    st.integers(-(2**63), 2**63 - 1), max_size=5
)
ROUTED = st.lists(st.tuples(st.text(max_size=9), KEYS), max_size=6)


def heard(rings: Rings, index: int) -> list[tuple[str, list[bytes | int]]]:
    return [(url, list(keys)) for url, keys in rings.hear(index)]


@given(st.lists(ROUTED, max_size=2 * SLOTS), st.integers(1, SLOTS))
def test_all_is_heard_once_and_in_order_by_everybody_else(told: list[list[Routed]], every: int) -> None:
    rings, got, wanted = Rings(2), [], [(url, list(keys)) for routed in told for url, keys in routed]
    for number, routed in enumerate(told):
        rings.tell(0, routed)
        if number % every == 0:
            got += heard(rings, 1)
    got += heard(rings, 1)
    assert got == wanted and heard(rings, 1) == [] and heard(rings, 0) == []


def test_who_was_lapped_goes_on_with_what_is_left_and_a_successor_where_the_dead_one_stopped() -> None:
    rings = Rings(2)
    rings.tell(0, [("u", [0])])
    assert heard(rings, 1) == [("u", [0])]
    for number in range(1, 3 * SLOTS + 6):
        rings.tell(0, [("u", [number])])
    assert heard(rings, 1) == [("u", [number]) for number in range(2 * SLOTS + 6, 3 * SLOTS + 6)]
    rings._told = None  # another process, forked from the parent
    rings.tell(0, [("u", [7])])
    assert heard(rings, 1) == [("u", [7])]
    rings._heard = [0, 0]
    assert len(heard(rings, 1)) == SLOTS, "one that is forked later hears what is left"


def test_news_are_bounded() -> None:
    rings, long = Rings(2), list(range(SLOT_KEYS + 1))
    rings.tell(0, [("u", long)] * (SLOTS_AT_ONCE + 3))
    assert heard(rings, 1) == [("u", long[:SLOT_KEYS])] * SLOTS_AT_ONCE
    rings.tell(0, [("u", [bytes([255]) * 16] * SLOT_KEYS)])
    assert len(heard(rings, 1)[0][1]) == SLOT_KEYS
    rings.tell(0, [("u" * SLOT_BYTES, [1])])
    rings.tell(0, [("v", [1])])
    assert heard(rings, 1) == [("v", [1])]


def test_a_half_written_slot_is_read_later() -> None:
    rings = Rings(2)
    rings.tell(0, [("u", [1])])
    start = SLOT_BYTES + 16
    whole = bytes(rings._memory[start : start + 4])
    rings._memory[start : start + 4] = os.urandom(3) + bytes([whole[3] ^ 1])
    assert heard(rings, 1) == []
    rings._memory[start : start + 4] = whole
    assert heard(rings, 1) == [("u", [1])]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=SLOTS, max_size=SLOTS))
def test_whatever_stands_in_a_ring_hearing_ends(numbers: list[int]) -> None:
    rings = Rings(2)
    for slot, number in enumerate(numbers):
        rings._memory[slot * SLOT_BYTES : slot * SLOT_BYTES + 8] = number.to_bytes(8, "little")
    heard(rings, 1)


def test_the_index_has_news_of_what_is_recorded_but_not_of_what_is_heard() -> None:
    mine, theirs = PrefixIndex(100), PrefixIndex(100)
    mine.record((b"a",), "u")
    assert mine.news is None, "nobody wants to know"
    mine.news = []
    mine.record((b"a", b"b"), "u")
    for url, keys in mine.news:
        theirs.record(keys, url, heard=True)
    assert theirs.news is None and theirs.held((b"a", b"b", b"c"), ["u"]) == {"u": 2}
    mine.record((b"c",), "v", heard=True)
    assert mine.news == [("u", (b"a", b"b"))]


@pytest.mark.parametrize("processes", [1, 3])
def test_nobody_hears_himself(processes: int) -> None:
    rings = Rings(processes)
    rings.tell(0, [("u", [1])])
    assert heard(rings, 0) == []
