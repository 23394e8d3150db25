"""From engine events to an OpenAI answer, streamed or whole.

The response head is sent when the first token exists, so that everything that can fail before it still has a status,
and it carries where the time went as Server-Timing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from baton_api.emitted import EmittedChoice
from baton_api.errors import InternalError
from baton_api.openai_out import usage
from baton_api.sampling import FinishReason, SampledToken
from baton_api.timing import Span, to_server_timing
from baton_engine.nouns import Finished, Leg, Sampled
from baton_wire.http_server import Exchange

from .event_stream import EventStream
from .job import Job
from .parts import Parts
from .writers import Piece, StreamedAnswer, WholeAnswer, Writer


@dataclass(frozen=True, slots=True)
class Progress:
    """What has happened before the first token: the spans so far, since when the next one runs, its name.
    `cached_tokens` is set when the prefill worker reported it."""

    spans: tuple[Span, ...]
    since_s: float
    next_span: str
    cached_tokens: int | None = None


async def generate(parts: Parts, job: Job, exchange: Exchange) -> None:
    """An aggregated request: prompt and answer computed here. Raises what ended it before its head."""
    stream = EventStream.of(parts.engine, job.key, job.sampling.n)
    parts.engine.submit(job.for_engine(Leg.AGGREGATED), stream.put)
    try:
        await answer(parts, job, exchange, stream, Progress((), job.received_s, "prefill"))
    finally:
        parts.engine.abort(job.key)


async def answer(parts: Parts, job: Job, exchange: Exchange, stream: EventStream, progress: Progress) -> None:
    """Everything from the first token to the end. Raises the error that ended the request."""
    writer: Writer
    if job.request.stream:
        writer = StreamedAnswer(job, exchange)
    else:
        writer = WholeAnswer(job, exchange, parts.settings.max_answer_bytes)
    choices = _Choices(parts, job)
    tally = _Tally(job.received_s, told_cached_tokens=job.emitted.cached_tokens if job.emitted else None)
    async for sampled in _tokens(stream):
        now_s = time.monotonic()
        if tally.first_s is None:
            spans = tally.first(sampled, progress, now_s)
            parts.telemetry.started(sampled.queue_s, sampled.compute_s)
            headers = [("server-timing", to_server_timing(spans)), ("x-request-id", job.request_id)]
            writer.head(headers, tally.cached_tokens)
        tally.next(parts, len(sampled.tokens), now_s)
        for piece in choices.take(sampled):
            writer.add(sampled.choice, piece)
        if not choices.open:
            break
        await exchange.drain()
    if choices.open:
        raise InternalError("the engine ended the request before its answer was complete")
    _observe(parts, tally, choices)
    writer.end(usage(len(job.token_ids), choices.counted, tally.cached_tokens))


def complete(job: Job, exchange: Exchange) -> None:
    """The end of an answer of which only the end is missing: another worker has sent all choices."""
    assert job.emitted is not None
    writer = StreamedAnswer(job, exchange)
    cached_tokens = job.emitted.cached_tokens or 0
    writer.head([("x-request-id", job.request_id)], cached_tokens)
    writer.end(usage(len(job.token_ids), job.emitted.token_count, cached_tokens))


async def _tokens(stream: EventStream) -> AsyncIterator[Sampled]:
    while not isinstance(event := await stream.next(), Finished):
        if isinstance(event, Sampled):
            yield event


class _Choices:
    """The text side of the n choices: stop strings, logprobs, who is still open, how many tokens count."""

    def __init__(self, parts: Parts, job: Job) -> None:
        self._stop: Callable[[int], None] = lambda choice: parts.engine.stop_choice(job.key, choice)
        self._outputs = [parts.tokenizer.choice_output(job.sampling, job.token_ids) for _ in range(job.sampling.n)]
        self.open = set(range(job.sampling.n))
        self.finishes: list[FinishReason] = []
        self.counted = 0
        if job.emitted is not None:
            self._replay(job.emitted.choices)

    def _replay(self, choices: Sequence[EmittedChoice]) -> None:
        """Brings each output to where the client is: text held back then is held back now."""
        for index, choice in enumerate(choices):
            self.counted += len(choice.token_ids)
            if choice.over:
                self.open.discard(index)
            else:
                for token_id in choice.token_ids:
                    self._outputs[index].push((SampledToken(token_id),))

    def take(self, sampled: Sampled) -> Iterator[Piece]:
        """What these tokens add, one piece a token; a choice that a stop string ended is told to the engine."""
        for index, token in enumerate(sampled.tokens, 1):
            if sampled.choice not in self.open:
                return
            finish = sampled.finish if index == len(sampled.tokens) else None
            delta = self._outputs[sampled.choice].push((token,), finish)
            self.counted += 1
            if delta.finish is not None:
                self.open.discard(sampled.choice)
                self.finishes.append(delta.finish)
            if delta.cancel:
                self._stop(sampled.choice)
            yield Piece(token.token_id, delta)


@dataclass(slots=True)
class _Tally:
    """One answer's times and counts. `told_cached_tokens`: what another worker has said of the same answer."""

    received_s: float
    first_s: float | None = None
    last_s: float = 0.0
    cached_tokens: int = 0
    told_cached_tokens: int | None = None

    def first(self, sampled: Sampled, progress: Progress, now_s: float) -> tuple[Span, ...]:
        self.first_s = self.last_s = now_s
        computed, cached = sampled.computed_tokens or 0, sampled.cached_tokens or 0
        known = (self.told_cached_tokens, progress.cached_tokens, cached)
        self.cached_tokens = next(count for count in known if count is not None)
        told = f"{computed} prompt tokens computed here"
        return (*progress.spans, Span(progress.next_span, now_s - progress.since_s, told))

    def next(self, parts: Parts, count: int, now_s: float) -> None:
        if now_s > self.last_s:
            parts.telemetry.next_token((now_s - self.last_s) / max(1, count))
        self.last_s = now_s


def _observe(parts: Parts, tally: _Tally, choices: _Choices) -> None:
    if tally.first_s is not None:
        parts.telemetry.first_token(tally.first_s - tally.received_s)
    for finish in choices.finishes:
        parts.telemetry.choice_ended(finish)
    parts.telemetry.request_ended(time.monotonic() - tally.received_s)
