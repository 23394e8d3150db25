"""How one request wants its tokens drawn, and what a drawn token is. Pure."""

from __future__ import annotations

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
        _between("n", self.n, 1, MAX_N)
        _between("temperature", self.temperature, 0.0, 2.0)
        _between("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _between("top_k", self.top_k, -1, 2**31)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 100.0)
        if self.max_tokens is not None:
            _between("max_tokens", self.max_tokens, 1, 2**31)
        if self.seed is not None:
            _between("seed", self.seed, -(2**63), 2**63 - 1)
        if self.top_logprobs is not None:
            _between("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        _between("min_tokens", self.min_tokens, 0, self.max_tokens if self.max_tokens is not None else 2**31)
        _between("logit_bias entries", len(self.logit_bias), 0, MAX_LOGIT_BIAS, param="logit_bias")
        for token_id, bias in self.logit_bias:
            _between(f"logit_bias[{token_id}]", bias, -100.0, 100.0, param="logit_bias")
        _between("stop strings", len(self.stop), 0, MAX_STOP, param="stop")
        for text in self.stop:
            _between("characters of a stop string", len(text), 1, MAX_STOP_CHARS, param="stop")

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


def _between(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, param: str | None = None
) -> None:
    if low <= value <= high and not (open_low and value == low):
        return
    low_side = f"above {low}" if open_low else f"at least {low}"
    raise BadRequest(f"{name} is {value!r}; it must be {low_side} and at most {high}", param=param or name)
