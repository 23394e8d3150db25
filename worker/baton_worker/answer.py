"""From engine events to an OpenAI answer, streamed or whole.

The response head is sent when the first token exists, so that everything that can fail before it still has a status,
and carries where the time went as Server-Timing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import msgspec

from baton_api.errors import BatonError, DeadlineExceeded, WorkerProtocolError
from baton_api.openai_out import (
    AnswerMeta,
    FinalChoice,
    TokenLogprob,
    chat_chunk,
    chat_final,
    chat_role_chunk,
    completion_chunk,
    completion_final,
    usage,
    usage_chunk,
)
from baton_api.sampling import FinishReason
from baton_api.timing import Span, to_server_timing
from baton_engine.nouns import Finished, Leg, Sampled
from baton_engine.text.output import ChoiceOutput, Delta
from baton_wire.http_server import Exchange
from baton_wire.sse import DONE, format_event

from .event_stream import EventStream
from .job import Job
from .parts import Parts

encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Progress:
    """What has happened before the first token: spans so far, since when the next one runs, and its name.
    `cached_tokens` is known already when prefill reported it."""

    spans: tuple[Span, ...]
    since_s: float
    next_span: str
    cached_tokens: int | None = None


@dataclass(slots=True)
class _Tally:
    """One answer's counts and times, for usage and metrics."""

    received_s: float
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    open_choices: set[int] = field(default_factory=set)


async def generate(parts: Parts, job: Job, exchange: Exchange) -> None:
    """An aggregated request: prompt and answer computed here."""
    stream = EventStream()
    parts.engine.submit(job.for_engine(Leg.AGGREGATED), stream.put)
    try:
        await stream_answer(parts, job, exchange, stream, Progress((), job.received_s, "prefill"))
    finally:
        parts.engine.abort(job.key)


async def stream_answer(parts: Parts, job: Job, exchange: Exchange, stream: EventStream, progress: Progress) -> None:
    """Everything from the first token to the end. Raises the error that ended the request before its head."""
    writer = (_Streamed if job.request.stream else _Whole)(parts, job, exchange)
    answer = _Answer(parts, job, progress, writer)
    async for sampled in _tokens(stream):
        answer.take(sampled)
        if answer.done:
            break
        await exchange.drain()
    answer.end()


async def _tokens(stream: EventStream):  # type: ignore[no-untyped-def]
    while not isinstance(event := await stream.next(), Finished):
        if isinstance(event, Sampled):
            yield event
