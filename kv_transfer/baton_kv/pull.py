"""Performs what PullSession decides, for one pull."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from baton_api.errors import PeerLost, TransferAborted, TransferDeadline, TransferError
from baton_api.sampling import SampledToken
from baton_api.timing import PrefillTimeline, PullTimeline
from baton_wire.pb import control_pb2 as pb

from . import session_pull as do
from . import wire_form
from .checksums import bind, block_digests, transfer_seed
from .copy_plan import runs
from .peer import Peer
from .session_pull import PullSession
from .settings import KvSettings
from .store import BlockStore

log = logging.getLogger("baton.kv")


class Pull:
    def __init__(
        self,
        transfer_id: str,
        wire_ticket: str,
        session: PullSession,
        store: BlockStore,
        peer: Peer,
        settings: KvSettings,
        clock: Callable[[], float],
    ) -> None:
        self.transfer_id, self.session = transfer_id, session
        self._wire_ticket, self._store, self._peer = wire_ticket, store, peer
        self._settings, self._clock = settings, clock
        self._loop = asyncio.get_running_loop()
        self._seed = transfer_seed(wire_ticket)
        self._done: asyncio.Future[TransferError | None] = self._loop.create_future()
        self._digests: dict[int, int | None] = {}
        self._to_verify: list[do.Verify] = []
        self._verifying: asyncio.Task[None] | None = None
        self._drain: asyncio.TimerHandle | None = None
        self.moved_bytes = 0
        self._moved_before_finish = 0
        self._finished_at_s = 0.0
        self._ended_at_s = 0.0
        self.first: tuple[SampledToken, ...] = ()
        self.prefill: PrefillTimeline

    async def run(self, budget_s: float) -> None:
        """Raises a TransferError. Terminal on return, raise and cancellation."""
        if self._peer.lost is not None:
            raise PeerLost(f"prefill worker lost: {self._peer.lost}")
        self._peer.transfers[self.transfer_id] = self
        late = TransferDeadline(f"transfer {self.transfer_id} ran out of time")
        timer = self._loop.call_later(max(0.0, budget_s), self.abort, late)
        self._peer.send(
            pb.FromDecode(
                open=pb.Open(
                    transfer_id=self.transfer_id, ticket=self._wire_ticket, held_blocks=self.session.plan.held_blocks
                )
            )
        )
        try:
            error = await asyncio.shield(self._done)
        except asyncio.CancelledError:
            self.abort(TransferAborted("the request was aborted", code="cancelled"))
            await self.ended()
            raise
        finally:
            timer.cancel()
        if error is not None:
            raise error

    async def ended(self) -> None:
        """Waits for the end, however often the caller is cancelled: the drain's grace time bounds it."""
        while not self._done.done():
            try:
                await asyncio.wait([self._done])
            except asyncio.CancelledError:
                continue

    def timeline(self, began_s: float) -> PullTimeline:
        """Of a pull that succeeded."""
        return PullTimeline(
            prefill_done_s=self._finished_at_s - began_s,
            landed_s=self._ended_at_s - began_s,
            total_bytes=self.moved_bytes,
            bytes_before_done=self._moved_before_finish,
            blocks=self.session.plan.moving_blocks,
            transport=self._peer.link.negotiated,
        )

    def abort(self, error: TransferError) -> None:
        self._feed(do.Broken(error))

    def peer_lost(self, error: PeerLost) -> None:
        self._feed(do.Broken(error, peer_gone=True))

    def heard(self, message: pb.FromPrefill) -> None:
        match message.WhichOneof("message"):
            case "offer":
                self._feed(do.Offered(message.offer.first_ordinal, tuple(message.offer.checksums)))
            case "finish":
                self._finished_at_s, self._moved_before_finish = self._clock(), self.moved_bytes
                self.first = wire_form.first_tokens(message.finish)
                self.prefill = wire_form.prefill_timeline(message.finish)
                self._feed(do.FinishHeard(message.finish.total_blocks))
            case "refused":
                self.abort(wire_form.refusal_error(message.refused))

    def _feed(self, event: do.Event) -> None:
        for action in self.session.handle(event):
            match action:
                case do.Post():
                    self._post(action.ordinals)
                case do.Verify():
                    self._verify(action)
                case do.Ack():
                    self._peer.send(pb.FromDecode(ack=pb.Ack(transfer_id=self.transfer_id)))
                case do.Abort():
                    self._peer.send(pb.FromDecode(abort=pb.Abort(transfer_id=self.transfer_id, reason=action.reason)))
                case do.Drain():
                    self._drain_soon()
                case do.DropLink():
                    self._peer.drop("a transfer of this pair broke")
                case do.Ended():
                    self._end(action.error)

    def _post(self, ordinals: tuple[int, ...]) -> None:
        for first, count in runs(ordinals):
            first_tag = self._peer.take_tags(count)
            for i in range(count):
                view = self._store.view(self.session.plan.block_ids[first + i])
                landed = self._peer.link.recv(first_tag + i, view)
                landed.add_done_callback(partial(self._received, first + i))
            self._peer.send(
                pb.FromDecode(
                    posted=pb.Posted(
                        transfer_id=self.transfer_id, first_ordinal=first, count=count, first_tag=first_tag
                    )
                )
            )

    def _received(self, ordinal: int, landed: asyncio.Future[int | None]) -> None:
        error = landed.exception()
        if error is not None:
            self._peer.drop(f"data link: {error}")
        else:
            self._digests[ordinal] = landed.result()
            self.moved_bytes += self._store.layout.block_bytes
        self._feed(do.Landed(ordinal, whole=error is None))

    def _verify(self, action: do.Verify) -> None:
        """Blocks that land in one turn of the event loop are verified together."""
        self._to_verify.append(action)
        if self._verifying is None:
            self._verifying = self._loop.create_task(self._verify_all())

    async def _verify_all(self) -> None:
        while self._to_verify:
            batch, self._to_verify = self._to_verify, []
            try:
                matches = await self._check(batch)
                self._take_over([item.ordinal for item, match in zip(batch, matches, strict=True) if match])
            except Exception as error:  # the store is the engine's: whatever it raises must still end the transfer
                log.exception("kv store failed in transfer %s", self.transfer_id)
                self.abort(TransferAborted(f"block store: {type(error).__name__}", code="store"))
                matches = [False] * len(batch)
            for item, match in zip(batch, matches, strict=True):
                self._feed(do.Verified(item.ordinal, match))
        self._verifying = None

    async def _check(self, batch: list[do.Verify]) -> list[bool]:
        found = {item.ordinal: self._digests.pop(item.ordinal) for item in batch}
        missing = [ordinal for ordinal, digest in found.items() if digest is None]
        taken = dict(zip(missing, await self._take_digests(missing), strict=True)) if missing else {}
        digests = {ordinal: taken[ordinal] if digest is None else digest for ordinal, digest in found.items()}
        return [bind(digests[item.ordinal], self._seed, item.ordinal) == item.checksum for item in batch]

    async def _take_digests(self, ordinals: list[int]) -> list[int]:
        """Off the event loop when it would take long: xxhash lets go of the interpreter's lock."""
        views = [self._store.view(self.session.plan.block_ids[ordinal]) for ordinal in ordinals]
        small = len(views) * self._store.layout.block_bytes <= self._settings.inline_bytes
        return block_digests(views) if small else await asyncio.to_thread(block_digests, views)

    def _take_over(self, ordinals: list[int]) -> None:
        if ordinals and self.session.error is None:
            self._store.after_land([self.session.plan.block_ids[ordinal] for ordinal in ordinals])

    def _drain_soon(self) -> None:
        if self._drain is None:
            why = f"receives did not end within {self._settings.drain_grace_s:g} s of the transfer"
            self._drain = self._loop.call_later(self._settings.drain_grace_s, self._peer.drop, why)

    def _end(self, error: TransferError | None) -> None:
        self._ended_at_s = self._clock()
        if self._drain is not None:
            self._drain.cancel()
        self._peer.transfers.pop(self.transfer_id, None)
        self._done.set_result(error)
