"""The prefill side: leases on finished blocks, and the decode processes that pull them.

A transfer's two halves, open() by the prefill leg and Open by the decode worker, may come in either order; whichever is
first waits until its deadline. `on_end` of a lease is called exactly once, when no send reads its blocks any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from baton_api.blocks import blocks_for
from baton_api.errors import BadRequest, NoCapacity, TicketRefused, TransferError
from baton_api.sampling import SampledToken
from baton_api.timing import PrefillTimeline

from . import session_send as do
from .admission import Gate, check_prompt
from .leases import LeaseTerm, Obituaries, TicketBook
from .observer import KvObserver, Unobserved
from .send import Sending
from .settings import KvSettings, PrefillIdentity
from .store import BlockStore
from .stream import Servicer, Stream
from .transport import Transport

_SWEEP_S = 0.1


class SendLease:
    """The prefill leg's hold on one transfer. Calls after the lease ended are ignored."""

    def __init__(self, sending: Sending, server: KvServer) -> None:
        self._sending, self._server = sending, server

    def computed(self, block_ids: Sequence[int]) -> None:
        """The whole blocks that are final by now, from ordinal 0 on."""
        self._sending.feed(do.Computed(tuple(block_ids)))

    def finish(self, block_ids: Sequence[int], first: Sequence[SampledToken], timeline: PrefillTimeline) -> None:
        """All blocks, partial last included, and the first tokens. From now on the lease runs."""
        self._server.finished(self._sending, tuple(block_ids), tuple(first), timeline)

    def fail(self, reason: str, message: str) -> None:
        """Prefill failed or was aborted: decode hears PrefillFailed with `reason` as its code."""
        self._sending.feed(do.Failed("failed", "prefill_failed", message, reason))


class KvServer:
    """Serves KV of one prefill process. Add `servicer` to a grpc.aio server. One event loop."""

    def __init__(
        self,
        store: BlockStore,
        identity: PrefillIdentity,
        transport: Transport,
        ticket_key: bytes,
        settings: KvSettings,
        *,
        observer: KvObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.identity, self.transport, self.settings = store, identity, transport, settings
        self.observer: KvObserver = observer or Unobserved()
        self.clock, self.wall_clock = clock, wall_clock
        self.streams: set[Stream] = set()
        self.closing: set[asyncio.Task[None]] = set()
        self.servicer = Servicer(self)
        self._gate = Gate(identity, store.layout.fingerprint, ticket_key)
        self._book = TicketBook(settings.max_remembered_tickets)
        self._obituaries = Obituaries(settings.max_transfers)
        self._sendings: dict[str, Sending] = {}
        self._leases = 0
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Listens for data links. Raises OSError when the port cannot be bound."""
        await self.transport.listen()
        self._sweeper = asyncio.create_task(self._sweep())

    def open(
        self,
        transfer_id: str,
        prompt_digest: str,
        num_tokens: int,
        deadline_s: float,
        on_end: Callable[[str], None],
    ) -> SendLease:
        """A lease for the prompt with `prompt_digest` (hex), for at most `deadline_s` seconds from now.

        `on_end(outcome)` is called once, on the event loop: "acked", "expired", "aborted", "peer_lost", "failed" or
        "closed". Raises BadRequest for a transfer that is open already, NoCapacity when there are too many or the
        server is closing.
        """
        sending = self._sendings.get(transfer_id)
        if sending is not None and sending.session.leased:
            raise BadRequest(f"transfer {transfer_id} is open already", param="kv_transfer_params")
        if sending is not None and not self._same_prompt(sending, prompt_digest, num_tokens):
            sending = None
        if sending is None:
            self._check_room(len(self._sendings))
            sending = self._sendings[transfer_id] = Sending(transfer_id, self)
        sending.prompt_digest, sending.num_tokens = prompt_digest, num_tokens
        sending.term = LeaseTerm(self.clock() + deadline_s, self.settings.lease_s)
        sending.on_end = on_end
        self._count_leases(+1)
        sending.feed(do.Opened(blocks_for(num_tokens, self.store.layout.block_tokens)))
        if self._book.was_used(transfer_id) and not sending.session.joined:
            sending.feed(do.Aborted())  # its decode worker came and went before prefill began
        return SendLease(sending, self)

    def _same_prompt(self, sending: Sending, prompt_digest: str, num_tokens: int) -> bool:
        try:
            if sending.ticket is not None:
                check_prompt(sending.ticket, prompt_digest, num_tokens)
        except TicketRefused as error:
            del self._sendings[sending.transfer_id]
            sending.feed(do.Failed("aborted", error.reason, error.message, error.code or ""))
            return False
        return True

    def _check_room(self, transfers: int) -> None:
        if self._closed:
            raise NoCapacity("prefill worker is closing", retry_after_s=1.0)
        if transfers >= self.settings.max_transfers:
            raise NoCapacity(f"{transfers} KV transfers are open already", retry_after_s=1.0)

    def join(self, transfer_id: str, wire_ticket: str, held_blocks: int, stream: Stream) -> Sending:
        """Decode's Open. Raises a TransferError that refuses it."""
        now_s = self.wall_clock()
        ticket = self._gate.admit(wire_ticket, transfer_id, stream.decode_id, now_s)
        stream.keeps.pop(transfer_id, None)
        self._book.use(transfer_id, ticket.expires_at_s, now_s)
        ended = self._obituaries.take(transfer_id)
        if ended is not None:
            raise ended
        sending = self._sendings.get(transfer_id)
        if sending is None:
            try:
                self._check_room(max(len(self._sendings), len(stream.sendings)))
            except NoCapacity as error:
                raise TransferError(error.message, code=error.reason) from error
            sending = self._sendings[transfer_id] = Sending(transfer_id, self)
            patience_s = min(ticket.expires_at_s - now_s, self.settings.transfer_timeout_s)
            sending.term = LeaseTerm(self.clock() + patience_s, self.settings.lease_s)
        else:
            check_prompt(ticket, sending.prompt_digest, sending.num_tokens)
        sending.join(stream, ticket, wire_ticket, held_blocks)
        return sending

    def keep(self, transfer_id: str, wire_ticket: str, stream: Stream) -> None:
        """Decode's Keep: its Open will come. Raises a TransferError for a ticket that does not permit that."""
        if len(stream.keeps) >= self.settings.max_transfers:
            raise TransferError(f"{len(stream.keeps)} transfers are kept already", code="too_many_transfers")
        ticket = self._gate.admit(wire_ticket, transfer_id, stream.decode_id, self.wall_clock())
        stream.keeps[transfer_id] = ticket.expires_at_s

    def finished(
        self,
        sending: Sending,
        block_ids: tuple[int, ...],
        first: tuple[SampledToken, ...],
        timeline: PrefillTimeline,
    ) -> None:
        """Called by the lease."""
        sending.term.finished(self.clock())
        sending.first, sending.prefill = first, timeline
        sending.feed(do.Computed(block_ids, complete=True))

    def lease_ended(self, sending: Sending, outcome: str) -> None:
        """Called by the transfer once nothing reads its blocks."""
        if self._sendings.get(sending.transfer_id) is sending and not sending.session.joined:
            del self._sendings[sending.transfer_id]
        self._count_leases(-1)
        self.observer.on_transfer_end("prefill", outcome, sending.sent_bytes, None)
        asyncio.get_running_loop().call_soon(sending.on_end, outcome)

    def remember(self, transfer_id: str, error: TransferError) -> None:
        """Called by a transfer that ended before its decode worker came."""
        self._obituaries.add(transfer_id, error)

    def forget(self, sending: Sending) -> None:
        """Called by the transfer when neither half needs its record."""
        if self._sendings.get(sending.transfer_id) is sending:
            del self._sendings[sending.transfer_id]

    def _count_leases(self, change: int) -> None:
        self._leases += change
        self.observer.on_leases(self._leases)

    async def _sweep(self) -> None:
        """Renews leases whose stream lives, ends those whose time is over. While this process did not run, nobody was
        silent."""
        step_s = min(_SWEEP_S, self.settings.lease_s / 4)
        while True:
            slept_at_s = self.clock()
            await asyncio.sleep(step_s)
            now_s = self.clock()
            late_s = max(0.0, now_s - slept_at_s - step_s)
            self._renew_kept()
            for sending in list(self._sendings.values()):
                if sending.stream is not None and sending.session.joined:
                    sending.term.renew(sending.stream.heard_at_s)
                sending.term.stood_still(late_s, now_s)
                if sending.term.expired(now_s):
                    sending.feed(do.Failed("expired", "transfer_deadline", "the lease ran out"))

    def _renew_kept(self) -> None:
        """A decode worker that waits for room is a sign of life for the transfers that it will pull."""
        unix_s = self.wall_clock()
        for stream in self.streams:
            for transfer_id, expires_at_s in list(stream.keeps.items()):
                sending = self._sendings.get(transfer_id)
                if sending is not None:
                    sending.term.renew(stream.heard_at_s)
                if expires_at_s <= unix_s:
                    del stream.keeps[transfer_id]

    async def close(self) -> None:
        """Ends every lease with "closed" and waits until nothing is read and every link is gone."""
        self._closed = True
        for sending in list(self._sendings.values()):
            sending.feed(do.Failed("closed", "transfer_aborted", "prefill worker is closing", "closing"))
        give_up_s = time.monotonic() + self.settings.drain_grace_s
        while self._leases and time.monotonic() < give_up_s:
            await asyncio.sleep(0.01)
        for stream in list(self.streams):
            await stream.flush(self.settings.drain_grace_s)
            stream.drop("prefill worker is closing")
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        while self.closing:
            await asyncio.gather(*self.closing, return_exceptions=True)
        await self.transport.close()
        while self._leases:
            await asyncio.sleep(0.01)

    def check_invariants(self) -> None:
        """Raises AssertionError when leases do not add up."""
        held = {id(s) for s in self._sendings.values() if s.session.leased and not s.session.lease_ended}
        for stream in self.streams:
            held |= {id(s) for s in stream.sendings.values() if s.session.leased and not s.session.lease_ended}
        assert len(held) == self._leases, f"{self._leases} leases counted, {len(held)} found"
        for sending in self._sendings.values():
            sending.session.check_invariants()
        assert len(self._sendings) <= self.settings.max_transfers
        assert len(self._book) <= self.settings.max_remembered_tickets

    @property
    def leases(self) -> int:
        """How many leases are held now."""
        return self._leases
