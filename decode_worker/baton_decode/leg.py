"""The decode leg: reserve, pull, verify, go on from the first token; prefill here when no KV will come.

Blocks are reserved before any byte moves, and the pull is terminal before the engine is told anything about them
(invariants I4, I5).
"""

from __future__ import annotations

import logging
import time

import grpc.aio

from baton_api.errors import TransferError, WorkerProtocolError
from baton_api.handoff import HandOff
from baton_api.tickets import verify_ticket
from baton_api.timing import Span
from baton_engine.nouns import Finished, Leg, Reserved
from baton_kv.client import KvClient, Pulled
from baton_kv.settings import DecodeIdentity
from baton_wire.http_server import Exchange
from baton_worker.answer import Progress, answer, generate
from baton_worker.event_stream import EventStream
from baton_worker.job import Job
from baton_worker.parts import Parts

log = logging.getLogger("baton.decode")


class DecodeLeg:
    """Serves legs that carry a ticket by pulling, any other request by prefilling for itself (aggregated)."""

    leases = 0  # a decode worker promises nothing to other workers

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        identity = DecodeIdentity(parts.settings.worker_id, parts.epoch)
        self._client = KvClient(
            parts.engine.store, identity, parts.transport, parts.kv_settings, observer=parts.telemetry
        )

    async def start(self) -> None:
        pass

    def add_services(self, server: grpc.aio.Server) -> None:
        pass

    async def serve(self, job: Job, exchange: Exchange) -> None:
        if job.hand_off is None or job.hand_off.ticket is None:
            await generate(self._parts, job, exchange)
            return
        stream = EventStream.of(self._parts.engine, job.key, job.sampling.n)
        self._parts.engine.submit(job.for_engine(Leg.DECODE), stream.put)
        try:
            progress = await self._obtain(job, job.hand_off, job.hand_off.ticket, stream)
            await answer(self._parts, job, exchange, stream, progress)
        finally:
            self._parts.engine.abort(job.key)

    async def _obtain(self, job: Job, hand_off: HandOff, wire_ticket: str, stream: EventStream) -> Progress:
        """KV for the whole prompt, pulled, or on its way by a local prefill if the policy allows."""
        reserved = await self._reserved(wire_ticket, stream)
        reserve = Span("reserve", time.monotonic() - job.received_s, f"{reserved.held_blocks} blocks held")
        try:
            pulled = await self._pull(job, wire_ticket, reserved)
        except TransferError as error:
            if hand_off.on_prefill_failure == "fail":
                raise
            log.warning("transfer %s failed (%s): prefilling here", hand_off.transfer_id, error.message)
            self._parts.telemetry.recomputed(error.reason)
            self._parts.engine.recompute(job.key)
            now_s = time.monotonic()
            lost = Span("lost_transfer", now_s - job.received_s - reserve.duration_s, error.reason)
            return Progress((reserve, lost), now_s, "prefill")
        self._parts.engine.land(job.key, pulled.first)
        return Progress((reserve, *_spans(pulled)), time.monotonic(), "first_decode", pulled.prefill.cached_tokens)

    async def _reserved(self, wire_ticket: str, stream: EventStream) -> Reserved:
        """Prefill's blocks are kept while this request waits for room here."""
        try:
            ticket = verify_ticket(wire_ticket, self._parts.ticket_key, time.time())
        except TransferError:
            return await _reserved(stream)  # the pull will say why
        with self._client.waiting(wire_ticket, ticket):
            return await _reserved(stream)

    async def _pull(self, job: Job, wire_ticket: str, reserved: Reserved) -> Pulled:
        ticket = verify_ticket(wire_ticket, self._parts.ticket_key, time.time())
        deadline_s = min(self._parts.settings.kv.transfer_timeout_s, job.deadline_s)
        return await self._client.pull(wire_ticket, ticket, reserved.block_ids, reserved.held_blocks, deadline_s)

    async def quiesce(self, budget_s: float) -> int:
        """Nothing is promised to others beyond the requests being served."""
        return 0

    def check_invariants(self) -> None:
        self._client.check_invariants()

    async def close(self) -> None:
        await self._client.close()


async def _reserved(stream: EventStream) -> Reserved:
    event = await stream.next()
    if isinstance(event, Reserved):
        return event
    assert isinstance(event, Finished), event
    raise WorkerProtocolError("the request ended before its blocks were reserved", code="aborted")


def _spans(pulled: Pulled) -> tuple[Span, Span]:
    """Waiting for prefill, and what of the transfer it did not hide: both on this worker's clock."""
    prefill, timeline = pulled.prefill, pulled.timeline
    told = f"queue {prefill.queue_s * 1e3:.1f} ms compute {prefill.compute_s * 1e3:.1f} ms"
    counts = f"{prefill.chunks} chunks {prefill.cached_tokens} cached"
    moved = f"{timeline.total_bytes} B {timeline.transport} {timeline.overlap:.0%} hidden"
    waited = min(timeline.prefill_done_s, timeline.landed_s)
    return Span("prefill", waited, f"{told} {counts}"), Span("transfer", timeline.landed_s - waited, moved)
