"""Tickets: signed permission for one decode worker to pull one transfer's blocks from one prefill epoch. Pure.

Wire form: base64url(JSON) "." base64url(HMAC-SHA256 over the first part). The gateway signs, both workers verify.
The prefill worker accepts a ticket once: a second pull of the same transfer is refused as a replay.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass, fields

from .errors import TicketRefused

MAX_TICKET_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Ticket:
    """`prompt_digest` (hex) names the blocks: the KV of exactly these tokens under that tenant's salt.

    `prefill_address` is the prefill worker's gRPC control address, "host:port"; decode connects nowhere else.
    `expires_at_s` is Unix time; after it the ticket opens nothing.
    """

    transfer_id: str
    prefill_id: str
    prefill_epoch: str
    prefill_address: str
    decode_id: str
    fingerprint: str
    prompt_digest: str
    num_tokens: int
    expires_at_s: float


def sign_ticket(ticket: Ticket, key: bytes) -> str:
    """The ticket's wire form. `key` is derive_key(secret, "ticket")."""
    # Not asdict: it copies deeply, which took longer than all the rest of signing.
    values = {name: getattr(ticket, name) for name in ticket.__dataclass_fields__}
    payload = _encode(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())
    return f"{payload}.{_encode(_mac(payload, key))}"


def verify_ticket(wire: str, key: bytes, now_s: float) -> Ticket:
    """The ticket inside `wire`. Raises TicketRefused when malformed, forged or expired at `now_s` (Unix time)."""
    if len(wire) > MAX_TICKET_BYTES:
        raise TicketRefused(f"ticket of {len(wire)} bytes; at most {MAX_TICKET_BYTES}", code="ticket_malformed")
    payload, _, mac = wire.partition(".")
    try:
        expected = hmac.compare_digest(_decode(mac), _mac(payload, key))
    except (binascii.Error, ValueError) as error:
        raise TicketRefused("ticket is not base64url.base64url", code="ticket_malformed") from error
    if not expected:
        raise TicketRefused("ticket signature does not verify", code="ticket_forged")
    ticket = _parse(_decode(payload))
    if now_s >= ticket.expires_at_s:
        raise TicketRefused(f"ticket expired {now_s - ticket.expires_at_s:.1f} s ago", code="ticket_expired")
    return ticket


def _parse(payload: bytes) -> Ticket:
    try:
        return Ticket(**json.loads(payload))
    except (ValueError, TypeError) as error:
        names = ", ".join(field.name for field in fields(Ticket))
        raise TicketRefused(f"ticket does not hold exactly {names}", code="ticket_malformed") from error


def _mac(payload: str, key: bytes) -> bytes:
    return hmac.new(key, payload.encode("ascii"), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
