"""POST /tokenize and /detokenize, in vLLM's shape: what the gateway's tokeniser makes of a text, and back."""

from __future__ import annotations

from functools import partial
from typing import Any

from baton_api.errors import BadRequest
from baton_api.json_body import json_object
from baton_api.openai import checked_ids, parse_chat, parse_completion
from baton_api.shown import shown
from baton_wire.http_server import Exchange

from .job import Parts, check_model


async def tokenize(parts: Parts, exchange: Exchange) -> dict[str, Any]:
    """`{"prompt"}` or `{"messages"}`, as the completion and chat routes take them. Raises BadRequest, NotFound."""
    body = {"model": parts.registry.model, **await body_of(parts, exchange)}
    asked = parse_chat(body) if "messages" in body else parse_completion(body)
    check_model(parts.registry, asked.model)
    prompt = await parts.tokeniser.read(asked, b"", ())
    return {
        "count": len(prompt),
        "max_model_len": parts.registry.longest_context,
        "tokens": prompt.token_ids,
        "token_strs": None,
    }


async def detokenize(parts: Parts, exchange: Exchange) -> dict[str, Any]:
    """`{"tokens": [ids]}` to `{"prompt": text}`. Raises BadRequest, NotFound."""
    body = {"model": parts.registry.model, **await body_of(parts, exchange)}
    for name in body:
        if name not in ("model", "tokens"):
            told = f"{name[:64]!r} is not a field of this request; leave it out"
            raise BadRequest(told, param=name[:64], code="unknown_field")
    if not isinstance(tokens := body.get("tokens"), list):
        told = f"tokens is {shown(tokens)}; it must be a list of token ids"
        raise BadRequest(told, param="tokens", code="invalid_type")
    check_model(parts.registry, parse_completion({"model": body["model"], "prompt": ""}).model)
    return {"prompt": await parts.tokeniser.text(checked_ids(tokens, "tokens"))}


async def body_of(parts: Parts, exchange: Exchange) -> dict[str, Any]:
    """The body's fields; a large one is parsed on a thread. Raises BadRequest, Overloaded."""
    if len(exchange.body) <= parts.settings.parse_inline_bytes:
        return json_object(exchange.body, max_values=parts.registry.max_values)
    return await parts.tokeniser.elsewhere(partial(json_object, max_values=parts.registry.max_values), exchange.body)
