"""What workers tell beside their events: written, taken out by the gateway, read by the next worker."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.emitted import EmittedChoice, event_line, read_emitted, start_line
from baton_api.errors import BadRequest
from baton_gateway import events
from baton_gateway.events import StreamTail, error_of

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
DATA = b'data: {"choices":[{"index":0}]}\n\n'


@given(st.lists(st.tuples(st.integers(0, 2), IDS), max_size=12), st.sets(st.integers(0, 2)))
def test_what_is_written_is_read(told: list[tuple[int, list[int]]], ended: set[int]) -> None:
    lines = [start_line(1_700_000_000, 12), *(event_line(choice, ids, over=False) for choice, ids in told)]
    lines += [event_line(choice, [1], over=True) for choice in ended]
    emitted = read_emitted(b"".join(lines).decode(), 3)
    for index, choice in enumerate(emitted.choices):
        ids = [token_id for which, ids in told if which == index for token_id in ids]
        begun = any(which == index for which, _ in told) or index in ended
        assert choice == EmittedChoice(ids + [1] * (index in ended), begun, index in ended)
    assert (emitted.created_s, emitted.cached_tokens) == (1_700_000_000, 12)
    assert emitted.over == (len(ended) == 3)


def test_nothing_emitted_is_a_fresh_start() -> None:
    emitted = read_emitted("", 2)
    assert emitted.created_s is emitted.cached_tokens is None and emitted.for_engine() == () and not emitted.over
    assert read_emitted(":@1 0\n:0\n:1\n", 2).for_engine() == ()


def test_the_engine_is_told_who_goes_on_and_who_is_over() -> None:
    assert read_emitted(":@1 0\n:0 5\n:1 7\n:1 8.\n:0 6\n", 3).for_engine() == ((5, 6), None, ())


@pytest.mark.parametrize(
    "lines",
    [":0 5\n", ":@1 0\n:2 5\n", ":@1 0\n:0 5.\n:0 6\n", ":@1 0\n:@1 0\n", ":@1\n", "x", ":@1 0\n:0 -5\n", ": ping\n"],
)
def test_lines_of_another_form_are_refused(lines: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_emitted(lines, 2)
    assert refused.value.param == "emitted"


@given(st.lists(IDS, min_size=1, max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_the_gateway_keeps_exactly_the_lines_of_the_events_it_passed_on(
    told: list[list[int]], sizes: list[int]
) -> None:
    lines = [event_line(0, ids, over=False) for ids in told]
    sent, passed, tail = b"".join(line + DATA for line in lines), b"", StreamTail(False, bytes)
    while sent and sizes:
        size = sizes.pop(0)
        passed, sent = passed + tail.feed(sent[:size]), sent[size:]
        whole = len(passed) // len(DATA)
        assert passed == DATA * whole and tail.emitted == b"".join(lines[:whole]).decode()


def test_a_stream_whose_events_are_not_all_told_of_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tail = StreamTail(False, bytes)
    assert tail.feed(b":0 5\n" + DATA + b": ping\n\n" + DATA) == DATA + b": ping\n\n" + DATA
    assert tail.emitted is None
    monkeypatch.setattr(events, "MAX_TOLD_BYTES", 10)
    tail = StreamTail(False, bytes)
    tail.feed(b":0 5\n" + DATA + b":0 6 7 8\n" + DATA)
    assert tail.emitted is not None
    assert tail.feed(b":0 6\n" + DATA) == DATA and tail.emitted is None


def test_half_an_event_is_forgotten_when_another_worker_goes_on() -> None:
    tail = StreamTail(False, bytes)
    assert tail.feed(b":0 5\n" + DATA + b':0 6\ndata: {"cho') == DATA
    tail.cut()
    assert tail.feed(b":0 6\n" + DATA) == DATA and tail.emitted == ":0 5\n:0 6\n"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'data: {"error":{"message":"m","code":"c"}}\n\n', ("m", "c")),
        (b'data: {"error":{"message":"m"}}\n\n', ("the worker failed", "worker_failed")),
        (b'data: {"error"\n\n', ("the worker failed", "worker_failed")),
    ],
)
def test_an_error_event_keeps_its_words(event: bytes, expected: Any) -> None:
    error = error_of(event)
    assert (error.message, error.code) == expected
