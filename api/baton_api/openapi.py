"""The gateway's OpenAPI 3.1 document: every route with what it takes and what it may answer. Pure.

The bodies' schemas come from the tables that the parser uses (openai_schema). A test holds `OPERATIONS` against the
gateway's handlers and the schemas against the parser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from . import openai_out_schema as out
from .openai_schema import Schema, chat_schema, completion_schema, detokenize_schema, tokenize_schema

JSON = "application/json"
EVENTS = "text/event-stream"
PROMETHEUS = "text/plain"

# What the HTTP server itself may answer to any request, the router's own included.
SERVER_STATUSES = (400, 404, 405, 408, 413, 415, 417, 431, 500, 503)
GENERATE_STATUSES = (*SERVER_STATUSES, 429, 502, 504)
_KEY = "apiKey"

REASONS = {
    200: "The answer.",
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or an unknown one.",
    404: "No such path or model.",
    405: "The path takes another method, named in `Allow`.",
    408: "The request came too slowly.",
    413: "The body is too large.",
    415: "The body is compressed; only `Content-Encoding: identity` is understood.",
    417: "Only `Expect: 100-continue` is understood.",
    429: "Saturated, or too many connections from one address; `Retry-After` says when to come back.",
    431: "The header section is too large.",
    500: "A bug; the message names the request id.",
    502: "The workers failed the request, after one more try each.",
    503: "No worker, no capacity, or shutting down; `Retry-After` says when to come back.",
    504: "Not answered in time.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answers`: the schemas of status 200 by media type; `statuses`: all others."""

    method: str
    path: str
    summary: str
    answers: dict[str, Schema]
    body: Callable[[], Schema] | None = None
    statuses: tuple[int, ...] = SERVER_STATUSES
    needs_key: bool = True
    parameters: tuple[Schema, ...] = field(default=())


_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "The model's name, slashes included.",
}


def _events(chunk: str) -> Schema:
    """One server-sent event: OpenAPI 3.1 has no word for the whole stream."""
    told = [{"$ref": f"#/components/schemas/{name}"} for name in (chunk, "Error")]
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": told}}
    return {
        "type": "object",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]}},
        "required": ["data"],
        "description": "Each event. The last is [DONE]; after a failure midway it is the error, and no [DONE] follows.",
    }


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "Chat, whole or streamed.",
        {JSON: out.CHAT, EVENTS: _events("ChatCompletionChunk")},
        chat_schema,
        GENERATE_STATUSES,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "Text completion, whole or streamed.",
        {JSON: out.COMPLETION, EVENTS: _events("CompletionChunk")},
        completion_schema,
        GENERATE_STATUSES,
    ),
    Operation(
        "POST",
        "/tokenize",
        "The token ids of a prompt or of messages, in vLLM's shape.",
        {JSON: out.TOKENS},
        tokenize_schema,
        (*SERVER_STATUSES, 429),
    ),
    Operation(
        "POST",
        "/detokenize",
        "The text of token ids.",
        {JSON: out.PROMPT},
        detokenize_schema,
        (*SERVER_STATUSES, 429),
    ),
    Operation("GET", "/v1/models", "The model served.", {JSON: out.MODELS}),
    Operation("GET", "/v1/models/{id}", "One model.", {JSON: out.MODEL}, parameters=(_ID,)),
    Operation("GET", "/health", "The process lives.", {JSON: out.HEALTH}, needs_key=False),
    Operation("GET", "/ready", "A request would find its workers.", {JSON: out.READY}, needs_key=False),
    Operation("GET", "/metrics", "Prometheus' text format.", {PROMETHEUS: {"type": "string"}}, needs_key=False),
    Operation("GET", "/openapi.json", "This document.", {JSON: {"type": "object"}}, needs_key=False),
)


def document(version: str, *, metrics_need_key: bool = False) -> dict[str, Any]:
    """The whole document as plain data. `version` is Baton's."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        if operation.path == "/metrics":
            operation = replace(operation, needs_key=metrics_need_key)
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Baton",
            "version": version,
            "description": "OpenAI's API. A field that is not described here is refused with 400 and named in `param`.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": out.ERROR,
                "ChatCompletionChunk": out.CHAT_CHUNK,
                "CompletionChunk": out.COMPLETION_CHUNK,
            },
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    statuses = sorted({*operation.statuses, *((401,) if operation.needs_key else ())})
    answered = {
        "description": REASONS[200],
        "content": {kind: {"schema": it} for kind, it in operation.answers.items()},
    }
    told: dict[str, Any] = {
        "operationId": _name(operation),
        "summary": operation.summary,
        "security": [{_KEY: []}] if operation.needs_key else [],
        "responses": {"200": answered, **{str(status): _error(status) for status in statuses}},
    }
    if operation.parameters:
        told["parameters"] = list(operation.parameters)
    if operation.body is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.body()}}}
    return told


def _name(operation: Operation) -> str:
    words = operation.path.replace("{", "").replace("}", "").replace(".", "/").split("/")
    return "_".join([operation.method.lower(), *filter(None, words)])


_HEADERS = {
    401: {"www-authenticate": {"schema": {"type": "string"}, "required": True}},
    405: {"allow": {"schema": {"type": "string"}, "required": True}},
    415: {"accept-encoding": {"schema": {"const": "identity"}, "required": True}},
    429: {"retry-after": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}},
    503: {"retry-after": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}},
}


def _error(status: int) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    headers = _HEADERS.get(status)
    return {"description": REASONS[status], "content": content, **({"headers": headers} if headers else {})}
