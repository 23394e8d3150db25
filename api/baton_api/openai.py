"""OpenAI request bodies, parsed strictly into frozen requests. Pure. Used by the gateway and by the workers.

Types are strict (true is not 1, "5" is not 5), null means absent, and every refusal is a BadRequest that names its
`param`. Which fields exist at all is openai_fields' table. With `internal=True` (worker side, behind the worker key)
the body may carry `prompt_token_ids`, `kv_transfer_params` and `emitted` (module emitted: a stream that can be resumed,
and how far it is), and messages or prompt may then be absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import BadRequest
from .openai_fields import INTERNAL, known_fields
from .sampling import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, SamplingParams
from .shown import shown

MAX_MESSAGES = 2048
MAX_PARTS = 1024
MAX_MODEL_CHARS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_TEMPLATE_KWARGS = 16
MAX_CACHE_SALT_CHARS = 256
TOKEN_ID_LIMIT = 2**31
COMPLETION_MAX_TOKENS = 16

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_USED = frozenset({"role", "content", "name"})
MESSAGE_OFF: Mapping[str, Any] = {"refusal": None, "tool_calls": [], "function_call": None, "audio": None}
BIAS_KEY = re.compile(r"0|[1-9][0-9]{0,9}")
KWARG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
RESERVED_KWARGS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"})
_INT_LIMIT = 2**63


@dataclass(slots=True)
class Message:
    """One chat message; text parts are joined, `developer` has become `system` (chat templates know no other)."""

    role: str
    content: str
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": self.content, **named}


@dataclass(slots=True)
class ChatRequest:
    """POST /v1/chat/completions. Log probabilities were asked for when `sampling.top_logprobs` is not None.

    `return_token_ids` (vLLM's extension): every choice carries the ids of its tokens. Never changed once made; not
    frozen only because a frozen one costs 1 us more to build, on every request (Message and CompletionRequest too).
    """

    model: str
    sampling: SamplingParams
    messages: tuple[Message, ...] = ()
    stream: bool = False
    include_usage: bool = False
    template_kwargs: tuple[tuple[str, Any], ...] = ()
    return_token_ids: bool = False
    cache_salt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    kv_transfer_params: Mapping[str, Any] | None = None
    emitted: str | None = None


@dataclass(slots=True)
class CompletionRequest:
    """POST /v1/completions, one prompt: text, or token ids; None only inside (then `prompt_token_ids` is set)."""

    model: str
    sampling: SamplingParams
    prompt: str | tuple[int, ...] | None = None
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    cache_salt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    kv_transfer_params: Mapping[str, Any] | None = None
    emitted: str | None = None


def parse_chat(body: Any, *, internal: bool = False) -> ChatRequest:
    """The chat request in `body` (decoded JSON). Raises BadRequest."""
    return chat_of(known_fields(body, chat=True, internal=internal))


def parse_completion(body: Any, *, internal: bool = False) -> CompletionRequest:
    """The completion request in `body` (decoded JSON). Raises BadRequest."""
    return completion_of(known_fields(body, chat=False, internal=internal))


def chat_of(fields: Mapping[str, Any]) -> ChatRequest:
    """The chat request in `fields`, which `known_fields` gave. Raises BadRequest."""
    options = _options(fields, _chat_options)
    token_ids = _token_ids(fields, "prompt_token_ids") if "prompt_token_ids" in fields else None
    return ChatRequest(
        options.model,
        _seeded(options.sampling, fields) if "seed" in fields else options.sampling,
        () if token_ids is not None and "messages" not in fields else _messages(fields),
        options.stream,
        options.include_usage,
        options.template_kwargs,
        options.return_token_ids,
        options.cache_salt,
        token_ids,
        _get(fields, "kv_transfer_params", dict, None) if "kv_transfer_params" in fields else None,
        _get(fields, "emitted", str, None) if "emitted" in fields else None,
    )


def completion_of(fields: Mapping[str, Any]) -> CompletionRequest:
    """The completion request in `fields`, which `known_fields` gave. Raises BadRequest."""
    options = _options(fields, _completion_options)
    token_ids = _token_ids(fields, "prompt_token_ids") if "prompt_token_ids" in fields else None
    return CompletionRequest(
        options.model,
        _seeded(options.sampling, fields) if "seed" in fields else options.sampling,
        None if token_ids is not None and "prompt" not in fields else _prompt(fields),
        options.stream,
        options.include_usage,
        options.return_token_ids,
        options.cache_salt,
        token_ids,
        _get(fields, "kv_transfer_params", dict, None) if "kv_transfer_params" in fields else None,
        _get(fields, "emitted", str, None) if "emitted" in fields else None,
    )


@dataclass(frozen=True, slots=True)
class _Options:
    """What a request says beside its text and its seed: few combinations, sent over and over."""

    model: str
    sampling: SamplingParams
    stream: bool
    include_usage: bool
    template_kwargs: tuple[tuple[str, Any], ...]
    return_token_ids: bool
    cache_salt: str | None


_NO_OPTION = frozenset({"messages", "prompt", "seed", *INTERNAL})
_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_CHARS = 512
_remembered: dict[tuple[Any, str], _Options] = {}


def _options(fields: Mapping[str, Any], read: Callable[[Mapping[str, Any]], _Options]) -> _Options:
    """What `read` makes of the options among `fields`, remembered by their wording: validating them is a quarter of
    what a request costs the gateway. The wording (repr) tells 1, 1.0, True and "1" apart."""
    given = {name: value for name, value in fields.items() if name not in _NO_OPTION}
    key = (read, repr(given))
    known = _remembered.get(key)
    if known is None:
        known = read(given)
        if len(key[1]) <= _MAX_REMEMBERED_CHARS:
            if len(_remembered) >= _MAX_REMEMBERED:
                _remembered.clear()
            _remembered[key] = known
    return known


def _chat_options(fields: Mapping[str, Any]) -> _Options:
    stream, include_usage = _stream(fields)
    return _Options(
        model=_model(fields),
        sampling=_sampling(fields, _max_tokens(fields), _chat_logprobs(fields)),
        stream=stream,
        include_usage=include_usage,
        template_kwargs=_template_kwargs(fields),
        return_token_ids=_get(fields, "return_token_ids", bool, False),
        cache_salt=_cache_salt(fields),
    )


def _completion_options(fields: Mapping[str, Any]) -> _Options:
    stream, include_usage = _stream(fields)
    max_tokens = _max_tokens(fields)
    return _Options(
        model=_model(fields),
        sampling=_sampling(fields, COMPLETION_MAX_TOKENS if max_tokens is None else max_tokens, _top_logprobs(fields)),
        stream=stream,
        include_usage=include_usage,
        template_kwargs=(),
        return_token_ids=_get(fields, "return_token_ids", bool, False),
        cache_salt=_cache_salt(fields),
    )


def _seeded(sampling: SamplingParams, fields: Mapping[str, Any]) -> SamplingParams:
    return replace(sampling, seed=_integer(fields, "seed", None))


def _model(fields: Mapping[str, Any]) -> str:
    model: str = _need(fields, "model", str)
    if not 0 < len(model) <= MAX_MODEL_CHARS:
        raise BadRequest(f"model has {len(model)} characters; it must have 1 to {MAX_MODEL_CHARS}", param="model")
    return model


def _cache_salt(fields: Mapping[str, Any]) -> str | None:
    salt: str | None = _get(fields, "cache_salt", str, None)
    if salt is not None and not 0 < len(salt) <= MAX_CACHE_SALT_CHARS:
        told = f"cache_salt has {len(salt)} characters; it must have 1 to {MAX_CACHE_SALT_CHARS}"
        raise BadRequest(told, param="cache_salt")
    return salt


def _sampling(fields: Mapping[str, Any], max_tokens: int | None, top_logprobs: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        n=_integer(fields, "n", 1),
        temperature=_number(fields, "temperature", 1.0),
        top_p=_number(fields, "top_p", 1.0),
        top_k=_integer(fields, "top_k", 0),
        min_p=_number(fields, "min_p", 0.0),
        presence_penalty=_number(fields, "presence_penalty", 0.0),
        frequency_penalty=_number(fields, "frequency_penalty", 0.0),
        repetition_penalty=_number(fields, "repetition_penalty", 1.0),
        logit_bias=_logit_bias(fields),
        stop=_stop(fields),
        stop_token_ids=_token_ids(fields, "stop_token_ids", MAX_STOP_TOKEN_IDS) or (),
        ignore_eos=_get(fields, "ignore_eos", bool, False),
        min_tokens=_integer(fields, "min_tokens", 0),
        top_logprobs=top_logprobs,
        include_stop_str_in_output=_get(fields, "include_stop_str_in_output", bool, False),
        skip_special_tokens=_get(fields, "skip_special_tokens", bool, True),
    )


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    """`max_completion_tokens` is the newer name of `max_tokens`; both may be given if they agree."""
    given = {name: _integer(fields, name, None) for name in ("max_completion_tokens", "max_tokens") if name in fields}
    for name, value in given.items():
        if not 1 <= value <= TOKEN_ID_LIMIT:
            raise BadRequest(f"{name} is {value}; it must be at least 1 and at most {TOKEN_ID_LIMIT}", param=name)
    if len(set(given.values())) > 1:
        told = " and ".join(f"{name} is {value}" for name, value in given.items())
        raise BadRequest(f"{told}; give one of them, or the same for both", param="max_tokens")
    return next(iter(given.values()), None)


def _chat_logprobs(fields: Mapping[str, Any]) -> int | None:
    if not _get(fields, "logprobs", bool, False):
        if "top_logprobs" in fields and (count := _integer(fields, "top_logprobs", 0)) != 0:
            raise BadRequest(f"top_logprobs is {count}; it needs logprobs: true, or must be 0", param="top_logprobs")
        return None
    return _top_logprobs({"logprobs": 0, **_only(fields, "top_logprobs")}, "top_logprobs")


def _top_logprobs(fields: Mapping[str, Any], name: str = "logprobs") -> int | None:
    count: int | None = _integer(fields, name, 0 if name == "top_logprobs" else None)
    if count is not None and not 0 <= count <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"{name} is {count}; it must be at least 0 and at most {MAX_TOP_LOGPROBS}", param=name)
    return count


def _only(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: fields[name]} if name in fields else {}


def _stream(fields: Mapping[str, Any]) -> tuple[bool, bool]:
    """(stream, include_usage)."""
    stream: bool = _get(fields, "stream", bool, False)
    if "stream_options" not in fields:
        return stream, False
    options = _need(fields, "stream_options", dict)
    if not stream:
        told = f"stream_options is {shown(options)}; it needs stream: true, or must be left out"
        raise BadRequest(told, param="stream_options")
    for name, value in options.items():
        where = f"stream_options.{str(name)[:64]}"
        if name not in ("include_usage", "include_obfuscation", "continuous_usage_stats"):
            raise BadRequest(f"{where} is not known; leave it out", param=where, code="unknown_field")
        if value is not None and not isinstance(value, bool):
            raise _wrong(where, value, "true or false")
    if options.get("continuous_usage_stats"):
        raise _wrong("stream_options.continuous_usage_stats", True, "false: usage comes once, at the end")
    return stream, bool(options.get("include_usage"))


def _logit_bias(fields: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    biases = _get(fields, "logit_bias", dict, {})
    if len(biases) > MAX_LOGIT_BIAS:  # before each is looked at: 5,000 cost 14 ms
        raise BadRequest(f"logit_bias has {len(biases)} entries; at most {MAX_LOGIT_BIAS}", param="logit_bias")
    for key in biases:
        if not (isinstance(key, str) and BIAS_KEY.fullmatch(key) and int(key) < TOKEN_ID_LIMIT):
            told = f"logit_bias has a key {shown(key)}; keys must be token ids in decimal, below {TOKEN_ID_LIMIT}"
            raise BadRequest(told, param="logit_bias")
    return tuple((int(key), _number(biases, key, 0.0, "logit_bias")) for key in biases)


def _stop(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise _wrong("stop", stop, "a string or a list of strings")
    return tuple(stop)


def _token_ids(fields: Mapping[str, Any], name: str, limit: int | None = None) -> tuple[int, ...] | None:
    if name not in fields:
        return None
    return checked_ids(_need(fields, name, list), name, limit)


def checked_ids(ids: list[Any], name: str, limit: int | None = None) -> tuple[int, ...]:
    """The token ids of the field `name`. Raises BadRequest."""
    if limit is not None and len(ids) > limit:
        raise BadRequest(f"{name} has {len(ids)} entries; at most {limit}", param=name)
    # The two set/min/max passes run in C: 100,000 ids cost about 2 ms.
    if ids and not (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < TOKEN_ID_LIMIT):
        index, wrong = next((i, it) for i, it in enumerate(ids) if type(it) is not int or not 0 <= it < TOKEN_ID_LIMIT)
        told = f"{name}[{index}] is {shown(wrong)}; token ids must be integers from 0 below {TOKEN_ID_LIMIT}"
        raise BadRequest(told, param=name)
    return tuple(ids)


def _prompt(fields: Mapping[str, Any]) -> str | tuple[int, ...]:
    prompt = _need(fields, "prompt", (str, list))
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], str | list):
        raise BadRequest(f"prompt is a list of {len(prompt)} prompts; send one per request", param="prompt")
    return checked_ids(prompt, "prompt")


def _template_kwargs(fields: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    kwargs = _get(fields, "chat_template_kwargs", dict, {})
    if len(kwargs) > MAX_TEMPLATE_KWARGS:
        told = f"chat_template_kwargs has {len(kwargs)} entries; at most {MAX_TEMPLATE_KWARGS}"
        raise BadRequest(told, param="chat_template_kwargs")
    for name, value in kwargs.items():
        where = f"chat_template_kwargs.{str(name)[:64]}"
        if not (isinstance(name, str) and KWARG_NAME.fullmatch(name)) or name in RESERVED_KWARGS:
            raise BadRequest(f"{where} is not a name a template may be given; leave it out", param=where)
        if not isinstance(value, bool | int | float | str | None):
            raise _wrong(where, value, "a string, number, boolean or null")
    return tuple(kwargs.items())


def _messages(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = _need(fields, "messages", list)
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages has {len(messages)} entries; 1 to {MAX_MESSAGES} are allowed", param="messages")
    return tuple([_message(message, f"messages[{i}]") for i, message in enumerate(messages)])


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise _wrong(where, message, "an object")
    for name, value in message.items():
        if name not in _MESSAGE_USED and not (name in MESSAGE_OFF and (value is None or value == MESSAGE_OFF[name])):
            at = f"{where}.{str(name)[:64]}"
            told = f"{at} is {shown(value)}; it is not supported here: leave it out"
            raise BadRequest(told, param=at, code="unsupported_value")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise _wrong(f"{where}.name", name, "a string")
    content = message.get("content")
    if type(content) is not str:
        content = _joined(content, role, f"{where}.content")
    return Message(ROLES[role], content, name)


def _joined(content: Any, role: str, where: str) -> str:
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_PARTS:
        raise _wrong(where, content, f"a string or a list of 1 to {MAX_PARTS} text parts")
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise _wrong(where, part, "an object")
    if part.get("type") != "text":
        told = f"{where} is of type {shown(part.get('type'))}; only 'text' parts are supported"
        raise BadRequest(told, param=where, code="unsupported_value")
    text = part.get("text")
    if not isinstance(text, str):
        raise _wrong(f"{where}.text", text, "a string")
    return text


def _wrong(where: str, value: Any, wanted: str, code: str | None = None, param: str | None = None) -> BadRequest:
    return BadRequest(f"{where} is {shown(value)}; it must be {wanted}", param=param or where, code=code)


_TYPE_NAMES = {str: "a string", bool: "true or false", dict: "an object", list: "a list", (str, list): "text or a list"}


def _need(fields: Mapping[str, Any], name: str, kind: Any) -> Any:
    if name not in fields:
        raise BadRequest(f"{name} is missing", param=name, code="missing_required_parameter")
    return _get(fields, name, kind, None)


def _get(fields: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = fields.get(name, default)
    if name in fields and not isinstance(value, kind):
        raise _wrong(name, value, _TYPE_NAMES[kind], "invalid_type")
    return value


def _integer(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    value = fields.get(name, default)
    if name in fields and (type(value) is not int or not -_INT_LIMIT <= value < _INT_LIMIT):
        raise _wrong(name, value, "an integer of at most 64 bits", "invalid_type")
    return value


def _number(fields: Mapping[str, Any], name: str, default: float, param: str | None = None) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or abs(value) > _INT_LIMIT:
        where = name if param is None else f"{param}[{name}]"
        raise _wrong(where, value, "a number, 2^63 at most", "invalid_type", param)
    return float(value)
