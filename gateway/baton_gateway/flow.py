"""One request's story: read, tokenise, admit, route, both legs at once, relay."""

from __future__ import annotations

import asyncio
from typing import Any

from baton_api.errors import BatonError, DeadlineExceeded, WorkerProtocolError
from baton_api.json_body import json_object
from baton_api.openai import chat_of, completion_of
from baton_api.openai_fields import known_fields
from baton_wire.http_server import Exchange

from .access import worker_headers
from .attempt import Attempt
from .dispatch import first_answer
from .events import DONE, END, StreamTail, usage_of
from .job import Job, Parts, Visitor, check_context, check_model
from .legs import AnyPrompt
from .resume import Leader
from .text_prompt import TextPrompt
from .timeline import Timeline
from .tokenising import Asked

CHAT_PATH = "/v1/chat/completions"
ROUTES = frozenset({CHAT_PATH, "/v1/completions"})


async def serve(parts: Parts, exchange: Exchange, visitor: Visitor) -> int:
    """Answers `exchange`; returns the status. Raises BatonError, possibly after the answer has started."""
    timeline = Timeline(parts.now())
    fields, asked = await read_off_loop(parts, exchange)
    check_model(parts.registry, asked.model)
    if "seed" not in fields:
        fields["seed"] = int.from_bytes(parts.draw(7), "big")
    timeline.lap("receive", parts.now())
    strand = visitor.strand
    parts.deadlines.arm(strand)
    try:
        prompt = read_now(parts, fields, asked, visitor.tenant, len(exchange.body))
        if prompt is None:
            prompt = await parts.tokeniser.read(asked, *naming(parts, asked, visitor.tenant))
        timeline.lap("tokenise", parts.now())
        if prompt.exact:
            check_context(parts.registry, asked, prompt)
        headers = worker_headers(exchange.headers, visitor.request_id, parts.worker_key)
        deadline_s = timeline.start_s + parts.settings.request_timeout_s
        job = Job(visitor.request_id, exchange.path, fields, asked, prompt, headers, deadline_s, timeline)
        if not parts.admission.try_enter():
            await parts.admission.enter()
        try:
            timeline.lap("queue", parts.now())
            return await answer(parts, exchange, job)
        finally:
            parts.admission.leave()
    except asyncio.CancelledError:
        if strand.expired:
            raise DeadlineExceeded(f"not answered in {parts.settings.request_timeout_s:g} s") from None
        raise
    finally:
        parts.deadlines.disarm(strand)


async def read_off_loop(parts: Parts, exchange: Exchange) -> tuple[dict[str, Any], Asked]:
    """`read`, on a thread where the body is large. Raises BadRequest, Overloaded."""
    if len(exchange.body) <= parts.settings.parse_inline_bytes:
        return read(parts, exchange)
    return await parts.tokeniser.elsewhere(read, parts, exchange)


def read(parts: Parts, exchange: Exchange) -> tuple[dict[str, Any], Asked]:
    """The body's used fields and the request they make. Raises BadRequest."""
    chat = exchange.path == CHAT_PATH
    body = json_object(exchange.body, max_values=parts.registry.max_values)
    fields = known_fields(body, chat=chat, internal=False)
    return fields, chat_of(fields) if chat else completion_of(fields)


def read_now(parts: Parts, fields: dict[str, Any], asked: Asked, tenant: str, body_bytes: int) -> AnyPrompt | None:
    """The prompt: with `routing.keys: text` not tokenised at all; else tokenised once, here if it is too small to be
    worth the way to a thread. None if it is not. Raises BadRequest."""
    if parts.settings.prefix_keys == "text":
        return TextPrompt(fields, parts.salt(tenant, asked.cache_salt))
    if body_bytes <= parts.settings.inline_bytes:
        return parts.tokeniser.read_now(asked, *naming(parts, asked, tenant))
    return None


def naming(parts: Parts, asked: Asked, tenant: str) -> tuple[bytes, frozenset[int]]:
    """What the block keys of a prompt depend on beside its tokens: the tenant's salt, the block sizes in use."""
    return parts.salt(tenant, asked.cache_salt), parts.registry.block_sizes


async def answer(parts: Parts, exchange: Exchange, job: Job) -> int:
    leader = Leader(parts, job, await first_answer(parts, job))
    try:
        status = await deliver(parts, exchange, job, leader)
    except BaseException:
        leader.give_up()
        raise
    leader.finish()
    return status


async def deliver(parts: Parts, exchange: Exchange, job: Job, leader: Leader) -> int:
    """Passes the decode leg's answer on, streamed or whole; returns its status."""
    status, heads = leader.attempt.head
    content_type = heads.get("content-type", "application/json")
    streamed = status == 200 and content_type.startswith("text/event-stream")
    timeline = job.timeline
    if status == 200:
        timeline.answered(heads.get("server-timing", ""), parts.now(), streamed=streamed)
    headers = [("x-request-id", job.id)]
    if parts.settings.server_timing:
        headers.append(("server-timing", timeline.header()))
    if "retry-after" in heads:
        headers.append(("retry-after", heads["retry-after"]))
    if streamed:
        parts.telemetry.first_token(job.asked.model, timeline)
        usage = await stream(exchange, job, leader, [*headers, ("content-type", content_type)])
        count_tokens(parts, job, usage)
        return status
    body = leader.attempt.answer.collect(parts.settings.max_answer_bytes)
    while not await leader.complete():  # another worker makes all of it again: the seed is the same
        body = leader.attempt.answer.collect(parts.settings.max_answer_bytes)
    data = body[0] if len(body) == 1 else b"".join(body)
    exchange.respond(status, data, headers, content_type)
    if status == 200:
        parts.telemetry.first_token(job.asked.model, timeline)
        count_tokens(parts, job, usage_of(data))
    return status


async def stream(exchange: Exchange, job: Job, leader: Leader, headers: list[tuple[str, str]]) -> dict[str, Any] | None:
    """Relays events as they come, from one worker after another if need be; returns the usage. Raises what broke the
    stream off when nobody can go on."""
    tail = StreamTail(job.asked.include_usage, exchange.write)
    exchange.start(200, [*headers, ("cache-control", "no-cache")])
    while (broken := await relay(exchange, leader.attempt, tail)) is not None:
        await leader.replace(broken, tail.emitted)
        tail.cut()
    exchange.end()
    return tail.usage


async def relay(exchange: Exchange, attempt: Attempt, tail: StreamTail) -> BatonError | None:
    """Passes one worker's events on; what broke them off, None when the answer is complete."""
    exchange.on_writable(attempt.decode.pause, attempt.decode.resume)
    attempt.pour(tail)
    broken: BatonError = WorkerProtocolError("the worker's stream ended before its end", code="stream_truncated")
    try:
        await attempt.answer.finished()
    except BatonError as error:
        broken = error
    if tail.done:
        return None
    if tail.usage is not None:  # the last event but one
        exchange.write(DONE + END)
        return None
    return tail.error or broken


def count_tokens(parts: Parts, job: Job, usage: dict[str, Any] | None) -> None:
    sent = usage.get("completion_tokens") if usage else None
    read = len(job.prompt) if job.prompt.exact else usage.get("prompt_tokens") if usage else None
    parts.telemetry.tokens(
        job.asked.model, read if isinstance(read, int) else None, sent if isinstance(sent, int) else None
    )
