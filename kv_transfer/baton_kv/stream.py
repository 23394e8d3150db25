"""One decode process as a prefill process sees it: a gRPC stream and a data link that live and die together."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, TypeAlias

import grpc

from baton_api.errors import LayoutMismatch, NoCapacity, TransferError
from baton_wire.pb import control_pb2 as pb
from baton_wire.pb import control_pb2_grpc as rpc

from . import session_send as do
from . import wire_form
from .pulse import Pulse
from .pump import Pump
from .transport import TOKEN_BYTES, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .send import Sending
    from .server import KvServer

log = logging.getLogger("baton.kv")
Context: TypeAlias = "grpc.aio.ServicerContext[pb.FromDecode, pb.FromPrefill]"


class Servicer(rpc.KvTransferServicer):
    """The grpc.aio servicer of KvTransfer."""

    def __init__(self, server: KvServer) -> None:
        self._server = server

    async def Connect(self, request_iterator: AsyncIterator[pb.FromDecode], context: Context) -> None:
        await Stream(self._server, context).run()


class Stream:
    def __init__(self, server: KvServer, context: Context) -> None:
        self._server, self._context = server, context
        self._settings = server.settings
        self._pulse = Pulse(self._settings.heartbeat_misses)
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._linked: asyncio.Future[Link] | None = None
        self.sendings: dict[str, Sending] = {}
        self.keeps: dict[str, float] = {}
        self.decode_id = ""
        self.link: Link | None = None
        self.heard_at_s = server.clock()

    async def run(self) -> None:
        """From Hello until either side is gone."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                accepted = await self._greet()
        except TimeoutError:
            return
        if not accepted:
            return
        self._server.streams.add(self)
        self._pump = Pump(self._context.write, self.drop)
        self._tasks = [self._pump.task, *map(asyncio.create_task, (self._read(), self._beat(), self._accept()))]
        try:
            await self._lost.wait()
        finally:
            self.drop("stream ended")

    async def _greet(self) -> bool:
        first = await self._context.read()
        if not isinstance(first, pb.FromDecode) or not first.HasField("hello"):
            return False
        error = self._objection(first.hello)
        if error is not None:
            await self._context.write(wire_form.refused("", error))
            return False
        self.decode_id = first.hello.decode_id
        token = secrets.token_bytes(TOKEN_BYTES)
        expectation = await self._server.transport.expect(token)
        self._linked = expectation.link
        welcome = pb.Welcome(
            prefill_id=self._server.identity.worker_id,
            prefill_epoch=self._server.identity.epoch,
            fingerprint=self._server.store.layout.fingerprint,
            transport=self._server.transport.name,
            data_address=expectation.address,
            link_token=token,
        )
        await self._context.write(pb.FromPrefill(welcome=welcome))
        return True

    def _objection(self, hello: pb.Hello) -> TransferError | NoCapacity | None:
        fingerprint, transport = self._server.store.layout.fingerprint, self._server.transport.name
        if hello.fingerprint != fingerprint:
            return LayoutMismatch(f"decode layout is {hello.fingerprint}, prefill layout is {fingerprint}")
        if transport not in hello.transports:
            return TransferError(f"decode speaks {list(hello.transports)}, prefill {transport}", code="transport")
        if len(self._server.streams) >= self._settings.max_peers:
            return NoCapacity(f"{len(self._server.streams)} decode processes are connected already")
        return None

    async def _accept(self) -> None:
        assert self._linked is not None
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                self.link = await asyncio.shield(self._linked)
        except TimeoutError:
            self.drop("decode worker did not open the data link")
            return
        self.link.on_lost(lambda why: self.drop(f"data link: {why}"))
        self._server.observer.on_link(self._server.transport.name, self.link.negotiated)

    def send(self, message: pb.FromPrefill) -> None:
        if not self._lost.is_set():
            self._pump.put(message)

    async def flush(self, timeout_s: float) -> None:
        """Waits until decode was told everything, or cannot be."""
        await self._pump.flush(timeout_s)

    def drop(self, why: str) -> None:
        """Ends every transfer of this pair at once, and then the link and the stream."""
        if self._lost.is_set():
            return
        self._lost.set()
        log.info("kv stream of decode worker %s ended: %s", self.decode_id, why)
        closing = asyncio.get_running_loop().create_task(self._close())
        self._server.closing.add(closing)
        closing.add_done_callback(self._server.closing.discard)
        for sending in list(self.sendings.values()):
            sending.feed(do.PeerGone())

    async def _close(self) -> None:
        """The stream counts as connected until the link is gone: its leases are found through it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._linked is not None and not self._linked.cancel() and not self._linked.cancelled():
            await self._linked.result().abort()
        self._server.streams.discard(self)

    async def _read(self) -> None:
        why = "stream ended"
        try:
            while isinstance(message := await self._context.read(), pb.FromDecode):
                self._pulse.heard()
                self.heard_at_s = self._server.clock()
                await self._dispatch(message)
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            why = f"stream: {type(error).__name__}"
        self.drop(why)

    async def _dispatch(self, message: pb.FromDecode) -> None:
        match message.WhichOneof("message"):
            case "open":
                self._open(message.open)
            case "keep":
                self._keep(message.keep)
            case "posted":
                await self._posted(message.posted)
            case "ack":
                self._tell(message.ack.transfer_id, do.Acked())
            case "abort":
                self._tell(message.abort.transfer_id, do.Aborted())

    def _open(self, message: pb.Open) -> None:
        try:
            self._server.join(message.transfer_id, message.ticket, message.held_blocks, self)
        except TransferError as error:
            log.warning("kv transfer %s refused: %s", message.transfer_id, error.message)
            self.send(wire_form.refused(message.transfer_id, error))

    def _keep(self, message: pb.Keep) -> None:
        try:
            self._server.keep(message.transfer_id, message.ticket, self)
        except TransferError as error:
            log.warning("kv transfer %s is not kept: %s", message.transfer_id, error.message)

    async def _posted(self, message: pb.Posted) -> None:
        """The data link may be taken a moment after decode has it."""
        if self.link is None and self._linked is not None:
            await asyncio.wait([self._linked])
            await asyncio.sleep(0)
        if self.link is not None:
            self._tell(message.transfer_id, do.Posted(message.first_ordinal, message.count, message.first_tag))

    def _tell(self, transfer_id: str, event: do.Event) -> None:
        sending = self.sendings.get(transfer_id)
        if sending is not None:
            sending.feed(event)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            if not self._pulse.beat():
                self.drop(f"silent for {self._settings.heartbeat_misses} heartbeats")
            self.send(pb.FromPrefill(heartbeat=pb.Heartbeat()))
