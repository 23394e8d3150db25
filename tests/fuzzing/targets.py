"""What is fuzzed: each target takes bytes and raises when something is wrong; `accepted` counts what was no refusal.

Make them inside a running event loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs

from baton_api.errors import BadRequest, BatonError
from baton_api.json_body import json_object
from baton_api.openai import parse_chat, parse_completion
from baton_api.openai_schema import chat_schema, completion_schema
from baton_wire.http_limits import ClientLimits
from baton_wire.http_upstream import Upstream
from support.wire import MemoryTransport

from .corpus import CHUNKED, GET, GOOD, POST, REFUSED, TAKEN
from .readers import OurReader, read_by_h11

Target = Callable[[bytes], None]


def _words(*lines: bytes) -> tuple[bytes, ...]:
    """Between bars, with Python's escapes."""
    return tuple(word.decode("unicode_escape").encode("latin-1") for line in lines for word in line.split(b"|"))


class Requests:
    """The server's reading of requests beside h11's: what we accept h11 reads the same. The first two bytes say where
    the stream is cut in two."""

    seeds = tuple(b"\0\0" + raw for raw, _ in (*REFUSED.values(), *TAKEN.values()) if len(raw) < 1000)
    tokens = (
        *_words(
            rb"\r\n|\n|\r|\r\n |\r\n\r\n|\0| |\t|_|\x0b|\x80|:|;|0\r\n\r\n|3\r\nabc\r\n|Content-Length: |Host: a\r\n",
            rb"Transfer-Encoding: chunked\r\n|Connection: close\r\n| HTTP/1.1\r\n|Expect: 100-continue\r\n",
            rb"Upgrade: x\r\n|GET |POST |CONNECT |http://a/|//|%2e",
        ),
        *(GOOD, POST, GET, CHUNKED),
    )

    def __init__(self) -> None:
        self.accepted = 0
        self._reader = OurReader()

    def __call__(self, data: bytes) -> None:
        raw = data[2:]
        cut = int.from_bytes(data[:2]) % (len(raw) + 1)
        ours = self._reader.read([raw[:cut], raw[cut:]])
        if ours:
            self.accepted += 1
            theirs = list(read_by_h11(raw))
            assert ours == theirs[: len(ours)], f"disagreement:\n{ours}\n{theirs}"


class Bodies:
    """JSON bodies: a request or a BadRequest. What is accepted is in the document, and json reads it the same."""

    seeds = (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":2,"stop":["a"],"logit_bias":{"1":2.5}}',
        b'{"model":"m","prompt":[1,2,3],"stream":true,"stream_options":{"include_usage":true},"seed":-1}',
        b'{"model":"m","prompt":"\\ud83d\\ude42\\u0000","temperature":1e-3,"top_p":0.5,"user":null,"tools":[]}',
        b'{"model":"m","messages":[{"role":"assistant"},{"role":"system","content":[{"type":"text","text":""}]}]}',
    )
    tokens = (
        *_words(
            rb'"|{|}|[|]|,|:|null|true|NaN|-Infinity|1e999|\\ud800|\\u0000|"messages":|"prompt":|"role":"user"',
            rb'"content":|"model":"m"|"max_tokens":|"logprobs":true|"chat_template_kwargs":{|"stop":|"min_tokens":',
            rb"\xff|\xed\xa0\x80|-0|0.0",
        ),
        *(b"9" * 30, b"[" * 70),
    )

    def __init__(self) -> None:
        self.accepted = 0
        self._kinds: list[tuple[Callable[[Any], object], Any]] = [
            (parse_chat, jsonschema_rs.Draft202012Validator(chat_schema())),
            (parse_completion, jsonschema_rs.Draft202012Validator(completion_schema())),
        ]

    def __call__(self, data: bytes) -> None:
        try:
            body = json_object(data)
        except BadRequest as error:
            json.dumps(error.body())
            return
        assert body == json.loads(data)
        for parse, described in self._kinds:
            try:
                parse(body)
            except BadRequest as error:
                json.dumps(error.body()).encode()
            else:
                self.accepted += 1
                assert described.is_valid(body), f"accepted, and outside the document: {body}"


class _Call:
    """Counts the ends of an answer."""

    head_only = False

    def __init__(self) -> None:
        self.heads = self.ends = self.errors = 0

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        assert 200 <= status <= 599 and not self.ends
        self.heads += 1

    def on_data(self, data: bytes) -> None:
        assert data and self.heads == 1 and not self.ends

    def on_end(self) -> None:
        self.ends += 1

    def on_error(self, error: BatonError) -> None:
        self.ends += 1
        self.errors += 1


class _Pool:
    reads = 0

    def connection_free(self, upstream: Upstream) -> None:
        pass

    def connection_closed(self, upstream: Upstream) -> None:
        pass


class Answers:
    """A worker's answer as the client reads it (httptools): one head at most, then data, then exactly one end."""

    seeds = (
        b"\0\0HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"\0\0HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\0\0HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        b"\0\0HTTP/1.0 200 OK\r\n\r\nuntil the close",
        b"\0\0HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\0\0HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
    )
    tokens = _words(
        rb"\r\n|\n|\0|HTTP/1.1 |200 OK\r\n|content-length: |transfer-encoding: chunked\r\n|0\r\n\r\n",
        rb"connection: close\r\n|1\r\na\r\n|\r\n\r\n|trailer: x\r\n|HTTP/1.1 100 C\r\n\r\n|\xff|99999999999",
    )

    def __init__(self) -> None:
        self.accepted = 0

    def __call__(self, data: bytes) -> None:
        raw = data[2:]
        cut = int.from_bytes(data[:2]) % (len(raw) + 1)
        call, upstream, transport = _Call(), Upstream(_Pool(), ClientLimits()), MemoryTransport()
        upstream.connection_made(transport)
        upstream.send(call, b"GET / HTTP/1.1\r\n\r\n")
        for piece in (raw[:cut], raw[cut:]):
            if piece and not transport.closed:
                upstream.data_received(piece)
        upstream.connection_lost(None)
        self.accepted += call.ends - call.errors
        assert call.ends == 1 and call.heads <= 1, (call.heads, call.ends)


TARGETS: dict[str, Callable[[], Target]] = {"requests": Requests, "bodies": Bodies, "answers": Answers}
