"""The decode side: pulls one transfer's blocks into chosen blocks of the store.

pull() is the whole story of a transfer here: connect once per prefill incarnation, open, post receives as blocks are
offered, verify each as it lands, acknowledge. However it ends, the transfer is terminal by then (invariant I5).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from baton_api.errors import LayoutMismatch, PeerLost, TransferAborted, TransferDeadline, TransferError
from baton_api.sampling import SampledToken
from baton_api.tickets import Ticket
from baton_api.timing import PrefillTimeline, PullTimeline
from baton_wire.pb import control_pb2 as pb

from .copy_plan import plan_copy
from .observer import KvObserver, Unobserved
from .peer import Peer, insecure_channel
from .pull import Pull
from .session_pull import PullSession
from .settings import DecodeIdentity, KvSettings
from .store import BlockStore
from .transport import Transport


@dataclass(frozen=True, slots=True)
class Pulled:
    """Every block is verified. `first` are the n choices' first tokens, drawn by prefill."""

    first: tuple[SampledToken, ...]
    prefill: PrefillTimeline
    timeline: PullTimeline


class KvClient:
    """Pulls KV for one decode process. One event loop."""

    def __init__(
        self,
        store: BlockStore,
        identity: DecodeIdentity,
        transport: Transport,
        settings: KvSettings,
        *,
        observer: KvObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        channel: Callable[[str], grpc.aio.Channel] = insecure_channel,
    ) -> None:
        self._store, self._identity, self._transport, self._settings = store, identity, transport, settings
        self._observer: KvObserver = observer or Unobserved()
        self._clock, self._channel = clock, channel
        self._fingerprint = store.layout.fingerprint
        self._peers: dict[tuple[str, str], asyncio.Task[Peer]] = {}
        self._closing_peers: set[asyncio.Task[None]] = set()
        self._pulls: dict[str, Pull | None] = {}
        self._saying: set[asyncio.Task[None]] = set()
        self._closed = False

    async def pull(
        self, wire_ticket: str, ticket: Ticket, block_ids: Sequence[int], held_blocks: int, deadline_s: float
    ) -> Pulled:
        """Moves the ordinals from `held_blocks` on into `block_ids`, which `ticket` (verified, the content of
        `wire_ticket`) permits, within `deadline_s` seconds from now and within settings.transfer_timeout_s.

        Raises a TransferError; ValueError when the destination does not fit the ticket's prompt. On return, on a raise
        and on cancellation no byte can land in `block_ids` any more.
        """
        layout, began_s = self._store.layout, self._clock()
        plan = plan_copy(ticket.num_tokens, layout.block_tokens, block_ids, held_blocks, self._store.num_blocks)
        self._check(ticket)
        budget_s = min(deadline_s, self._settings.transfer_timeout_s)
        self._pulls[ticket.transfer_id] = None
        moved_bytes, outcome, timeline = 0, TransferAborted.reason, None
        try:
            peer = await self._peer_or_word(wire_ticket, ticket, budget_s)
            session = PullSession(plan, self._settings.window_blocks)
            pull = Pull(ticket.transfer_id, wire_ticket, session, self._store, peer, self._settings, self._clock)
            self._pulls[ticket.transfer_id] = pull
            try:
                await pull.run(budget_s - (self._clock() - began_s))
            finally:
                moved_bytes = pull.moved_bytes
                self._observer.on_checksum_failures(session.checksum_failures)
            timeline = pull.timeline(began_s)
            outcome = "acked"
            return Pulled(pull.first, pull.prefill, timeline)
        except TransferError as error:
            outcome = error.reason
            raise
        finally:
            del self._pulls[ticket.transfer_id]
            self._observer.on_transfer_end("decode", outcome, moved_bytes, timeline)

    @contextlib.contextmanager
    def waiting(self, wire_ticket: str, ticket: Ticket) -> Iterator[None]:
        """Around the time before the pull, in which its destination is not to be had yet.

        When it gets long, prefill hears that its blocks are wanted and keeps them beyond the lease, until the request's
        deadline. When it ends with an exception, prefill hears that nobody comes.
        """
        keep = pb.FromDecode(keep=pb.Keep(transfer_id=ticket.transfer_id, ticket=wire_ticket))
        timer = asyncio.get_running_loop().call_later(self._settings.lease_s / 4, self._say, ticket, keep)
        try:
            yield
        except BaseException:
            self._withdraw(wire_ticket, ticket)
            raise
        finally:
            timer.cancel()

    async def _peer_or_word(self, wire_ticket: str, ticket: Ticket, budget_s: float) -> Peer:
        """A pull that ends before there is a peer tells prefill once there is one: its lease need not run out."""
        try:
            return await self._peer(ticket, budget_s)
        except (TransferDeadline, asyncio.CancelledError):
            self._withdraw(wire_ticket, ticket)
            raise

    def _withdraw(self, wire_ticket: str, ticket: Ticket) -> None:
        """Opened and aborted at once, so that a prefill leg which comes later ends at once too."""
        transfer_id = ticket.transfer_id
        opened = pb.FromDecode(open=pb.Open(transfer_id=transfer_id, ticket=wire_ticket))
        aborted = pb.FromDecode(abort=pb.Abort(transfer_id=transfer_id, reason=TransferAborted.reason))
        self._say(ticket, opened, aborted)

    def _say(self, ticket: Ticket, *messages: pb.FromDecode) -> None:
        """In the background, and only as a courtesy: a prefill worker that cannot be told waits for its lease."""
        if not self._closed and len(self._saying) < self._settings.max_transfers:
            task = asyncio.get_running_loop().create_task(self._say_once_connected(ticket, messages))
            self._saying.add(task)
            task.add_done_callback(self._saying.discard)

    async def _say_once_connected(self, ticket: Ticket, messages: Sequence[pb.FromDecode]) -> None:
        with contextlib.suppress(TransferError):
            peer = await self._peer(ticket, 2 * self._settings.connect_timeout_s)
            for message in messages:
                peer.send(message)

    def _check(self, ticket: Ticket) -> None:
        if self._closed:
            raise TransferAborted("decode worker is closing", code="closing")
        if ticket.fingerprint != self._fingerprint:
            raise LayoutMismatch(f"ticket names layout {ticket.fingerprint}, this is {self._fingerprint}")
        if ticket.transfer_id in self._pulls:
            raise TransferAborted(f"transfer {ticket.transfer_id} is being pulled already", code="duplicate")
        if len(self._pulls) >= self._settings.max_transfers:
            raise TransferAborted(f"{len(self._pulls)} transfers are running already", code="too_many_transfers")

    async def _peer(self, ticket: Ticket, budget_s: float) -> Peer:
        """The connection to the ticket's prefill incarnation, made when there is none."""
        key = (ticket.prefill_address, ticket.prefill_epoch)
        task = self._peers.get(key)
        if task is None:
            if len(self._peers) >= self._settings.max_peers and not self._drop_idle():
                raise TransferAborted(f"{len(self._peers)} peers are connected already", code="too_many_peers")
            task = self._peers[key] = asyncio.create_task(self._connect(ticket, key))
            task.add_done_callback(lambda done: self._connected(key, done))
        try:
            async with asyncio.timeout(budget_s):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise TransferDeadline("the transfer's time was over before the peer was connected") from error
        except asyncio.CancelledError:
            if task.cancelled():
                raise TransferAborted("decode worker is closing", code="closing") from None
            raise

    async def _connect(self, ticket: Ticket, key: tuple[str, str]) -> Peer:
        timeout_s = self._settings.connect_timeout_s
        peer = Peer(self._channel(ticket.prefill_address), self._settings, lambda peer: self._lost(key, peer))
        try:
            async with asyncio.timeout(timeout_s):
                await peer.connect(self._identity, self._fingerprint, ticket, self._transport)
        except TimeoutError as error:
            raise PeerLost(f"{ticket.prefill_address} did not answer within {timeout_s:g} s") from error
        self._observer.on_link(self._transport.name, peer.link.negotiated)
        return peer

    def _connected(self, key: tuple[str, str], task: asyncio.Task[Peer]) -> None:
        """A failed connect is not remembered: the next pull tries anew."""
        if (task.cancelled() or task.exception() is not None) and self._peers.get(key) is task:
            del self._peers[key]

    def _lost(self, key: tuple[str, str], peer: Peer) -> None:
        self._peers.pop(key, None)
        if peer.closed is not None:
            self._closing_peers.add(peer.closed)
            peer.closed.add_done_callback(self._closing_peers.discard)

    def _drop_idle(self) -> bool:
        for task in list(self._peers.values()):
            if task.done() and not task.result().transfers:
                task.result().drop("idle, and another peer needs the room")
                return True
        return False

    async def close(self) -> None:
        """Ends every pull with TransferAborted and waits until all are terminal and every link is gone."""
        self._closed = True
        for saying in list(self._saying):
            saying.cancel()
        await asyncio.gather(*self._saying, return_exceptions=True)
        running = [pull for pull in self._pulls.values() if pull is not None]
        for pull in running:
            pull.abort(TransferAborted("decode worker is closing", code="closing"))
        await asyncio.gather(*(pull.ended() for pull in running))
        for task in list(self._peers.values()):
            if task.done():
                task.result().drop("decode worker is closing")
            else:
                task.cancel()
                await asyncio.wait([task])
        await asyncio.gather(*self._closing_peers, return_exceptions=True)
        await self._transport.close()

    def check_invariants(self) -> None:
        """Raises AssertionError when a pull's state is inconsistent or a peer outlived its transfers."""
        for pull in self._pulls.values():
            if pull is not None:
                pull.session.check_invariants()
        for task in self._peers.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                assert set(task.result().transfers) <= set(self._pulls), "a peer keeps a transfer that is over"
