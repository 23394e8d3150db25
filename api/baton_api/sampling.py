"""How one request wants its tokens drawn, and what a drawn token is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import BadRequest

MAX_N = 8
MAX_STOP = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
# Closer to 0 than these, float32 arithmetic on logits ends in infinities.
GREEDY_BELOW = 1e-5
MIN_REPETITION_PENALTY = 0.01


@dataclass(frozen=True, slots=True)
class Range:
    """What a number may be: from `low`, itself included unless `open_low`, to `high`."""

    low: float
    high: float
    open_low: bool = False


# By the field's name, here and in a request's body; the API's document is made from it too.
RANGES: Mapping[str, Range] = {
    "n": Range(1, MAX_N),
    "temperature": Range(0.0, 2.0),
    "top_p": Range(0.0, 1.0, open_low=True),
    "top_k": Range(-1, 2**31),
    "min_p": Range(0.0, 1.0),
    "presence_penalty": Range(-2.0, 2.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "repetition_penalty": Range(MIN_REPETITION_PENALTY, 100.0),
    "max_tokens": Range(1, 2**31),
    "seed": Range(-(2**63), 2**63 - 1),
    "top_logprobs": Range(0, MAX_TOP_LOGPROBS),
    "min_tokens": Range(0, 2**31),
}
BIAS = Range(-100.0, 100.0)
_BOUNDS = tuple((name, allowed.low, allowed.high) for name, allowed in RANGES.items())  # a third of the time

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Every field has the OpenAI or vLLM meaning; a `temperature` below GREEDY_BELOW is greedy, as in vLLM.

    `seed` is always set by the time a worker samples: the gateway (or the worker, when called directly) draws one if
    the client gave none, so that both legs, a retry and a resume draw the same tokens. The draw for a token depends
    on (seed, choice, position of the token in the output) and on nothing else.
    `top_logprobs` None means no logprobs; 0 means the drawn token's only.
    `max_tokens` None means up to the context length.
    """

    max_tokens: int | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    top_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                _between(name, value, RANGES[name])
        if self.top_p == 0.0:
            _between("top_p", self.top_p, RANGES["top_p"])
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _between("min_tokens", self.min_tokens, Range(0, self.max_tokens))
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            _between("logit_bias entries", len(self.logit_bias), Range(0, MAX_LOGIT_BIAS), param="logit_bias")
        for token_id, bias in self.logit_bias:
            _between(f"logit_bias[{token_id}]", bias, BIAS, param="logit_bias")
        if len(self.stop) > MAX_STOP:
            _between("stop strings", len(self.stop), Range(0, MAX_STOP), param="stop")
        for text in self.stop:
            _between("characters of a stop string", len(text), Range(1, MAX_STOP_CHARS), param="stop")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One drawn token. `logprob` and `top` (token id, logprob; best first) are set only when logprobs were asked for.

    Log probabilities are of the raw model distribution (log-softmax of the logits, before temperature, penalties
    and bias), as OpenAI's and vLLM's default are.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def _between(name: str, value: float, allowed: Range, *, param: str | None = None) -> None:
    if allowed.low <= value <= allowed.high and not (allowed.open_low and value == allowed.low):
        return
    low_side = f"above {allowed.low}" if allowed.open_low else f"at least {allowed.low}"
    raise BadRequest(f"{name} is {value!r}; it must be {low_side} and at most {allowed.high}", param=param or name)
