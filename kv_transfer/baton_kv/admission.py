"""May this decode process pull this transfer from this prefill process? Pure.

Every rule that a ticket has to meet on the prefill side, in one place (invariants I4, I6).
"""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.errors import EpochMismatch, LayoutMismatch, TicketRefused
from baton_api.tickets import Ticket, verify_ticket

from .settings import PrefillIdentity


@dataclass(frozen=True, slots=True)
class Gate:
    """What a prefill process checks tickets against."""

    identity: PrefillIdentity
    fingerprint: str
    key: bytes

    def admit(self, wire: str, transfer_id: str, decode_id: str, now_s: float) -> Ticket:
        """The ticket in `wire`, checked against this process and the peer on the stream. `now_s` is Unix time.

        Raises TicketRefused, EpochMismatch or LayoutMismatch.
        """
        ticket = verify_ticket(wire, self.key, now_s)
        if ticket.transfer_id != transfer_id:
            raise TicketRefused("ticket is for another transfer", code="ticket_wrong_transfer")
        if ticket.decode_id != decode_id:
            raise TicketRefused(
                f"ticket is for decode worker {ticket.decode_id}, not {decode_id}", code="ticket_wrong_decode"
            )
        if ticket.prefill_id != self.identity.worker_id:
            raise TicketRefused(
                f"ticket is for prefill worker {ticket.prefill_id}, this is {self.identity.worker_id}",
                code="ticket_wrong_prefill",
            )
        if ticket.prefill_epoch != self.identity.epoch:
            raise EpochMismatch(f"ticket names epoch {ticket.prefill_epoch}, this is {self.identity.epoch}")
        if ticket.fingerprint != self.fingerprint:
            raise LayoutMismatch(f"ticket names layout {ticket.fingerprint}, this is {self.fingerprint}")
        return ticket


def check_prompt(ticket: Ticket, prompt_digest: str, num_tokens: int) -> None:
    """Raises TicketRefused unless the ticket names the very prompt that prefill computes."""
    if ticket.prompt_digest != prompt_digest or ticket.num_tokens != num_tokens:
        raise TicketRefused("ticket names another prompt than the prefill leg", code="ticket_wrong_prompt")
