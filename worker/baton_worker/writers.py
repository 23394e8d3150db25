"""How an answer reaches the client: as server-sent events while it is made, or whole at its end.

JSON is compact: the gateway finds the usage chunk by its empty `choices`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from baton_api.emitted import event_line, start_line
from baton_api.openai_out import (
    AnswerMeta,
    FinalChoice,
    TokenLogprob,
    chat_chunk,
    chat_final,
    chat_role_chunk,
    completion_chunk,
    completion_final,
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
    """Collects the choices and answers once."""

    def __init__(self, job: Job, exchange: Exchange) -> None:
        self._job = job
        self._exchange = exchange
        self._headers: Headers = []
        self._pieces: list[list[Piece]] = [[] for _ in range(job.sampling.n)]

    def head(self, headers: Headers, cached_tokens: int) -> None:
        self._headers = headers

    def add(self, choice: int, piece: Piece) -> None:
        self._pieces[choice].append(piece)

    def end(self, used: dict[str, Any]) -> None:
        shape = chat_final if self._job.chat else completion_final
        choices = [self._choice(index, [piece.delta for piece in pieces]) for index, pieces in enumerate(self._pieces)]
        body = shape(_meta(self._job), choices, used)
        if self._job.request.return_token_ids:
            for choice, pieces in zip(body["choices"], self._pieces, strict=True):
                choice["token_ids"] = [piece.token_id for piece in pieces]
        self._exchange.respond(200, encode(body), self._headers)

    def _choice(self, index: int, deltas: Sequence[Delta]) -> FinalChoice:
        logprobs = tuple(shown(entry) for delta in deltas for entry in delta.logprobs)
        finish = next(delta.finish for delta in deltas if delta.finish is not None)
        text = "".join(delta.text for delta in deltas)
        return FinalChoice(index, text, finish, logprobs if self._job.sampling.top_logprobs is not None else None)


def shown(entry: TokenLogprobs) -> TokenLogprob:
    """The engine's log probabilities as the API shows them."""
    top = tuple(TokenLogprob(other.text, other.bytes, other.logprob) for other in entry.top)
    return TokenLogprob(entry.drawn.text, entry.drawn.bytes, entry.drawn.logprob, top, entry.text_offset)
