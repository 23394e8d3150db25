"""The `rendezvous` hand-off dialect: what the gateway tells both legs in `kv_transfer_params`. Pure.

Both legs are sent at once. Each carries the same transfer id and ticket; prefill opens the lease, decode pulls.
A client can never set these: the gateway strips `kv_transfer_params` and every `x-baton-*` header at ingress, and a
worker accepts them only with the worker key (derive_key(secret, "worker-http")) as bearer token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .errors import BadRequest

DIALECT = "rendezvous/1"

OnPrefillFailure = Literal["recompute", "fail"]


@dataclass(frozen=True, slots=True)
class HandOff:
    """`salt` is the tenant's block-key salt (hex, 64 digits). `ticket` None: no transfer, the decode worker prefills
    for itself (aggregated). `deadline_s` is what is left of the request's time when the leg is sent."""

    leg: Literal["prefill", "decode"]
    transfer_id: str
    salt: str
    deadline_s: float
    ticket: str | None = None
    on_prefill_failure: OnPrefillFailure = "recompute"

    def to_params(self) -> dict[str, Any]:
        return {
            "dialect": DIALECT,
            "leg": self.leg,
            "transfer_id": self.transfer_id,
            "salt": self.salt,
            "deadline_s": self.deadline_s,
            "ticket": self.ticket,
            "on_prefill_failure": self.on_prefill_failure,
        }

    @classmethod
    def from_params(cls, params: Any) -> HandOff:
        """Raises BadRequest naming `kv_transfer_params` when it is not of this dialect."""
        try:
            if params["dialect"] != DIALECT:
                raise BadRequest(
                    f"kv_transfer_params.dialect is {params['dialect']!r}; this worker speaks {DIALECT}",
                    param="kv_transfer_params",
                )
            hand_off = cls(**{key: value for key, value in params.items() if key != "dialect"})
            if hand_off.leg not in ("prefill", "decode") or len(bytes.fromhex(hand_off.salt)) != 32:
                raise ValueError("leg or salt")
            return hand_off
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadRequest(f"kv_transfer_params is malformed: {error}", param="kv_transfer_params") from error
