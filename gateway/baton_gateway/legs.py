"""What the two legs of one request are sent: bodies, hand-off, ticket. Pure.

Both get the token ids in place of the text, the same seed and the same sampling fields, so that whichever of them draws
a token draws the same one (invariant I2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from baton_api.blocks import BlockKey, block_keys, digest_after
from baton_api.handoff import HandOff, OnPrefillFailure
from baton_api.routing import Route
from baton_api.tickets import Ticket, sign_ticket

from .text_prompt import TextPrompt

_encode = msgspec.json.Encoder().encode
Leg = Literal["prefill", "decode"]
_ALREADY_APPLIED = frozenset({"messages", "prompt", "chat_template_kwargs", "cache_salt"})
_NOT_FOR_PREFILL = frozenset({"stream", "stream_options", "max_completion_tokens", "stop"})


class Prompt:
    """A tokenised prompt of one tenant: block keys worked out once per block size, ids encoded once for both legs."""

    __slots__ = ("_digests", "_keys", "ids_json", "salt", "token_ids")
    exact = True

    def __init__(self, token_ids: Sequence[int], salt: bytes) -> None:
        self.token_ids = token_ids
        self.salt = salt
        self.ids_json = msgspec.json.encode(token_ids)
        self._keys: dict[int, tuple[BlockKey, ...]] = {}
        self._digests: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    def keys(self, block_tokens: int) -> tuple[BlockKey, ...]:
        if block_tokens not in self._keys:
            self._keys[block_tokens] = block_keys(self.token_ids, block_tokens, self.salt)
        return self._keys[block_tokens]

    def blocks_of(self, keys: int, block_tokens: int) -> int:
        """How many KV blocks the first `keys` keys stand for."""
        return keys

    def into(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """`fields` with the token ids for the text."""
        kept = {name: value for name, value in fields.items() if name not in _ALREADY_APPLIED}
        kept["prompt_token_ids"] = msgspec.Raw(self.ids_json)
        return kept

    def digest(self, block_tokens: int) -> bytes:
        if block_tokens not in self._digests:
            keys = self.keys(block_tokens)
            self._digests[block_tokens] = digest_after(keys, self.token_ids, block_tokens, self.salt)
        return self._digests[block_tokens]


AnyPrompt = Prompt | TextPrompt


class Handing(NamedTuple):
    """What is the same in both legs' hand-off; `deadline_s` is what is left of the request's time."""

    transfer_id: str
    deadline_s: float
    on_prefill_failure: OnPrefillFailure
    ticket: str | None


def ticket_for(route: Route, prompt: AnyPrompt, transfer_id: str, expires_at_s: float, key: bytes) -> str | None:
    """The signed permission to pull, None when decode prefills for itself. `expires_at_s` is Unix time."""
    if route.prefill is None:
        return None
    assert isinstance(prompt, Prompt), "text keys serve aggregated routes only"
    prefill, decode = route.prefill.info, route.decode.info
    ticket = Ticket(
        transfer_id=transfer_id,
        prefill_id=prefill.worker_id,
        prefill_epoch=prefill.epoch,
        prefill_address=prefill.control_address,
        decode_id=decode.worker_id,
        fingerprint=prefill.fingerprint,
        prompt_digest=prompt.digest(prefill.block_tokens).hex(),
        num_tokens=len(prompt),
        expires_at_s=expires_at_s,
    )
    return sign_ticket(ticket, key)


def decode_body(fields: Mapping[str, Any], prompt: AnyPrompt, handing: Handing, emitted: str | None = None) -> bytes:
    """`fields` as the client sent them, token ids for text, usage always asked for. `emitted`: what the client has of
    the stream already; None for a stream that will not be resumed."""
    body = _shared(fields, prompt, handing, "decode")
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
        if emitted is not None:
            body["emitted"] = emitted
    return _encode(body)


def prefill_body(fields: Mapping[str, Any], prompt: AnyPrompt, handing: Handing) -> bytes:
    """The same request for one token, whole."""
    body = {
        name: value
        for name, value in _shared(fields, prompt, handing, "prefill").items()
        if name not in _NOT_FOR_PREFILL
    }
    body["max_tokens"] = 1
    if "min_tokens" in body:
        body["min_tokens"] = min(1, body["min_tokens"])
    return _encode(body)


def _shared(fields: Mapping[str, Any], prompt: AnyPrompt, handing: Handing, leg: Leg) -> dict[str, Any]:
    hand_off = HandOff(
        leg,
        handing.transfer_id,
        prompt.salt.hex(),
        handing.deadline_s,
        handing.ticket,
        handing.on_prefill_failure,
    )
    body = prompt.into(fields)
    body["kv_transfer_params"] = hand_off.to_params()
    return body
