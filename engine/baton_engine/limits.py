"""What the engine accepts and when a choice is over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton_api.errors import BadRequest, ContextLengthExceeded, SettingError
from baton_api.sampling import FinishReason, SamplingParams
from baton_api.settings import setting

from .nouns import GenerateRequest


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How much one step computes and how much is in flight at once."""

    max_batched_tokens: int = setting(2048, "Tokens computed in one step, prompts and decodes together.", low=1)
    max_running: int = setting(256, "Choices decoded at once, those waiting for their KV included.", low=1)
    max_requests: int = setting(4096, "Requests held at once, waiting ones included; more are refused.", low=1)

    def __post_init__(self) -> None:
        if self.max_batched_tokens < self.max_running:
            raise SettingError(
                "engine.max_batched_tokens",
                self.max_batched_tokens,
                f"is below engine.max_running ({self.max_running}), so a step could not serve every running choice",
                f"use {self.max_running} or more",
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_model_tokens`: prompt and output of one choice; the model's limit, or the pool's if that is less."""

    max_model_tokens: int
    max_running: int
    vocab_size: int
    eos_token_ids: frozenset[int]

    def check(self, request: GenerateRequest) -> None:
        """Raises ContextLengthExceeded or BadRequest when the request could never run here."""
        prompt_tokens, asked = len(request.token_ids), request.sampling.max_tokens or 1
        if not prompt_tokens:
            raise BadRequest("the prompt has no tokens; give at least 1", param="prompt")
        if prompt_tokens + asked > self.max_model_tokens:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_model_tokens} tokens. However, you requested "
                f"{prompt_tokens + asked} tokens ({prompt_tokens} in the prompt, {asked} in the completion).",
                param="prompt" if prompt_tokens >= self.max_model_tokens else "max_tokens",
            )
        self._check_emitted(request)
        if request.sampling.n > self.max_running:
            raise BadRequest(f"n is {request.sampling.n}; this engine runs {self.max_running} at once", param="n")
        self._check_ids(request.token_ids, "prompt")
        self._check_ids([token_id for token_id, _ in request.sampling.logit_bias], "logit_bias")
        self._check_ids(request.sampling.stop_token_ids, "stop_token_ids")

    def _check_ids(self, token_ids: Sequence[int], param: str) -> None:
        low, high = min(token_ids, default=0), max(token_ids, default=0)
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise BadRequest(f"token id {wrong} is outside [0, {self.vocab_size})", param=param)

    def _check_emitted(self, request: GenerateRequest) -> None:
        emitted = [tokens for tokens in request.emitted if tokens is not None]
        if request.emitted and (len(request.emitted) != request.sampling.n or not emitted):
            raise BadRequest("emitted does not say of each choice how far it is, or all are over", param="emitted")
        longest = max(map(len, emitted), default=0)
        if len(request.token_ids) + longest >= self.max_model_tokens:
            raise ContextLengthExceeded(
                f"prompt and emitted tokens fill the context of {self.max_model_tokens}",
                param="emitted",
            )
        if request.sampling.max_tokens is not None and longest >= request.sampling.max_tokens:
            raise BadRequest(f"an open choice has {longest} tokens already, its max_tokens", param="emitted")
        if any(not 0 <= token_id < self.vocab_size for tokens in emitted for token_id in tokens):
            raise BadRequest(f"an emitted token id is outside [0, {self.vocab_size})", param="emitted")

    def finish_reason(self, prompt_tokens: int, output: Sequence[int], sampling: SamplingParams) -> FinishReason | None:
        """Is a choice over with the last token of `output`? A stop token wins over the length that it reaches."""
        last = output[-1]
        ends = last in sampling.stop_token_ids or (last in self.eos_token_ids and not sampling.ignore_eos)
        if ends and len(output) >= sampling.min_tokens:
            return "stop"
        if sampling.max_tokens is not None and len(output) >= sampling.max_tokens:
            return "length"
        return "length" if prompt_tokens + len(output) >= self.max_model_tokens else None
