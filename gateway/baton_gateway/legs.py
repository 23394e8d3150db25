"""What the two legs of one request are sent: bodies, hand-off, ticket. Pure.

Both get the token ids in place of the text, the same seed and the same sampling fields, so that whichever of them draws
a token draws the same one (invariant I2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from baton_api.blocks import BlockKey
from baton_api.handoff import HandOff
from baton_api.routing import Route
from baton_api.tickets import Ticket, sign_ticket

_ALREADY_APPLIED = frozenset({"messages", "prompt", "chat_template_kwargs", "cache_salt"})
_NOT_FOR_PREFILL = frozenset({"stream", "stream_options", "max_completion_tokens", "stop"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt. `ids_json` is its ids encoded once for both legs; `keys` and `digests` are by block size in
    tokens, for every block size in the fleet."""

    num_tokens: int
    ids_json: bytes
    keys: Mapping[int, tuple[BlockKey, ...]]
    digests: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Handing:
    """What is the same in both legs' hand-off."""

    transfer_id: str
    salt: bytes
    deadline_s: float
    on_prefill_failure: Any
    ticket: str | None

    def for_leg(self, leg: Any) -> dict[str, Any]:
        hand_off = HandOff(leg, self.transfer_id, self.salt.hex(), self.deadline_s, self.ticket)
        return replace(hand_off, on_prefill_failure=self.on_prefill_failure).to_params()


def ticket_for(route: Route, prompt: Prompt, transfer_id: str, expires_at_s: float, key: bytes) -> str | None:
    """The signed permission to pull, None when decode prefills for itself. `expires_at_s` is Unix time."""
    if route.prefill is None:
        return None
    prefill, decode = route.prefill.info, route.decode.info
    ticket = Ticket(
        transfer_id=transfer_id,
        prefill_id=prefill.worker_id,
        prefill_epoch=prefill.epoch,
        prefill_address=prefill.control_address,
        decode_id=decode.worker_id,
        fingerprint=prefill.fingerprint,
        prompt_digest=prompt.digests[prefill.block_tokens].hex(),
        num_tokens=prompt.num_tokens,
        expires_at_s=expires_at_s,
    )
    return sign_ticket(ticket, key)


def decode_body(fields: Mapping[str, Any], prompt: Prompt, handing: Handing) -> bytes:
    """`fields` as the client sent them, token ids for text, usage always asked for."""
    body = _shared(fields, prompt, handing, "decode")
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(body)


def prefill_body(fields: Mapping[str, Any], prompt: Prompt, handing: Handing) -> bytes:
    """The same request for one token, whole."""
    body = {
        name: value
        for name, value in _shared(fields, prompt, handing, "prefill").items()
        if name not in _NOT_FOR_PREFILL
    }
    body["max_tokens"] = 1
    if "min_tokens" in body:
        body["min_tokens"] = min(1, body["min_tokens"])
    return msgspec.json.encode(body)


def _shared(fields: Mapping[str, Any], prompt: Prompt, handing: Handing, leg: str) -> dict[str, Any]:
    return {
        **{name: value for name, value in fields.items() if name not in _ALREADY_APPLIED},
        "prompt_token_ids": msgspec.Raw(prompt.ids_json),
        "kv_transfer_params": handing.for_leg(leg),
    }
