"""One prefill process as a decode process sees it: a gRPC stream and a data link that live and die together."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Protocol

import grpc

from baton_api.errors import EpochMismatch, LayoutMismatch, PeerLost
from baton_api.tickets import Ticket
from baton_wire.pb import control_pb2 as pb
from baton_wire.pb import control_pb2_grpc as rpc

from . import wire_form
from .pulse import Pulse
from .pump import Pump
from .settings import DecodeIdentity, KvSettings
from .transport import MAX_TAG, Link, Transport

log = logging.getLogger("baton.kv")

# One subchannel per channel: a dead peer's reconnect back-off must not delay the next incarnation.
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 4 << 20),
)


class Transfer(Protocol):
    """A pull, as its peer sees it."""

    def heard(self, message: pb.FromPrefill) -> None: ...

    def peer_lost(self, error: PeerLost) -> None: ...


def insecure_channel(address: str) -> grpc.aio.Channel:
    """A plaintext channel. Deployments with mTLS hand KvClient their own maker of channels."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


class Peer:
    """Use connect(). After `lost` is set, every transfer has been told and nothing works any more."""

    def __init__(self, channel: grpc.aio.Channel, settings: KvSettings, on_lost: Callable[[Peer], None]) -> None:
        self._channel, self._settings, self._on_lost = channel, settings, on_lost
        self._call = rpc.KvTransferStub(channel).Connect()
        self._tags = itertools.count()
        self._pulse = Pulse(settings.heartbeat_misses)
        self._tasks: list[asyncio.Task[None]] = []
        self.transfers: dict[str, Transfer] = {}
        self.link: Link
        self.lost: str | None = None
        self.closed: asyncio.Task[None] | None = None

    async def connect(self, identity: DecodeIdentity, fingerprint: str, ticket: Ticket, transport: Transport) -> None:
        """Hello, Welcome, data link. The peer is verified before anything else happens (invariant I4).

        Raises a TransferError; the caller bounds the time. After a raise the peer is closed.
        """
        try:
            welcome = await self._welcome(identity, fingerprint, transport)
            _verify(welcome, ticket, fingerprint)
            self.link = await transport.connect(
                welcome.data_address, welcome.link_token, self._settings.connect_timeout_s
            )
        except BaseException:
            self._call.cancel()
            await self._channel.close()
            raise
        self.link.on_lost(lambda why: self.drop(f"data link: {why}"))
        self._pump = Pump(self._call.write, self.drop)
        self._tasks = [self._pump.task, *map(asyncio.create_task, (self._read(), self._beat()))]

    async def _welcome(self, identity: DecodeIdentity, fingerprint: str, transport: Transport) -> pb.Welcome:
        hello = pb.Hello(
            decode_id=identity.worker_id,
            decode_epoch=identity.epoch,
            fingerprint=fingerprint,
            transports=[transport.name],
        )
        try:
            await self._call.write(pb.FromDecode(hello=hello))
            first = await self._call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise PeerLost(f"prefill worker does not answer: {_reason(error)}") from error
        if isinstance(first, pb.FromPrefill) and first.HasField("refused"):
            raise wire_form.refusal_error(first.refused)
        if not isinstance(first, pb.FromPrefill) or not first.HasField("welcome"):
            raise PeerLost("prefill worker did not answer with Welcome")
        return first.welcome

    def send(self, message: pb.FromDecode) -> None:
        if self.lost is None:
            self._pump.put(message)

    def take_tags(self, count: int) -> int:
        """The first of `count` consecutive fresh tags; a link that used them all up is dropped, the next is new."""
        first = next(self._tags)
        if first + count > MAX_TAG:
            self.drop("the link's tags are used up")
        self._tags = itertools.count(first + count)
        return first

    def drop(self, why: str) -> None:
        """Ends every transfer of this pair at once, and then the stream and the link."""
        if self.lost is not None:
            return
        self.lost = why
        log.warning("kv peer lost: %s", why)
        self.closed = asyncio.get_running_loop().create_task(self._close())
        for transfer in list(self.transfers.values()):
            transfer.peer_lost(PeerLost(f"prefill worker lost: {why}"))
        self._on_lost(self)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.link.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def _read(self) -> None:
        why = "stream ended"
        try:
            while isinstance(message := await self._call.read(), pb.FromPrefill):
                self._pulse.heard()
                self._dispatch(message)
        except grpc.RpcError as error:
            why = _reason(error)
        self.drop(why)

    def _dispatch(self, message: pb.FromPrefill) -> None:
        kind = message.WhichOneof("message")
        if kind in ("offer", "finish", "refused"):
            transfer = self.transfers.get(getattr(message, kind).transfer_id)
            if transfer is not None:
                transfer.heard(message)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            if not self._pulse.beat():
                self.drop(f"silent for {self._settings.heartbeat_misses} heartbeats")
            self.send(pb.FromDecode(heartbeat=pb.Heartbeat()))


def _verify(welcome: pb.Welcome, ticket: Ticket, fingerprint: str) -> None:
    if (welcome.prefill_id, welcome.prefill_epoch) != (ticket.prefill_id, ticket.prefill_epoch):
        raise EpochMismatch(
            f"ticket names {ticket.prefill_id} epoch {ticket.prefill_epoch}; "
            f"{welcome.prefill_id} epoch {welcome.prefill_epoch} answered"
        )
    if welcome.fingerprint != fingerprint:
        raise LayoutMismatch(f"prefill layout is {welcome.fingerprint}, this is {fingerprint}")


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return type(error).__name__
