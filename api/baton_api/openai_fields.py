"""Which request fields are used, accepted without effect, accepted only when off, or refused. Pure.

Source of the names: openai/openai-openapi 2.3.0 (chat and completions) and vLLM's documented extensions. A field that
stands in none of these tables is refused by name, so nothing a client asks for is ever dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import BadRequest
from .shown import shown

_SAMPLING = (
    *("model", "max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "logprobs"),
    *("include_stop_str_in_output", "skip_special_tokens", "stream", "stream_options", "cache_salt"),
    "return_token_ids",
)
INTERNAL = frozenset({"prompt_token_ids", "kv_transfer_params", "emitted"})
CHAT_USED = frozenset({*_SAMPLING, "messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs"})
COMPLETION_USED = frozenset({*_SAMPLING, "prompt"})

# Accepted and without effect, by the type they must have. Documented in docs/api.md.
IGNORED: Mapping[str, type] = {
    "user": str,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "prompt_cache_options": dict,
    "metadata": dict,
    "parallel_tool_calls": bool,
}

_NAMES: Mapping[type, str] = {str: "a string", dict: "an object", bool: "true or false"}

# Accepted only with a value that asks for nothing.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": (),
    "priority": (0,),
    "best_of": (1,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "echo": (False,),
}
CHAT_OFF: Mapping[str, tuple[Any, ...]] = {
    **_OFF,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "documents": (),
    "chat_template": (),
}
COMPLETION_OFF: Mapping[str, tuple[Any, ...]] = {**_OFF, "suffix": ("",), "add_special_tokens": (True,)}

_USED = {
    (chat, internal): (CHAT_USED if chat else COMPLETION_USED) | (INTERNAL if internal else frozenset())
    for chat in (False, True)
    for internal in (False, True)
}


def known_fields(body: Any, *, chat: bool, internal: bool) -> dict[str, Any]:
    """The fields of `body` that are used, without those that are null.

    Raises BadRequest naming the first field that is unknown, unsupported or of the wrong type.
    """
    if not isinstance(body, dict):
        raise BadRequest(f"the body is {shown(body)}; it must be a JSON object")
    used = _USED[chat, internal]
    off = CHAT_OFF if chat else COMPLETION_OFF
    for name, value in body.items():
        if name not in used:
            _check_unused(name, value, off)
    return {name: value for name, value in body.items() if value is not None and name in used}


def _check_unused(name: Any, value: Any, off: Mapping[str, tuple[Any, ...]]) -> None:
    if name in INTERNAL:
        raise BadRequest(f"{name} is set by the gateway only; leave it out", param=name)
    if name in IGNORED:
        if value is not None and not isinstance(value, IGNORED[name]):
            raise BadRequest(f"{name} is {shown(value)}; it must be {_NAMES[IGNORED[name]]}", param=name)
    elif name not in off:
        named = str(name)[:64]
        raise BadRequest(f"{named!r} is not a field of this request; leave it out", param=named, code="unknown_field")
    elif value is not None and not any(type(value) is type(none) and value == none for none in off[name]):
        accepted = " or ".join(["null", *map(shown, off[name])])
        told = f"{name} is {shown(value)}; it is not supported here beyond {accepted}: leave it out"
        raise BadRequest(told, param=name, code="unsupported_value")
