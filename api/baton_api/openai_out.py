"""OpenAI response objects, built from text and log probabilities as plain dicts. Pure.

Source of the shapes: openai/openai-openapi 2.3.0. A stream is: chat_role_chunk per choice (chat only), then
chat_chunk / completion_chunk, then usage_chunk when it was asked for; "[DONE]" is the wire's.
Serialise compactly (no spaces): the gateway finds the usage chunk by its empty `choices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AnswerMeta:
    """What every object of one answer repeats. `created_s` is Unix time in whole seconds."""

    id: str
    created_s: int
    model: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as text and as the bytes it stands for (they differ when it splits a character). `top` is best first
    and empty inside another's `top`. `text_offset`: how many characters of the answer's text come before it."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    text_offset: int = 0


@dataclass(frozen=True, slots=True)
class FinalChoice:
    """One finished choice of a whole (not streamed) answer; `logprobs` in its style, None when not asked for."""

    index: int
    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None = None


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """`cached_tokens` of the prompt were found in a prefix cache of this tenant."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def chat_role_chunk(meta: AnswerMeta, index: int) -> dict[str, Any]:
    """The first chunk of a choice: the role, no text."""
    return _chat_chunk(meta, index, {"role": "assistant", "content": ""}, None, None)


def chat_chunk(
    meta: AnswerMeta,
    index: int,
    text: str,
    finish_reason: str | None = None,
    logprobs: Sequence[TokenLogprob] | None = None,
) -> dict[str, Any]:
    """A delta of one choice. The last one may have no text: its delta is then empty, as OpenAI's is."""
    return _chat_chunk(meta, index, {"content": text} if text or finish_reason is None else {}, finish_reason, logprobs)


def _chat_chunk(
    meta: AnswerMeta,
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None,
    logprobs: Sequence[TokenLogprob] | None,
) -> dict[str, Any]:
    choice = {
        "index": index,
        "delta": delta,
        "logprobs": chat_logprobs(logprobs) if logprobs is not None else None,
        "finish_reason": finish_reason,
    }
    return {**_head(meta, "chat.completion.chunk"), "choices": [choice]}


def completion_chunk(
    meta: AnswerMeta,
    index: int,
    text: str,
    finish_reason: str | None = None,
    logprobs: Sequence[TokenLogprob] | None = None,
) -> dict[str, Any]:
    """A delta of one choice."""
    choice = {
        "index": index,
        "text": text,
        "logprobs": completion_logprobs(logprobs) if logprobs is not None else None,
        "finish_reason": finish_reason,
    }
    return {**_head(meta, "text_completion"), "choices": [choice]}


def usage_chunk(meta: AnswerMeta, used: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """The chunk after the last delta: no choices, the usage of the whole request."""
    return {**_head(meta, "chat.completion.chunk" if chat else "text_completion"), "choices": [], "usage": used}


def chat_final(meta: AnswerMeta, choices: Sequence[FinalChoice], used: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of a chat request that did not stream."""
    shaped = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": choice.logprobs,
            "finish_reason": choice.finish_reason,
        }
        for choice in choices
    ]
    return {**_head(meta, "chat.completion"), "choices": shaped, "usage": used}


def completion_final(meta: AnswerMeta, choices: Sequence[FinalChoice], used: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of a completion request that did not stream."""
    shaped = [
        {
            "index": choice.index,
            "text": choice.text,
            "logprobs": choice.logprobs,
            "finish_reason": choice.finish_reason,
        }
        for choice in choices
    ]
    return {**_head(meta, "text_completion"), "choices": shaped, "usage": used}


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The chat style: one object per token, each with its alternatives."""
    content = [{**_chat_entry(entry), "top_logprobs": [_chat_entry(other) for other in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def _chat_entry(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.token_bytes)}


def completion_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The completion style: parallel lists."""
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{other.token: other.logprob for other in entry.top} for entry in entries],
        "text_offset": [entry.text_offset for entry in entries],
    }


def _head(meta: AnswerMeta, kind: str) -> dict[str, Any]:
    return {"id": meta.id, "object": kind, "created": meta.created_s, "model": meta.model}
