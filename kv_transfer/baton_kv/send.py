"""Performs what SendSession decides, for one transfer of a prefill process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from baton_api.sampling import SampledToken
from baton_api.tickets import Ticket
from baton_api.timing import PrefillTimeline
from baton_wire.pb import control_pb2 as pb

from . import session_send as do
from . import wire_form
from .checksums import bind, block_digests, transfer_seed
from .leases import LeaseTerm

if TYPE_CHECKING:
    from .server import KvServer
    from .stream import Stream

log = logging.getLogger("baton.kv")
_EMPTY = memoryview(b"")


class Sending:
    """One transfer: its table, its lease term and the stream of its decode worker."""

    def __init__(self, transfer_id: str, server: KvServer) -> None:
        self.transfer_id, self._server = transfer_id, server
        block_bytes = server.store.layout.block_bytes
        self.session = do.SendSession(seal_blocks=max(1, server.settings.seal_bytes // block_bytes))
        self.term: LeaseTerm
        self.on_end: Callable[[str], None]
        self.stream: Stream | None = None
        self.ticket: Ticket | None = None
        self.prompt_digest, self.num_tokens = "", 0
        self.first: tuple[SampledToken, ...] = ()
        self.prefill: PrefillTimeline
        self.sent_bytes = 0
        self._seed = 0
        self._digests: dict[int, int] = {}
        self._events: deque[do.Event] = deque()
        self._feeding = False
        self._sealing: asyncio.Task[None] | None = None
        self._drain: asyncio.TimerHandle | None = None

    def join(self, stream: Stream, ticket: Ticket, wire_ticket: str, held_blocks: int) -> None:
        """The decode worker is here, with a ticket that was accepted."""
        self.stream, self.ticket, self._seed = stream, ticket, transfer_seed(wire_ticket)
        stream.sendings[self.transfer_id] = self
        self.feed(do.Joined(held_blocks))

    def feed(self, event: do.Event) -> None:
        """Performs what follows from `event`. Events that come up meanwhile wait their turn."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                for action in self.session.handle(self._events.popleft()):
                    self._perform(action)
        finally:
            self._feeding = False

    def _perform(self, action: do.Action) -> None:
        match action:
            case do.Seal():
                self._sealing = asyncio.get_running_loop().create_task(self._seal(action))
            case do.Offer():
                self._offer(action)
            case do.SayFinish():
                self._say(wire_form.finish_message(self.transfer_id, action.total_blocks, self.first, self.prefill))
            case do.Send():
                self._send(action.blocks)
            case do.Void():
                for tag in action.tags:
                    self._link_send(tag, _EMPTY)
            case do.Refuse():
                error = wire_form.transfer_error(action.reason, action.message, action.code)
                self._say(wire_form.refused(self.transfer_id, error))
            case do.Bequeath():
                error = wire_form.transfer_error(action.reason, action.message, action.code)
                self._server.remember(self.transfer_id, error)
            case do.Drain():
                self._drain_soon()
            case do.DropLink():
                self._drop("a transfer of this pair broke")
            case do.End():
                self._end(action.outcome)
            case do.Forget():
                self._forget()

    def _say(self, message: pb.FromPrefill) -> None:
        if self.stream is not None:
            self.stream.send(message)

    async def _seal(self, action: do.Seal) -> None:
        """Digests of blocks that are final, computed off the event loop when that would take long."""
        store, settings = self._server.store, self._server.settings
        try:
            store.before_send(action.block_ids)
            views = [store.view(block_id) for block_id in action.block_ids]
            small = len(views) * store.layout.block_bytes <= settings.inline_bytes
            digests = block_digests(views) if small else await asyncio.to_thread(block_digests, views)
            self._digests.update(enumerate(digests, action.first_ordinal))
        except Exception as error:  # the store is the engine's: whatever it raises must still end the transfer
            log.exception("kv store failed in transfer %s", self.transfer_id)
            self.feed(do.Failed("failed", "prefill_failed", f"block store: {type(error).__name__}", "store"))
        finally:
            self.feed(do.Sealed())

    def _offer(self, action: do.Offer) -> None:
        ordinals = range(action.first_ordinal, action.first_ordinal + action.count)
        checksums = [bind(self._digests.pop(ordinal), self._seed, ordinal) for ordinal in ordinals]
        offer = pb.Offer(transfer_id=self.transfer_id, first_ordinal=action.first_ordinal, checksums=checksums)
        self._say(pb.FromPrefill(offer=offer))

    def _send(self, blocks: tuple[tuple[int, int], ...]) -> None:
        for tag, block_id in blocks:
            view = self._server.store.view(block_id)
            self.sent_bytes += view.nbytes
            self._link_send(tag, view, self._sent)

    def _link_send(
        self, tag: int, view: memoryview, then: Callable[[asyncio.Future[None]], None] | None = None
    ) -> None:
        assert self.stream is not None and self.stream.link is not None, "posted before the link was up"
        self.stream.link.send(tag, view).add_done_callback(then or self._note_loss)

    def _sent(self, sent: asyncio.Future[None]) -> None:
        self._note_loss(sent)
        self.feed(do.SendOver())

    def _note_loss(self, sent: asyncio.Future[None]) -> None:
        error = sent.exception()
        if error is not None:
            self._drop(f"data link: {error}")

    def _drop(self, why: str) -> None:
        if self.stream is not None:
            self.stream.drop(why)

    def _drain_soon(self) -> None:
        if self._drain is None and self.stream is not None:
            grace_s = self._server.settings.drain_grace_s
            why = f"sends did not end within {grace_s:g} s of the transfer"
            self._drain = asyncio.get_running_loop().call_later(grace_s, self.stream.drop, why)

    def _end(self, outcome: str) -> None:
        if self._drain is not None:
            self._drain.cancel()
        self._server.lease_ended(self, outcome)

    def _forget(self) -> None:
        self._server.forget(self)
        if self.stream is not None:
            self.stream.sendings.pop(self.transfer_id, None)
