"""JSON Schemas of what is answered: the shapes that module openai_out makes, and the error. Pure.

Answers of the completion routes come from workers, foreign ones among them, so these shapes are open: a field more is
no breach. What the gateway says itself is closed.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_NULLABLE_TEXT: Schema = {"type": ["string", "null"]}


def said(fields: Schema, *, optional: tuple[str, ...] = (), closed: bool = True) -> Schema:
    """An object with these fields, all there but the optional ones."""
    required = [name for name in fields if name not in optional]
    shape: Schema = {"type": "object", "properties": fields, "required": required}
    return {**shape, "additionalProperties": False} if closed else shape


def _open(fields: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    return said(fields, optional=optional, closed=False)


ERROR = said({"error": said({"message": TEXT, "type": TEXT, "param": _NULLABLE_TEXT, "code": _NULLABLE_TEXT})})

_USAGE = _open(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": _open({"cached_tokens": COUNT}),
    }
)
_FINISH: Schema = {"enum": ["stop", "length", "abort"]}
_IDS: Schema = {"type": "array", "items": COUNT}
_TOKEN: Schema = {
    "token": TEXT,
    "logprob": {"type": "number"},
    "bytes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
}
_CHAT_LOGPROBS = _open(
    {
        "content": {
            "type": "array",
            "items": _open({**_TOKEN, "top_logprobs": {"type": "array", "items": _open(_TOKEN)}}),
        },
        "refusal": {"type": "null"},
    }
)
_COMPLETION_LOGPROBS = _open(
    {
        "tokens": {"type": "array", "items": TEXT},
        "token_logprobs": {"type": "array", "items": {"type": "number"}},
        "top_logprobs": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}},
        "text_offset": {"type": "array", "items": COUNT},
    }
)


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _answer(kind: str, choice: Schema, *, usage: bool) -> Schema:
    """`usage`: it is there always; else only in a stream's last chunk."""
    fields: Schema = {
        "id": TEXT,
        "object": {"const": kind},
        "created": COUNT,
        "model": TEXT,
        "choices": {"type": "array", "items": choice},
        "usage": _USAGE,
    }
    return _open(fields, optional=() if usage else ("usage",))


def _choice(what: Schema, logprobs: Schema, *, finish: Schema = _FINISH) -> Schema:
    fields = {"index": COUNT, **what, "logprobs": _or_null(logprobs), "finish_reason": finish, "token_ids": _IDS}
    return _open(fields, optional=("token_ids",))


_MESSAGE = _open({"role": {"const": "assistant"}, "content": TEXT, "refusal": {"type": "null"}})
_DELTA = _open({"role": {"const": "assistant"}, "content": TEXT}, optional=("role", "content"))

CHAT = _answer("chat.completion", _choice({"message": _MESSAGE}, _CHAT_LOGPROBS), usage=True)
CHAT_CHUNK = _answer(
    "chat.completion.chunk", _choice({"delta": _DELTA}, _CHAT_LOGPROBS, finish=_or_null(_FINISH)), usage=False
)
COMPLETION = _answer("text_completion", _choice({"text": TEXT}, _COMPLETION_LOGPROBS), usage=True)
COMPLETION_CHUNK = _answer(
    "text_completion", _choice({"text": TEXT}, _COMPLETION_LOGPROBS, finish=_or_null(_FINISH)), usage=False
)

_MAX_MODEL_LEN: Schema = {"type": ["integer", "null"], "minimum": 1}
MODEL = said(
    {
        "id": TEXT,
        "object": {"const": "model"},
        "created": COUNT,
        "owned_by": TEXT,
        "max_model_len": _MAX_MODEL_LEN,
    }
)
MODELS = said({"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}})
TOKENS = said({"count": COUNT, "max_model_len": _MAX_MODEL_LEN, "tokens": _IDS, "token_strs": {"type": "null"}})
PROMPT = said({"prompt": TEXT})
HEALTH = said({"status": {"const": "ok"}})
READY = said({"status": {"const": "ready"}, "workers": COUNT})
