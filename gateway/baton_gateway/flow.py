"""One request's story: read, tokenise, admit, route, both legs at once, relay."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from baton_api.blocks import derive_key, tenant_salt
from baton_api.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    NoCapacity,
    NotFound,
    WorkerProtocolError,
)
from baton_api.json_body import json_object
from baton_api.openai import ChatRequest, parse_chat, parse_completion
from baton_api.openai_fields import known_fields
from baton_api.routing import Refusal, Route, RouteRequest, View, WorkerView
from baton_wire.http_client import HttpClient
from baton_wire.http_server import Exchange

from .access import worker_headers
from .admission import Admission, RetryBudget
from .attempt import Attempt, Failure, LegRequest
from .discovery import FleetChanges
from .events import StreamTail, usage_of
from .index import PrefixIndex
from .legs import Handing, Prompt, decode_body, prefill_body, ticket_for
from .registry import Registry
from .routing import pick
from .settings import GatewaySettings
from .telemetry import Telemetry, label
from .timeline import Timeline
from .tokenising import Asked, Tokeniser

log = logging.getLogger("baton.gateway")
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks, under which request id."""

    tenant: str
    request_id: str


@dataclass(slots=True)
class Parts:
    """What every request shares. `draw` gives random bytes; `now` is monotonic seconds."""

    settings: GatewaySettings
    secret: bytes
    registry: Registry
    changes: FleetChanges
    index: PrefixIndex
    client: HttpClient
    tokeniser: Tokeniser
    admission: Admission
    retries: RetryBudget
    telemetry: Telemetry
    draw: Callable[[int], bytes]
    now: Callable[[], float] = time.monotonic
    attempts: set[Attempt] = field(default_factory=set)
    ticket_key: bytes = b""
    worker_key: str = ""

    def __post_init__(self) -> None:
        self.ticket_key = derive_key(self.secret, "ticket")
        self.worker_key = derive_key(self.secret, "worker-http").hex()

    def salt(self, tenant: str, cache_salt: str | None) -> bytes:
        """A client's own salt only narrows: it is mixed into its tenant's, never used in its place."""
        return tenant_salt(self.secret, tenant if cache_salt is None else f"{tenant}/{cache_salt}")


@dataclass(slots=True)
class Job:
    """One request on its way; `fields` are the body's used fields, seed included."""

    id: str
    path: str
    fields: dict[str, Any]
    asked: Asked
    prompt: Prompt
    headers: tuple[tuple[str, str], ...]
    deadline_s: float
    timeline: Timeline
    failures: list[Failure] = field(default_factory=list)


async def serve(parts: Parts, exchange: Exchange, visitor: Visitor) -> int:
    """Answers `exchange`; returns the status. Raises BatonError, possibly after the answer has started."""
    timeline = Timeline(parts.now())
    fields, asked = read(exchange)
    check_model(parts.registry, asked.model)
    fields.setdefault("seed", int.from_bytes(parts.draw(7)))
    timeline.lap("receive", parts.now())
    try:
        async with asyncio.timeout(parts.settings.request_timeout_s):
            prompt = await tokenise(parts, asked, visitor.tenant, len(exchange.body))
            timeline.lap("tokenise", parts.now())
            check_context(parts.registry.routable(), asked, prompt)
            headers = worker_headers(exchange.headers, visitor.request_id, parts.worker_key)
            deadline_s = timeline.start_s + parts.settings.request_timeout_s
            job = Job(visitor.request_id, exchange.path, fields, asked, prompt, headers, deadline_s, timeline)
            async with parts.admission.slot():
                timeline.lap("queue", parts.now())
                return await answer(parts, exchange, job)
    except TimeoutError:
        raise DeadlineExceeded(f"not answered in {parts.settings.request_timeout_s:g} s") from None


def read(exchange: Exchange) -> tuple[dict[str, Any], Asked]:
    """The body's used fields and the request they make. Raises BadRequest."""
    body = json_object(exchange.body)
    chat = exchange.path == CHAT_PATH
    asked = parse_chat(body) if chat else parse_completion(body)
    return known_fields(body, chat=chat, internal=False), asked


async def tokenise(parts: Parts, asked: Asked, tenant: str, body_bytes: int) -> Prompt:
    """Once per request; on a thread unless it is too small to be worth the way. Raises BadRequest, Overloaded."""
    salt, sizes = parts.salt(tenant, asked.cache_salt), parts.registry.block_sizes
    if body_bytes <= parts.settings.inline_bytes:
        return parts.tokeniser.read_now(asked, salt, sizes)
    return await parts.tokeniser.read(asked, salt, sizes)


def check_model(registry: Registry, model: str) -> None:
    if model != registry.model:
        raise NotFound(f"model {model[:64]!r} is not served here", param="model", code="model_not_found")


def check_context(workers: tuple[WorkerView, ...], asked: Asked, prompt: Prompt) -> None:
    """Raises ContextLengthExceeded with the counts before any worker is asked."""
    limit = max((worker.info.max_model_len for worker in workers), default=None)
    wanted = asked.sampling.max_tokens or 1
    if limit is not None and len(prompt) + wanted > limit:
        raise ContextLengthExceeded(
            f"this model's context is {limit} tokens; the prompt has {len(prompt)} and {wanted} were asked for",
            param="messages" if isinstance(asked, ChatRequest) else "prompt",
        )


async def answer(parts: Parts, exchange: Exchange, job: Job) -> int:
    attempt = await first_answer(parts, job)
    try:
        status = await deliver(parts, exchange, job, attempt)
    except BaseException:
        give_up(parts, attempt)
        raise
    parts.attempts.discard(attempt)
    attempt.finish()
    return status


def give_up(parts: Parts, attempt: Attempt) -> None:
    parts.attempts.discard(attempt)
    attempt.abort()


async def first_answer(parts: Parts, job: Job) -> Attempt:
    """Tries routes until a decode leg's head is there. Raises what the last one failed with."""
    parts.retries.earn()
    route = await find_route(parts, job)
    job.timeline.lap("route", parts.now())
    while True:
        attempt = send(parts, job, route)
        try:
            failure = await attempt.failure(parts.settings.first_byte_timeout_s)
            if failure is None:
                # Not before: a leg that failed left nothing there, and a wrong guess would skip prefill.
                parts.index.record(job.prompt.keys(route.decode.info.block_tokens), route.decode.url)
                return attempt
            again = repick(parts, job, failure)
            if again is None:
                _ = attempt.head  # raises unless the worker's own answer can be passed on
                return attempt
        except BaseException as error:
            if isinstance(error, DeadlineExceeded):
                parts.registry.suspend(route.decode.url, parts.now() + parts.settings.suspend_s)
            give_up(parts, attempt)
            raise
        give_up(parts, attempt)
        route = again


async def find_route(parts: Parts, job: Job) -> Route:
    """Waits for a worker if need be, for at most the queue's time. Raises NoCapacity with the reason."""
    give_up_s = parts.now() + parts.settings.queue_ttl_s
    while True:
        found = decide(parts, job)
        if isinstance(found, Route):
            return found
        if parts.now() >= give_up_s:
            raise NoCapacity(found.message, code="rejected-no-endpoints", retry_after_s=found.retry_after_s)
        await parts.changes.wait(give_up_s - parts.now())
        check_context(parts.registry.routable(), job.asked, job.prompt)


def decide(parts: Parts, job: Job) -> Route | Refusal:
    """One decision of the routing brain on what is known now, counted; with its candidates in the log at debug level."""
    workers = parts.registry.routable()
    excluded = frozenset(failure.url for failure in job.failures)
    request = RouteRequest(len(job.prompt), job.asked.model, excluded)
    found = pick(
        View(workers, held_blocks(parts.index, workers, job.prompt)), request, parts.now(), parts.settings.policy
    )
    name = "baton_gateway_routes_total" if isinstance(found, Route) else "baton_gateway_refusals_total"
    parts.telemetry.count(name, found.reason)
    log.debug("request %s: %s", job.id, found)
    return found


def held_blocks(index: PrefixIndex, workers: tuple[WorkerView, ...], prompt: Prompt) -> dict[str, int]:
    held: dict[str, int] = {}
    for block_tokens in {worker.info.block_tokens for worker in workers}:
        urls = [worker.url for worker in workers if worker.info.block_tokens == block_tokens]
        held.update(index.held(prompt.keys(block_tokens), urls))
    return held


def repick(parts: Parts, job: Job, failure: Failure) -> Route | None:
    """Another route after a failure before the first byte: once per leg, within the retry budget."""
    note_failure(parts, failure)
    tried = any(earlier.leg == failure.leg for earlier in job.failures)
    job.failures.append(failure)
    if tried or not parts.retries.spend():
        return None
    found = decide(parts, job)
    if isinstance(found, Refusal):
        return None
    parts.telemetry.count("baton_gateway_retries_total", failure.leg, label(failure.reason))
    log.info("request %s: %s leg on %s failed (%s); sent again", job.id, failure.leg, failure.url, failure.reason)
    return found


def note_failure(parts: Parts, failure: Failure) -> None:
    if failure.reason == "connect_failed":
        parts.registry.refused_connection(failure.url)
    elif failure.reason not in ("status_429", "status_503", "worker_lost"):
        parts.registry.suspend(failure.url, parts.now() + parts.settings.suspend_s)


def send(parts: Parts, job: Job, route: Route) -> Attempt:
    """Both legs at once, under a transfer id of their own."""
    left_s = job.deadline_s - parts.now()
    transfer_id = parts.draw(16).hex()
    ticket = ticket_for(route, job.prompt, transfer_id, time.time() + left_s, parts.ticket_key)
    handing = Handing(transfer_id, left_s, parts.settings.policy.on_prefill_failure, ticket)
    decode = LegRequest(
        route.decode.url, job.path, decode_body(job.fields, job.prompt, handing), job.headers, len(job.prompt)
    )
    prefill = None
    if route.prefill is not None:
        url, keys = route.prefill.url, job.prompt.keys(route.prefill.info.block_tokens)
        held_tokens = parts.index.held(keys, (url,)).get(url, 0) * route.prefill.info.block_tokens
        body = prefill_body(job.fields, job.prompt, handing)
        prefill = LegRequest(url, job.path, body, job.headers, len(job.prompt) - held_tokens)
        parts.index.record(keys, url)
    attempt = Attempt(parts.client, parts.registry, route, decode, prefill)
    parts.attempts.add(attempt)
    return attempt


async def deliver(parts: Parts, exchange: Exchange, job: Job, attempt: Attempt) -> int:
    """Passes the decode leg's answer on, streamed or whole; returns its status."""
    head = attempt.head
    job.timeline.answered(head.headers.get("server-timing", ""), parts.now())
    observe_first_token(parts, job)
    headers = [("x-request-id", job.id)]
    if parts.settings.server_timing:
        headers.append(("server-timing", job.timeline.header()))
    if "retry-after" in head.headers:
        headers.append(("retry-after", head.headers["retry-after"]))
    content_type = head.headers.get("content-type", "application/json")
    if head.status == 200 and content_type.startswith("text/event-stream"):
        usage = await stream(exchange, job, attempt, [*headers, ("content-type", content_type)])
    else:
        body = await attempt.answer.whole(parts.settings.max_answer_bytes)
        exchange.respond(head.status, body, headers, content_type)
        usage = usage_of(body) if head.status == 200 else None
    count_tokens(parts, job, usage)
    return head.status


async def stream(
    exchange: Exchange, job: Job, attempt: Attempt, headers: list[tuple[str, str]]
) -> dict[str, Any] | None:
    """Relays events as they come; returns the usage. Raises WorkerProtocolError when the stream breaks off."""
    tail = StreamTail(job.asked.include_usage)
    exchange.start(200, [*headers, ("cache-control", "no-cache")])
    exchange.on_writable(attempt.decode.pause, attempt.decode.resume)
    attempt.answer.pour(lambda data: exchange.write(tail.feed(data)))
    await attempt.answer.finished()
    if not tail.done and not tail.failed:
        raise WorkerProtocolError("the worker's stream ended before its end", code="stream_truncated")
    exchange.end()
    return tail.usage


def observe_first_token(parts: Parts, job: Job) -> None:
    parts.telemetry.observe("baton_gateway_ttft_seconds", job.timeline.total_s, job.asked.model)
    for span in job.timeline.spans:
        parts.telemetry.observe("baton_gateway_stage_seconds", span.duration_s, label(span.name))


def count_tokens(parts: Parts, job: Job, usage: dict[str, Any] | None) -> None:
    sent = usage.get("completion_tokens") if usage else None
    parts.telemetry.count("baton_gateway_tokens_total", job.asked.model, "prompt", amount=len(job.prompt))
    if isinstance(sent, int):
        parts.telemetry.count("baton_gateway_tokens_total", job.asked.model, "completion", amount=sent)
