"""How an answer reaches the client: as server-sent events while it is made, or whole at its end.

JSON is compact: the gateway finds the usage chunk by its empty `choices`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from baton_api.emitted import event_line, start_line
from baton_api.errors import BadRequest
from baton_api.openai_out import (
    AnswerMeta,
    FinalChoice,
    TokenLogprob,
    chat_chunk,
    chat_final,
    chat_logprobs,
    chat_role_chunk,
    completion_chunk,
    completion_final,
    completion_logprobs,
    usage_chunk,
)
from baton_engine.text.output import Delta, TokenLogprobs
from baton_wire.http_server import Exchange
from baton_wire.sse import DONE, format_event

from .job import Job

encode = msgspec.json.encode
Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Piece:
    """One token and what it adds to its choice."""

    token_id: int
    delta: Delta


class Writer(Protocol):
    def head(self, headers: Headers, cached_tokens: int) -> None: ...

    def add(self, choice: int, piece: Piece) -> None: ...

    def end(self, used: dict[str, Any]) -> None: ...


def _meta(job: Job) -> AnswerMeta:
    told_s = job.emitted.created_s if job.emitted is not None else None
    created_s = int(time.time()) if told_s is None else told_s
    return AnswerMeta(f"{'chatcmpl' if job.chat else 'cmpl'}-{job.request_id}", created_s, job.request.model)


class StreamedAnswer:
    """One event per delta that has something to say; the role comes first in a chat. Before each event, when asked
    for, what it accounts for (module emitted). An answer that goes on repeats no role."""

    def __init__(self, job: Job, exchange: Exchange) -> None:
        self._job = job
        self._exchange = exchange
        self._meta = _meta(job)
        self._untold: list[list[int]] = [[] for _ in range(job.sampling.n)]
        self._opening = b""

    def head(self, headers: Headers, cached_tokens: int) -> None:
        fixed = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
        self._exchange.start(200, [*fixed, *headers])
        emitted = self._job.emitted
        if emitted is not None and emitted.created_s is None:
            self._opening = start_line(self._meta.created_s, cached_tokens)
        if self._job.chat:
            for choice in range(self._job.sampling.n):
                if emitted is None or not emitted.choices[choice].begun:
                    self._send_for(choice, chat_role_chunk(self._meta, choice))

    def add(self, choice: int, piece: Piece) -> None:
        delta, ids = piece.delta, self._job.request.return_token_ids
        self._untold[choice].append(piece.token_id)
        if delta.text or delta.finish is not None or delta.logprobs or ids:
            self._send_for(choice, self._chunk(choice, piece), over=delta.finish is not None)

    def _send_for(self, choice: int, chunk: dict[str, Any], *, over: bool = False) -> None:
        tokens, self._untold[choice] = self._untold[choice], []
        if self._job.emitted is None:
            self._send(chunk)
        else:
            told, self._opening = self._opening + event_line(choice, tokens, over=over), b""
            self._exchange.write(told + format_event(encode(chunk)))

    def _chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        delta = piece.delta
        logprobs = [shown(entry) for entry in delta.logprobs] if self._job.sampling.top_logprobs is not None else None
        if self._job.chat:
            chunk = chat_chunk(self._meta, choice, delta.text, delta.finish, logprobs)
        else:
            chunk = completion_chunk(self._meta, choice, delta.text, delta.finish, logprobs)
        if self._job.request.return_token_ids:
            chunk["choices"][0]["token_ids"] = [piece.token_id]
        return chunk

    def end(self, used: dict[str, Any]) -> None:
        if self._job.request.include_usage:
            self._send(usage_chunk(self._meta, used, chat=self._job.chat))
        self._exchange.write(format_event(DONE))
        self._exchange.end()

    def _send(self, chunk: dict[str, Any]) -> None:
        self._exchange.write(format_event(encode(chunk)))


class WholeAnswer:
    """Collects the choices and answers once. What a token adds is kept as the JSON it becomes: as objects, a token with
    20 alternatives takes 8.5 kB."""

    def __init__(self, job: Job, exchange: Exchange, max_bytes: int) -> None:
        self._job = job
        self._exchange = exchange
        self._headers: Headers = []
        self._max_bytes = max_bytes
        self._bytes = 0
        self._choices = [_Collected(job) for _ in range(job.sampling.n)]

    def head(self, headers: Headers, cached_tokens: int) -> None:
        self._headers = headers

    def add(self, choice: int, piece: Piece) -> None:
        """Raises BadRequest when the answer grows too large."""
        self._bytes += self._choices[choice].add(piece)
        self._check(self._bytes)

    def end(self, used: dict[str, Any]) -> None:
        shape = chat_final if self._job.chat else completion_final
        body = shape(_meta(self._job), [each.final(index) for index, each in enumerate(self._choices)], used)
        if self._job.request.return_token_ids:
            for choice, collected in zip(body["choices"], self._choices, strict=True):
                choice["token_ids"] = collected.token_ids.whole()
        data = encode(body)
        self._check(len(data))
        self._exchange.respond(200, data, self._headers)

    def _check(self, size: int) -> None:
        if size <= self._max_bytes:
            return
        sampling = self._job.sampling
        logprobs = "top_logprobs" if self._job.chat else "logprobs"
        asked = [("n", sampling.n), ("max_tokens", sampling.max_tokens), (logprobs, sampling.top_logprobs)]
        told = ", ".join(f"{name} {value}" for name, value in asked if value is not None)
        raise BadRequest(
            f"the answer ({told}) is larger than {self._max_bytes} bytes, the most that is held for one that is not "
            f"streamed; stream it (stream: true), or ask for less {logprobs}, n or max_tokens",
            param="max_tokens" if sampling.top_logprobs is None else logprobs,
            code="answer_too_large",
        )


class _Collected:
    """One choice so far."""

    def __init__(self, job: Job) -> None:
        self._shape = chat_logprobs if job.chat else completion_logprobs
        self._texts: list[str] = []
        self._finish = ""
        self._logprobs = {name: _JsonList() for name, value in self._shape(()).items() if value == []}
        self._asked = job.sampling.top_logprobs is not None
        self._returns_ids = job.request.return_token_ids
        self.token_ids = _JsonList()

    def add(self, piece: Piece) -> int:
        """How many bytes the answer grows by."""
        delta, grown = piece.delta, 0
        if delta.text:
            self._texts.append(delta.text)
            grown += len(encode(delta.text)) - 2
        if self._returns_ids:
            grown += self.token_ids.extend([piece.token_id])
        if delta.logprobs:
            shaped = self._shape([shown(entry) for entry in delta.logprobs])
            grown += sum(values.extend(shaped[name]) for name, values in self._logprobs.items())
        if delta.finish is not None:
            self._finish = delta.finish
        return grown

    def final(self, index: int) -> FinalChoice:
        logprobs = {**self._shape(()), **{name: values.whole() for name, values in self._logprobs.items()}}
        return FinalChoice(index, "".join(self._texts), self._finish, logprobs if self._asked else None)


class _JsonList:
    """A JSON array in the making."""

    def __init__(self) -> None:
        self._json = bytearray()

    def extend(self, values: list[Any]) -> int:
        """How many bytes it grows by."""
        before = len(self._json)
        self._json += b"," if self._json else b"["
        self._json += encode(values)[1:-1]
        return len(self._json) - before

    def whole(self) -> msgspec.Raw:
        return msgspec.Raw(bytes(self._json or b"[") + b"]")


def shown(entry: TokenLogprobs) -> TokenLogprob:
    """The engine's log probabilities as the API shows them."""
    top = tuple(TokenLogprob(other.text, other.bytes, other.logprob) for other in entry.top)
    return TokenLogprob(entry.drawn.text, entry.drawn.bytes, entry.drawn.logprob, top, entry.text_offset)
