"""The gRPC control service of a worker: drain, and the prefix cache as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc.aio

from baton_engine.nouns import KvBlockRemoved, KvBlockStored, KvEvent
from baton_wire.pb import control_pb2 as pb
from baton_wire.pb.control_pb2_grpc import WorkerServicer

from .kv_journal import Batch, KvJournal

WATCHER_BACKLOG = 1024


class ControlService(WorkerServicer):
    """`drain(budget_s)` ends with the number of requests left."""

    def __init__(self, epoch: str, journal: KvJournal, drain: Callable[[float], Awaitable[int]]) -> None:
        self._epoch = epoch
        self._journal = journal
        self._drain = drain
        self._watchers: set[asyncio.Queue[Batch | None]] = set()

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Tells every watcher; one that is too slow is cut off and will ask again from where it stopped."""
        batch = self._journal.record(events)
        for queue in list(self._watchers):
            if queue.qsize() < WATCHER_BACKLOG:
                queue.put_nowait(batch)
            else:
                self._watchers.discard(queue)
                queue.put_nowait(None)

    async def Drain(
        self, request: pb.DrainRequest, context: grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainReply]
    ) -> pb.DrainReply:
        return pb.DrainReply(left=await self._drain(request.budget_s))

    async def WatchKvEvents(
        self,
        request: pb.WatchKvEventsRequest,
        context: grpc.aio.ServicerContext[pb.WatchKvEventsRequest, pb.KvEventBatch],
    ) -> AsyncIterator[pb.KvEventBatch]:
        after = request.after_sequence if request.HasField("after_sequence") else None
        queue: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for batch in self._journal.since(after):
                yield to_proto(self._epoch, batch)
            while (live := await queue.get()) is not None:
                yield to_proto(self._epoch, live)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "watcher too slow; resume from its last sequence")
        finally:
            self._watchers.discard(queue)

    def close(self) -> None:
        for queue in self._watchers:
            queue.put_nowait(None)


def to_proto(epoch: str, batch: Batch) -> pb.KvEventBatch:
    events = [_event(event) for event in batch.events]
    return pb.KvEventBatch(epoch=epoch, sequence=batch.sequence, snapshot=batch.snapshot, events=events)


def _event(event: KvEvent) -> pb.KvEvent:
    match event:
        case KvBlockStored(keys, parent):
            return pb.KvEvent(stored=pb.KvEvent.Stored(keys=keys, parent=parent))
        case KvBlockRemoved(keys):
            return pb.KvEvent(removed=pb.KvEvent.Removed(keys=keys))
        case _:
            return pb.KvEvent(cleared=pb.KvEvent.Cleared())
