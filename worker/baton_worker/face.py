"""A worker's HTTP face: the OpenAI routes, who it is, how it is. Every route but health needs the worker key."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol

from baton_api.emitted import Emitted, read_emitted
from baton_api.errors import (
    BadRequest,
    BatonError,
    ContextLengthExceeded,
    MethodNotAllowed,
    NoCapacity,
    NotFound,
    Unauthorized,
)
from baton_api.handoff import HandOff
from baton_api.json_body import json_object
from baton_api.openai import ChatRequest, CompletionRequest, parse_chat, parse_completion
from baton_api.worker import WorkerInfo
from baton_wire.exposition import CONTENT_TYPE
from baton_wire.http_server import Exchange
from baton_wire.sse import format_event

from .job import Job
from .parts import Parts

INLINE_BYTES = 1024
"""A body up to this size is tokenised where it is: that takes less time than the way to a thread."""


class Host(Protocol):
    """What the face needs of the process behind it."""

    draining: bool

    def trouble(self) -> str | None: ...

    def info(self) -> WorkerInfo: ...

    def exposition(self) -> bytes: ...

    async def serve_job(self, job: Job, exchange: Exchange) -> None: ...


class Face:
    """Parses, checks and hands over; `in_flight` counts the legs being served."""

    def __init__(self, parts: Parts, worker_key: str, host: Host) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._max_model_len = parts.engine.max_model_len
        self._bearer = f"Bearer {worker_key}"
        self._host = host
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1, "tokenise")
        self._tokenising = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._handing_over = False
        self._routes: dict[tuple[str, str], Callable[[Exchange], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._generate,
            ("POST", "/v1/completions"): self._generate,
            ("GET", "/v1/models"): self._models,
            ("GET", "/baton/v1/worker"): self._worker,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._ready,
        }

    @property
    def in_flight(self) -> int:
        return len(self._serving)

    def hand_over(self) -> int:
        """Breaks off what is being served, with the reason "draining": the gateway lets it go on on another worker.
        Returns how many legs that were."""
        self._handing_over = True
        for task in self._serving:
            task.cancel()
        return len(self._serving)

    async def handle(self, exchange: Exchange) -> None:
        """The server's handler; what it raises becomes the answer."""
        route = self._routes.get((exchange.method, exchange.path))
        if route is None:
            told = f"{exchange.method} {exchange.path} is not served here"
            allow = ", ".join(method for method, path in self._routes if path == exchange.path)
            raise MethodNotAllowed(told, allow=allow) if allow else NotFound(told)
        if exchange.path.startswith(("/v1/", "/baton/")):
            given = exchange.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), self._bearer.encode()):
                raise Unauthorized("this is a worker: it needs the deployment's worker key as bearer token")
        await route(exchange)

    async def _health(self, exchange: Exchange) -> None:
        """Alive, draining included: fails only when a restart is the cure."""
        if (trouble := self._host.trouble()) is not None:
            raise NoCapacity(trouble, code="unhealthy")
        exchange.respond(200, b'{"status":"ok"}')

    async def _ready(self, exchange: Exchange) -> None:
        """Takes requests. The port opens when the model is loaded: a start probe waits for this, too."""
        if self._host.draining:
            raise NoCapacity("draining", retry_after_s=1.0)
        if (trouble := self._host.trouble()) is not None:
            raise NoCapacity(trouble, code="unhealthy")
        exchange.respond(200, b'{"status":"ready"}')

    async def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, self._host.exposition(), content_type=CONTENT_TYPE)

    async def _worker(self, exchange: Exchange) -> None:
        exchange.respond(200, self._host.info().to_json())

    async def _models(self, exchange: Exchange) -> None:
        model = {"id": self._settings.model_name, "object": "model", "created": 0, "owned_by": "baton"}
        exchange.respond(200, json.dumps({"object": "list", "data": [model]}).encode())

    async def _generate(self, exchange: Exchange) -> None:
        if self._host.draining:
            raise draining()
        task = asyncio.current_task()
        assert task is not None
        exchange.on_gone(partial(_cancel, task))
        self._serving.add(task)
        job: Job | None = None
        outcome = "ok"
        try:
            job = await self._job(exchange)
            await self._host.serve_job(job, exchange)
        except asyncio.CancelledError:
            outcome = "client_gone"
            if self._handing_over and not exchange.gone:
                outcome = "handed_over"
                task.uncancel()
                self._break_off(exchange, draining())
            elif not exchange.gone:
                raise
        except BatonError as error:
            if job is None:
                raise
            outcome = error.reason
            self._break_off(exchange, error)
        finally:
            self._serving.discard(task)
            if job is not None:
                self._parts.telemetry.leg_ended(job.leg, outcome)

    def _break_off(self, exchange: Exchange, error: BatonError) -> None:
        """Before the head: its status. After it: an error event, and the stream ends without [DONE]."""
        if not exchange.started:
            raise error
        exchange.write(format_event(json.dumps(error.body()).encode()))
        exchange.abort()

    async def _job(self, exchange: Exchange) -> Job:
        received_s = time.monotonic()
        body = json_object(exchange.body)
        parsed: ChatRequest | CompletionRequest
        if exchange.path == "/v1/chat/completions":
            parsed = parse_chat(body, internal=True)
        else:
            parsed = parse_completion(body, internal=True)
        if parsed.model != self._settings.model_name:
            raise NotFound(f"model {parsed.model!r} is not served here", param="model", code="model_not_found")
        hand_off = HandOff.from_params(parsed.kv_transfer_params) if parsed.kv_transfer_params is not None else None
        tokens = self._checked(await self._tokens(parsed, len(exchange.body)), parsed)
        sampling = parsed.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        salt = bytes.fromhex(hand_off.salt) if hand_off else self._parts.salt
        request_id = exchange.headers.get("x-request-id", secrets.token_hex(12))
        deadline_s = hand_off.deadline_s if hand_off else self._settings.request_timeout_s
        key = f"{request_id}/{next(self._numbers)}"
        emitted = _emitted(parsed)
        return Job(key, request_id, parsed, tokens, sampling, salt, deadline_s, received_s, hand_off, emitted)

    async def _tokens(self, parsed: ChatRequest | CompletionRequest, body_bytes: int) -> tuple[int, ...]:
        """The gateway's ids or, for a text, the tokeniser's: a long one on a thread, for it takes 2 ms for 4 kB, in
        which no stream of this worker would move. Raises BadRequest, NoCapacity."""
        if parsed.prompt_token_ids is not None:
            return parsed.prompt_token_ids
        if body_bytes <= INLINE_BYTES:
            return tuple(self._parts.reader.read(parsed))
        limit = self._settings.engine.max_requests
        if self._tokenising >= limit:
            raise NoCapacity(f"{limit} prompts wait for the tokeniser", code="tokeniser_full", retry_after_s=1.0)
        self._tokenising += 1
        reading = asyncio.get_running_loop().run_in_executor(self._thread, self._parts.reader.read, parsed)
        reading.add_done_callback(self._tokenised)  # also when nobody waits any more: the thread does not stop for that
        try:
            return tuple(await reading)
        finally:
            del reading  # it has the error, the error this frame: the prompt would wait for the collector

    def _tokenised(self, _: object) -> None:
        self._tokenising -= 1

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _checked(self, tokens: tuple[int, ...], parsed: ChatRequest | CompletionRequest) -> tuple[int, ...]:
        if not tokens:
            raise BadRequest("the prompt has no tokens; it needs at least one", param="prompt")
        if len(tokens) >= self._max_model_len:
            raise ContextLengthExceeded(
                f"the prompt has {len(tokens)} tokens; this model's context of {self._max_model_len} must hold "
                "prompt and answer",
                param="messages" if isinstance(parsed, ChatRequest) else "prompt",
            )
        return tokens


def _emitted(parsed: ChatRequest | CompletionRequest) -> Emitted | None:
    if parsed.emitted is None:
        return None
    if not parsed.stream:
        raise BadRequest("only a stream can be resumed; leave it out", param="emitted")
    return read_emitted(parsed.emitted, parsed.sampling.n)


def draining() -> NoCapacity:
    """What the gateway takes for the departure that it is."""
    return NoCapacity("this worker is draining", code="draining", retry_after_s=1.0)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
