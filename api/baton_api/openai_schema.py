"""JSON Schemas of the request bodies, made from the tables and limits that the parser uses. Pure.

What a schema cannot say (two fields that must agree, ids within a model's vocabulary) stands in the description.
Draft 2020-12, as OpenAPI 3.1 has it. `null` means absent everywhere but in what is required.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import openai
from .openai_fields import CHAT_OFF, CHAT_USED, COMPLETION_OFF, COMPLETION_USED, IGNORED
from .sampling import BIAS, MAX_LOGIT_BIAS, MAX_STOP, MAX_STOP_CHARS, RANGES, Range

Schema = dict[str, Any]

_INTEGERS = frozenset({"n", "top_k", "max_tokens", "seed", "top_logprobs", "min_tokens"})
_TYPES: Mapping[type, str] = {str: "string", dict: "object", bool: "boolean"}


def chat_schema() -> Schema:
    """The body of POST /v1/chat/completions."""
    return _body(chat_fields(), ("model", "messages"))


def completion_schema() -> Schema:
    """The body of POST /v1/completions."""
    return _body(completion_fields(), ("model", "prompt"))


def tokenize_schema() -> Schema:
    """The body of POST /tokenize: as for either of the two, the model may be left out."""
    return {"anyOf": [_body(chat_fields(), ("messages",)), _body(completion_fields(), ("prompt",))]}


def detokenize_schema() -> Schema:
    """The body of POST /detokenize."""
    return _body({"model": _MODEL, "tokens": _token_ids()}, ("tokens",))


def chat_fields() -> Schema:
    """Every field that a chat request may have."""
    return {**_listed(CHAT_USED, {**_USED, **_CHAT_ONLY}), **_unused(CHAT_OFF)}


def completion_fields() -> Schema:
    """Every field that a completion request may have."""
    return {**_listed(COMPLETION_USED, {**_USED, **_COMPLETION_ONLY}), **_unused(COMPLETION_OFF)}


def _body(fields: Schema, required: Collection[str]) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def _listed(names: Collection[str], schemas: Mapping[str, Schema]) -> Schema:
    """A KeyError here is a field that the parser knows and this module does not."""
    return {name: schemas[name] for name in sorted(names)}


def _unused(off: Mapping[str, tuple[Any, ...]]) -> Schema:
    ignored = {
        name: {"type": [_TYPES[kind], "null"], "description": "Accepted, without effect."}
        for name, kind in IGNORED.items()
    }
    refused = {
        name: {"enum": [*_distinct(none), None], "description": "Accepted only when it asks for nothing."}
        for name, none in off.items()
    }
    return {**ignored, **refused}


def _distinct(values: tuple[Any, ...]) -> list[Any]:
    """1 and 1.0 are one value in JSON."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _number(allowed: Range, *, whole: bool, nullable: bool = True) -> Schema:
    kind = "integer" if whole else "number"
    low = "exclusiveMinimum" if allowed.open_low else "minimum"
    return {"type": [kind, "null"] if nullable else kind, low: allowed.low, "maximum": allowed.high}


def _boolean() -> Schema:
    return {"type": ["boolean", "null"]}


def _token_ids(limit: int | None = None) -> Schema:
    item = {"type": "integer", "minimum": 0, "exclusiveMaximum": openai.TOKEN_ID_LIMIT}
    bound = {} if limit is None else {"maxItems": limit}
    return {"type": "array", "items": item, **bound}


def _said(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


_MODEL: Schema = {"type": "string", "minLength": 1, "maxLength": openai.MAX_MODEL_CHARS}
_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}

_STREAM_OPTIONS: Schema = {
    "type": ["object", "null"],
    "properties": {
        "include_usage": _boolean(),
        "include_obfuscation": _boolean(),
        "continuous_usage_stats": {"enum": [False, None]},
    },
    "additionalProperties": False,
    "description": "Needs stream: true.",
}

_LOGIT_BIAS: Schema = {
    "type": ["object", "null"],
    "propertyNames": {"pattern": f"^({openai.BIAS_KEY.pattern})$"},
    "additionalProperties": _number(BIAS, whole=False, nullable=False),
    "maxProperties": MAX_LOGIT_BIAS,
    "description": "By token id, in decimal.",
}

_USED: Mapping[str, Schema] = {
    **{name: _number(allowed, whole=name in _INTEGERS) for name, allowed in RANGES.items()},
    "min_tokens": _said(_number(RANGES["min_tokens"], whole=True), "At most max_tokens."),
    "model": _MODEL,
    "logit_bias": _LOGIT_BIAS,
    "stop": {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOP}, {"type": "null"}]},
    "stop_token_ids": {"anyOf": [_token_ids(openai.MAX_STOP_TOKEN_IDS), {"type": "null"}]},
    "ignore_eos": _boolean(),
    "include_stop_str_in_output": _boolean(),
    "skip_special_tokens": _boolean(),
    "stream": _boolean(),
    "stream_options": _STREAM_OPTIONS,
    "cache_salt": {"type": ["string", "null"], "minLength": 1, "maxLength": openai.MAX_CACHE_SALT_CHARS},
    "return_token_ids": _boolean(),
}

_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_PARTS: Schema = {"type": "array", "items": _PART, "minItems": 1, "maxItems": openai.MAX_PARTS}


def _message(roles: Collection[str], *, silent: bool) -> Schema:
    """`silent`: the content may be missing."""
    content: Schema = {"anyOf": [{"type": "string"}, _PARTS, *([{"type": "null"}] if silent else [])]}
    off = {name: {"enum": [none, None] if none is not None else [None]} for name, none in openai.MESSAGE_OFF.items()}
    fields = {"role": {"enum": sorted(roles)}, "content": content, "name": {"type": ["string", "null"]}, **off}
    return _body(fields, ("role",) if silent else ("role", "content"))


_TEMPLATE_KWARGS: Schema = {
    "type": ["object", "null"],
    "propertyNames": {
        "pattern": f"^{openai.KWARG_NAME.pattern}$",
        "not": {"enum": sorted(openai.RESERVED_KWARGS)},
    },
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    "maxProperties": openai.MAX_TEMPLATE_KWARGS,
}

_CHAT_ONLY: Mapping[str, Schema] = {
    "messages": {
        "type": "array",
        "items": {
            "anyOf": [
                _message(set(openai.ROLES) - {"assistant"}, silent=False),
                _message({"assistant"}, silent=True),
            ]
        },
        "minItems": 1,
        "maxItems": openai.MAX_MESSAGES,
        "examples": [[{"role": "user", "content": "Who runs the first leg?"}]],
    },
    "logprobs": _boolean(),
    "top_logprobs": _said(_number(RANGES["top_logprobs"], whole=True), "Above 0 needs logprobs: true."),
    "max_completion_tokens": _said(_number(RANGES["max_tokens"], whole=True), "max_tokens by its newer name."),
    "chat_template_kwargs": _TEMPLATE_KWARGS,
}

_COMPLETION_ONLY: Mapping[str, Schema] = {
    "prompt": {
        "anyOf": [
            {"type": "string"},
            _token_ids(),
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
            {"type": "array", "items": _token_ids(), "minItems": 1, "maxItems": 1},
        ],
        "description": "One prompt, of at least one token.",
        "examples": ["The baton passes"],
    },
    "logprobs": _number(RANGES["top_logprobs"], whole=True),
}
