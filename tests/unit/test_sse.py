"""Events in, events out, whatever the segmentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.errors import WorkerProtocolError
from baton_wire.sse import DONE, SseParser, format_event

STREAMS = [
    (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    (b"data: a\r\n\r\ndata:b\r\rdata:  c\n\n", [b"a", b"b", b" c"]),
    (b"data: a\ndata: b\n\n", [b"a\nb"]),
    (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    (b": comment\nevent: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
    (b"\n\n\nevent: x\n\ndata: a\n\n", [b"a"]),
    (b"data\n\ndata:\n\n", [b"", b""]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    (b"data: a\n\ndata: unfinished\n", [b"a"]),
    (b"data: [DONE]\n\n", [DONE]),
    (b"database: a\n\n", []),
]


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_streams_parse_alike_at_every_split_and_byte_by_byte(stream: bytes, events: list[bytes]) -> None:
    for first in range(1, len(stream)):
        parser = SseParser()
        assert parser.feed(stream[:first]) + parser.feed(stream[first:]) == events
    parser = SseParser()
    assert [event for byte in stream for event in parser.feed(bytes([byte]))] == events


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20))
def test_what_is_formatted_is_parsed_back(events: list[bytes], step: int) -> None:
    stream = b"".join(format_event(event) for event in events)
    parser = SseParser()
    parsed = [e for start in range(0, len(stream), step) for e in parser.feed(stream[start : start + step])]
    assert parsed == [event.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for event in events]


def test_an_event_has_a_largest_size() -> None:
    parser = SseParser(max_event_bytes=100)
    for _ in range(10):
        assert parser.feed(b"data: " + b"x" * 80 + b"\n\n") == [b"x" * 80]
    with pytest.raises(WorkerProtocolError):
        parser.feed(b"data: " + b"x" * 101)
    many_lines = SseParser(max_event_bytes=100)
    with pytest.raises(WorkerProtocolError):
        many_lines.feed(b"data: xxxxxxxxxx\n" * 20)
