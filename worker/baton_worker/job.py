"""One leg as the worker understands it: what was asked, the prompt's tokens, the hand-off. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from baton_api.emitted import Emitted
from baton_api.handoff import HandOff
from baton_api.openai import ChatRequest, CompletionRequest
from baton_api.sampling import SamplingParams
from baton_engine.nouns import GenerateRequest, Leg


@dataclass(frozen=True, slots=True)
class Job:
    """`request_id` is the client's (it names the answer); `key` is unique in this process and names the engine's
    request. `received_s` is on the process's monotonic clock. `emitted`: what the client has of this answer
    already, from another worker; None when nobody asked for a stream that can be resumed."""

    key: str
    request_id: str
    request: ChatRequest | CompletionRequest
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    salt: bytes
    deadline_s: float
    received_s: float
    hand_off: HandOff | None = None
    emitted: Emitted | None = None

    @property
    def chat(self) -> bool:
        return isinstance(self.request, ChatRequest)

    @property
    def leg(self) -> str:
        """ "prefill" or "decode" of a transfer, else "aggregated"."""
        return self.hand_off.leg if self.hand_off is not None and self.hand_off.ticket is not None else "aggregated"

    def for_engine(self, leg: Leg) -> GenerateRequest:
        emitted = self.emitted.for_engine() if self.emitted is not None else ()
        return GenerateRequest(self.key, self.token_ids, self.sampling, self.salt, leg, emitted)

    def for_prefill(self) -> GenerateRequest:
        """The first leg draws one token a choice, whatever the client's limits; the decode side applies those."""
        sampling = replace(self.sampling, max_tokens=1, min_tokens=min(1, self.sampling.min_tokens), stop=())
        return GenerateRequest(self.key, self.token_ids, sampling, self.salt, Leg.PREFILL)
