"""The gateway's routes: one deny-by-default table, authentication per route, errors in OpenAI's form."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from baton_api.errors import BatonError, InternalError, MethodNotAllowed, NoCapacity, NotFound
from baton_api.routing import Route, RouteRequest, View
from baton_wire.http_answer import error_body, error_headers
from baton_wire.http_head import RequestHead
from baton_wire.http_server import Exchange
from baton_wire.sse import format_event

from . import flow, text_routes
from .access import KeyRing, request_id
from .described import described
from .job import Parts, Visitor
from .routing import pick
from .strand import Strand
from .telemetry import CONTENT_TYPE, Numbers, label
from .vitals import Vitals

log = logging.getLogger("baton.gateway")
MODEL_PREFIX = "/v1/models/"

Serve = Callable[[Exchange, Visitor], Awaitable[int]]
"""Answers with the status it returns, or raises BatonError."""


@dataclass(frozen=True, slots=True)
class Handler:
    serve: Serve
    needs_key: bool = True


class App:
    """`handle` is the server's handler. `draining` makes it not ready; `neighbours` are the counters of other gateway
    processes on this port."""

    def __init__(
        self, parts: Parts, keys: KeyRing, created_s: int, neighbours: Callable[[], list[Numbers]] = list
    ) -> None:
        self._neighbours = neighbours
        self._parts = parts
        self._keys = keys
        self._created_s = created_s
        self._document = described(parts.settings.metrics_need_key)
        self.draining = False
        self.vitals: Vitals | None = None  # of the process, once it listens
        generate = Handler(self._generate)
        self.routes: dict[str, tuple[str, Handler]] = {
            **dict.fromkeys(flow.ROUTES, ("POST", generate)),
            "/tokenize": ("POST", Handler(self._tokenize)),
            "/detokenize": ("POST", Handler(self._detokenize)),
            "/v1/models": ("GET", Handler(self._models)),
            MODEL_PREFIX: ("GET", Handler(self._model)),
            "/openapi.json": ("GET", Handler(self._openapi, needs_key=False)),
            "/health": ("GET", Handler(self._health, needs_key=False)),
            "/ready": ("GET", Handler(self._ready, needs_key=False)),
            "/metrics": ("GET", Handler(self._metrics, needs_key=parts.settings.metrics_need_key)),
        }

    def handle(self, exchange: Exchange) -> None:
        """One request; a client that leaves cancels it."""
        strand = Strand()
        exchange.on_gone(strand.cancel)
        strand.start(self._answer(exchange, strand))

    async def _answer(self, exchange: Exchange, strand: Strand) -> None:
        parts = self._parts
        telemetry, start_s = parts.telemetry, parts.now()
        visitor = Visitor("", request_id(exchange.headers, parts.draw), strand)
        route, status, reason = "unknown", 499, "client_gone"
        telemetry.in_flight += 1
        try:
            route, handler = self._find(exchange.method, exchange.path)
            if handler.needs_key:
                visitor.tenant = self._keys.tenant(exchange.headers)
            status = await handler.serve(exchange, visitor)
            reason = "ok" if status == 200 else "from_worker"
            if not exchange.ended and not exchange.gone:
                raise RuntimeError("the handler returned without an answer")
        except BatonError as error:
            status, reason = error.http_status, label(error.code or error.reason)
            refuse(exchange, error, visitor.request_id)
        except Exception:
            status, reason = 500, "internal"
            log.exception("request %s failed", visitor.request_id)
            refuse(exchange, InternalError(f"internal error (request {visitor.request_id})"), visitor.request_id)
        finally:
            taken_s = parts.now() - start_s if status == 200 and route in flow.ROUTES else None
            telemetry.ended(parts.registry.model, route, status, reason, taken_s)
            if status != 200:
                log.info("request %s: %s %d %s", visitor.request_id, route, status, reason)

    def screen(self, head: RequestHead) -> None:
        """Before a body is read that is still to come: from nobody who would be refused all the same. Raises
        BatonError."""
        _, handler = self._find(head.method, head.target.partition("?")[0])
        if handler.needs_key:
            self._keys.tenant(head.headers)

    def _find(self, method: str, path: str) -> tuple[str, Handler]:
        route = path
        found = self.routes.get(path)
        if found is None or path == MODEL_PREFIX:
            if not path.startswith(MODEL_PREFIX) or path == MODEL_PREFIX:
                raise NotFound(f"{method} {path[:128]} is not served here")
            route = MODEL_PREFIX
            found = self.routes[route]
        wanted, handler = found
        if method != wanted:
            raise MethodNotAllowed(f"{path[:128]} takes {wanted} only", allow=wanted)
        return route, handler

    def _generate(self, exchange: Exchange, visitor: Visitor) -> Awaitable[int]:
        return flow.serve(self._parts, exchange, visitor)

    async def _tokenize(self, exchange: Exchange, visitor: Visitor) -> int:
        return _say(exchange, await text_routes.tokenize(self._parts, exchange), visitor)

    async def _detokenize(self, exchange: Exchange, visitor: Visitor) -> int:
        return _say(exchange, await text_routes.detokenize(self._parts, exchange), visitor)

    async def _models(self, exchange: Exchange, visitor: Visitor) -> int:
        models = [self._described()] if self._parts.registry.model else []
        return _say(exchange, {"object": "list", "data": models}, visitor)

    async def _model(self, exchange: Exchange, visitor: Visitor) -> int:
        name = unquote(exchange.path.removeprefix(MODEL_PREFIX))
        if name != self._parts.registry.model:
            raise NotFound(f"model {name[:64]!r} is not served here", param="model", code="model_not_found")
        return _say(exchange, self._described(), visitor)

    def _described(self) -> dict[str, object]:
        return {
            "id": self._parts.registry.model,
            "object": "model",
            "created": self._created_s,
            "owned_by": "baton",
            "max_model_len": self._parts.registry.longest_context,
        }

    async def _openapi(self, exchange: Exchange, visitor: Visitor) -> int:
        exchange.respond(200, self._document, [("x-request-id", visitor.request_id)])
        return 200

    async def _health(self, exchange: Exchange, visitor: Visitor) -> int:
        return _say(exchange, {"status": "ok"}, visitor)

    async def _ready(self, exchange: Exchange, visitor: Visitor) -> int:
        """Whether a request of any length would find its workers now."""
        if self.draining:
            raise NoCapacity("draining", code="rejected-shutting-down", retry_after_s=1.0)
        registry, policy = self._parts.registry, self._parts.settings.policy
        workers = registry.routable()
        prompt = RouteRequest(max(1, policy.min_remote_prefill_tokens), registry.model)
        found = pick(View(workers, {}), prompt, self._parts.now(), policy)
        if not isinstance(found, Route):
            raise NoCapacity(found.message, code=found.reason, retry_after_s=found.retry_after_s)
        if policy.mode == "disaggregated" and found.prefill is None:
            raise NoCapacity("no prefill worker is ready", code="no_prefill_worker", retry_after_s=1.0)
        return _say(exchange, {"status": "ready", "workers": len(workers)}, visitor)

    async def _metrics(self, exchange: Exchange, visitor: Visitor) -> int:
        if self.vitals is not None:
            self.vitals.take()
        states = self._parts.registry.states()
        self._parts.telemetry.set_all("baton_gateway_workers", list(states.items()))
        exchange.respond(200, self._parts.telemetry.exposition(self._neighbours()), content_type=CONTENT_TYPE)
        return 200


def refuse(exchange: Exchange, error: BatonError, request_id: str) -> None:
    """The error as the answer or, when a stream has begun, as its last event before it is broken off without [DONE]."""
    body = error_body(error)
    if exchange.started:
        exchange.write(format_event(body))
        exchange.abort()
        return
    exchange.respond(error.http_status, body, [*error_headers(error), ("x-request-id", request_id)])


def _say(exchange: Exchange, answer: object, visitor: Visitor) -> int:
    exchange.respond(200, json.dumps(answer).encode(), [("x-request-id", visitor.request_id)])
    return 200
