"""The prefill leg: compute the prompt, announce its blocks as they come, keep them until decode has them.

The KV of a leg stays pinned until its lease has ended (`on_end`), which the transfer says once and only when no
send from these blocks is in flight: that is the one place where the engine is told to let go (invariant I3).
"""

from __future__ import annotations

import asyncio
import json
import time

import grpc.aio

from baton_api.blocks import prompt_digest
from baton_api.errors import BatonError, DeadlineExceeded, TransferAborted
from baton_api.handoff import HandOff
from baton_api.timing import PrefillTimeline
from baton_engine.nouns import Computed, Finished, PrefillDone
from baton_kv.server import KvServer, SendLease
from baton_kv.settings import PrefillIdentity
from baton_wire.http_server import Exchange
from baton_wire.pb.control_pb2_grpc import add_KvTransferServicer_to_server
from baton_worker.answer import generate
from baton_worker.event_stream import EventStream
from baton_worker.job import Job
from baton_worker.parts import Parts


class PrefillLeg:
    """Serves legs that carry a ticket; any other request is answered whole, as an aggregated worker would."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        settings = parts.settings
        self._server = KvServer(
            parts.engine.store,
            PrefillIdentity(settings.worker_id, parts.epoch),
            parts.transport,
            parts.ticket_key,
            parts.kv_settings,
            observer=parts.telemetry,
        )
        self.leases = 0

    async def start(self) -> None:
        await self._server.start()

    def add_services(self, server: grpc.aio.Server) -> None:
        add_KvTransferServicer_to_server(self._server.servicer, server)

    async def serve(self, job: Job, exchange: Exchange) -> None:
        if job.hand_off is None or job.hand_off.ticket is None:
            await generate(self._parts, job, exchange)
            return
        done = await self._prefill(job, job.hand_off)
        self._parts.telemetry.started(done.queue_s, done.compute_s)
        exchange.respond(200, _answer(job, done))

    async def _prefill(self, job: Job, hand_off: HandOff) -> PrefillDone:
        """Until the first tokens are drawn and decode has been told; the lease lives on after that."""
        lease = self._open(job, hand_off)
        try:
            async with asyncio.timeout(job.deadline_s):
                return await self._compute(job, lease)
        except BatonError as error:
            lease.fail(error.reason, error.message)
            raise
        except TimeoutError as error:
            lease.fail(DeadlineExceeded.reason, "prefill ran out of time")
            raise DeadlineExceeded(f"prefill took longer than {job.deadline_s:.1f} s") from error
        except asyncio.CancelledError:
            lease.fail(TransferAborted.reason, "the request was given up")
            raise

    async def _compute(self, job: Job, lease: SendLease) -> PrefillDone:
        stream = EventStream.of(self._parts.engine, job.key)
        self._parts.engine.submit(job.for_prefill(), stream.put)
        while True:
            match await stream.next():
                case Computed(block_ids):
                    lease.computed(block_ids)
                case PrefillDone() as done:
                    timeline = PrefillTimeline(done.queue_s, done.compute_s, done.chunks, done.cached_tokens)
                    lease.finish(done.block_ids, done.first, timeline)
                    return done
                case Finished():
                    raise TransferAborted("decode gave the transfer up")
                case _:
                    pass

    def _open(self, job: Job, hand_off: HandOff) -> SendLease:
        engine = self._parts.engine

        def on_end(outcome: str) -> None:
            self.leases -= 1
            engine.abort(job.key)

        digest = prompt_digest(job.token_ids, engine.layout.block_tokens, job.salt).hex()
        lease = self._server.open(hand_off.transfer_id, digest, len(job.token_ids), job.deadline_s, on_end)
        self.leases += 1
        return lease

    async def quiesce(self, budget_s: float) -> int:
        """Waits for the leases: blocks that decode was promised are kept until pulled or given up."""
        end_s = time.monotonic() + budget_s
        while self.leases and time.monotonic() < end_s:
            await asyncio.sleep(0.02)
        return self.leases

    def check_invariants(self) -> None:
        self._server.check_invariants()

    async def close(self) -> None:
        await self._server.close()


def _answer(job: Job, done: PrefillDone) -> bytes:
    """What the gateway hears of the first leg: that it ended and how long it took; the tokens go to decode."""
    assert job.hand_off is not None
    timing = {"queue_s": done.queue_s, "compute_s": done.compute_s, "chunks": done.chunks}
    params = {"transfer_id": job.hand_off.transfer_id, "cached_tokens": done.cached_tokens, **timing}
    usage = {"prompt_tokens": len(job.token_ids), "completion_tokens": 0, "total_tokens": len(job.token_ids)}
    return json.dumps({"id": job.request_id, "kv_transfer_params": params, "usage": usage}).encode()
