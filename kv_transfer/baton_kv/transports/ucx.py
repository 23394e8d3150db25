"""Transport over UCX, by ucxx: two-sided tagged messages straight from and into KV blocks.

Every link has a UCX worker of its own, with UCX's progress thread: bytes are copied off the event loop and outside the
interpreter's lock. Workers are not shared: with a shared one, after a peer was killed, later connects over shared
memory sometimes never finished (UCX 1.21; the likely cause is a slot of the shared receive queue that the dead peer had
claimed, which is not proven). With the worker goes its queue, and closing a link is final.

ucxx's low-level objects are used. Completion is polled from the event loop while something is in flight.

An idle worker's thread sleeps until UCX wakes it. Over shared memory that costs a wake-up each time the receiver has
emptied the queue, and a third of the speed or less is left: while large messages move there, the thread spins instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from baton_api.errors import PeerLost
from baton_kv.transport import TOKEN_BYTES, Expectation, Link

from . import ucx_env
from .interfaces import interface_of
from .ucx_query import lane_transports
from .ucx_worker import PAUSE_S, UcxWorker, Ucxx

log = logging.getLogger("baton.kv")

_GREETING = b"baton-kv"
_TAKEN = 1  # byte with which the listening side takes the link
_STALL_S = 0.05  # without a completion for so long a thread stops spinning, for a while: the machine is crowded
_TRUCE_S = 0.5
_LINGER_S = 0.005
_SPIN_BYTES = 256 << 10  # waking up and going to sleep costs as much as some 100 KiB
_LOOK_AHEAD = 16
_CLOSE_GRACE_S = 2.0


class UcxLink:
    def __init__(self, worker: UcxWorker, endpoint: Any, negotiated: str) -> None:
        self._worker, self._ucxx, self._endpoint, self.negotiated = worker, worker.ucxx, endpoint, negotiated
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[Any, asyncio.Future[None], Any]] = deque()
        self._spin_bytes = _SPIN_BYTES if negotiated == "ucx/shm" else sys.maxsize
        self._large = self._spinning = False
        self._truce_until_s = 0.0
        self._poller: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[str], None]] = []
        endpoint.set_close_callback(self._peer_closed)

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        return self._submit(lambda data: self._endpoint.tag_send(data, self._ucxx.Tag(tag)), view)

    def recv(self, tag: int, view: memoryview) -> asyncio.Future[Any]:
        return self._submit(lambda data: self._endpoint.tag_recv(data, self._ucxx.Tag(tag), self._ucxx.full_mask), view)

    def on_lost(self, heard: Callable[[str], None]) -> None:
        if self._lost is None:
            self._listeners.append(heard)
        else:
            self._loop.call_soon(heard, self._lost)

    async def abort(self) -> None:
        self._drop("aborted")
        assert self._closing is not None
        await asyncio.wait([self._closing])

    def _submit(self, post: Callable[[Any], Any], view: memoryview) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if self._lost is not None:
            future.set_exception(PeerLost(f"link is down: {self._lost}"))
            return future
        data = self._ucxx.Array(view)
        try:
            request = post(data)
        except (self._ucxx.api.UCXError, RuntimeError) as error:
            future.set_exception(PeerLost(f"ucx: {error}"))
            return future
        self._pending.append((request, future, data))
        self._large |= view.nbytes >= self._spin_bytes
        if self._poller is None:
            self._poller = self._loop.create_task(self._poll())
        return future

    async def _poll(self) -> None:
        """Looks for completed requests while there are pending ones; never more than half of the time."""
        moved_at_s, look_at = time.perf_counter(), _LOOK_AHEAD
        while self._pending or self._spinning:
            began_s = time.perf_counter()
            found = self._collect(look_at)
            moved_at_s = began_s if found else moved_at_s
            look_at = _LOOK_AHEAD if found else len(self._pending)
            await self._pace(began_s - moved_at_s)
            await asyncio.sleep(max(PAUSE_S, time.perf_counter() - began_s))
        self._poller, self._large = None, False

    async def _pace(self, still_s: float) -> None:
        """Spins while large messages complete, and a moment longer: the next ones may be on their way."""
        now_s = time.perf_counter()
        if self._spinning and self._pending and still_s > _STALL_S:
            self._truce_until_s = now_s + _TRUCE_S
        wanted = self._large and self._lost is None and now_s >= self._truce_until_s
        spin = wanted and (bool(self._pending) or still_s < _LINGER_S)
        if spin != self._spinning:
            self._spinning = spin
            await asyncio.to_thread(self._worker.spin, spin)

    def _collect(self, look_at: int) -> bool:
        """Requests end nearly in the order of their posting: up to `look_at` unfinished ones are looked at."""
        waiting: list[tuple[Any, asyncio.Future[None], Any]] = []
        found = False
        while self._pending and len(waiting) < look_at:
            item = self._pending.popleft()
            if item[0].completed:
                self._complete(item[0], item[1])
                found = True
            else:
                waiting.append(item)
        self._pending.extendleft(reversed(waiting))
        return found

    def _complete(self, request: Any, future: asyncio.Future[None]) -> None:
        try:
            request.check_error()
        except self._ucxx.api.UCXError as error:
            _fail(future, f"ucx: {self._lost or error}")
            self._drop(f"ucx: {error}")
        else:
            if not future.done():
                future.set_result(None)

    def _peer_closed(self, *_: object) -> None:
        """Called on UCX's progress thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed already
            self._loop.call_soon_threadsafe(self._drop, "peer closed the link")

    def _drop(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
            self._closing = self._loop.create_task(self._close(why))

    async def _close(self, why: str) -> None:
        """Closing the endpoint by force ends its requests. Whatever has not ended by the grace time ends with the
        worker: without its progress thread nothing is copied."""
        await asyncio.to_thread(self._worker.close_endpoints)
        if self._poller is not None:
            await asyncio.wait([self._poller], timeout=_CLOSE_GRACE_S)
        self._endpoint = None
        await asyncio.to_thread(self._worker.stop)
        if self._poller is not None and not self._poller.done():
            log.error("ucx did not end %d requests of a closed link; its worker is stopped", len(self._pending))
            self._poller.cancel()
            for _, future, _ in self._pending:
                _fail(future, f"ucx: {why}")
        for heard in self._listeners:
            heard(why)


def _fail(future: asyncio.Future[None], why: str) -> None:
    if not future.done():
        future.set_exception(PeerLost(why))


class UcxTransport:
    """`name` is a profile of ucx_env. Errors of UCX become PeerLost here."""

    def __init__(self, name: str, host: str, timeout_s: float) -> None:
        self.name = name
        self.negotiated = name
        self._host, self._timeout_s = host, timeout_s
        self._ucxx = Ucxx()
        self._context = self._ucxx.api.UCXContext(ucx_env.options(name, os.environ, interface_of(host)))
        self._links: set[UcxLink] = set()
        self._waiting: set[asyncio.Future[Link]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Nothing to do: every expected link listens on a worker of its own."""

    async def expect(self, token: bytes) -> Expectation:
        loop = asyncio.get_running_loop()
        worker = await asyncio.to_thread(UcxWorker, self._ucxx, self._context)
        future: asyncio.Future[Link] = loop.create_future()
        arrivals: asyncio.Queue[Any] = asyncio.Queue()

        def arrived(endpoint: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed already
                loop.call_soon_threadsafe(arrivals.put_nowait, endpoint)

        listener = self._ucxx.api.UCXListener.create(
            worker=worker.worker, port=0, cb_func=arrived, deliver_endpoint=True
        )
        task = loop.create_task(self._take(worker, listener, arrivals, token, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        future.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)
        return Expectation(f"{self._host}|{listener.port}", future)

    async def _take(
        self, worker: UcxWorker, listener: Any, arrivals: asyncio.Queue[Any], token: bytes, future: asyncio.Future[Link]
    ) -> None:
        """Until someone comes with the token. `listener` lives as long as this task."""
        try:
            while not future.done():
                endpoint = await arrivals.get()
                worker.endpoints.append(endpoint)
                with contextlib.suppress(TimeoutError, OSError, RuntimeError, self._ucxx.api.UCXError):
                    async with asyncio.timeout(self._timeout_s):
                        await worker.stream(endpoint.stream_send, bytearray(_GREETING))
                        if await worker.stream(endpoint.stream_recv, bytearray(TOKEN_BYTES)) == token:
                            await worker.stream(endpoint.stream_send, bytearray(_TAKEN))
                            future.set_result(self._link(worker, endpoint))
        finally:
            if not future.done() or future.cancelled():
                await worker.close()
                future.cancel()

    async def connect(self, address: str, token: bytes, timeout_s: float) -> Link:
        host, _, port = address.rpartition("|")
        worker = await asyncio.to_thread(UcxWorker, self._ucxx, self._context)
        try:
            async with asyncio.timeout(timeout_s):
                endpoint = self._ucxx.api.UCXEndpoint.create(worker.worker, host, int(port), True)
                worker.endpoints.append(endpoint)
                # Listen first: UCX 1.21 spins for ever in a stream send on an endpoint that cannot connect.
                await worker.stream(endpoint.stream_recv, bytearray(len(_GREETING)))
                await worker.stream(endpoint.stream_send, bytearray(token))
                await worker.stream(endpoint.stream_recv, bytearray(_TAKEN))
                return self._link(worker, endpoint)
        except TimeoutError as error:
            await worker.close()
            raise PeerLost(f"no ucx link to {address} within {timeout_s:g} s") from error
        except (self._ucxx.api.UCXError, OSError, RuntimeError, ValueError) as error:
            await worker.close()
            raise PeerLost(f"no ucx link to {address}: {error}") from error
        except asyncio.CancelledError:
            await worker.close()
            raise

    async def close(self) -> None:
        for future in list(self._waiting):
            future.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.abort() for link in set(self._links)))

    def _link(self, worker: UcxWorker, endpoint: Any) -> UcxLink:
        lanes = lane_transports(endpoint.handle)
        self.negotiated = ucx_env.negotiated(lanes)
        matches = self.name in ("ucx", self.negotiated)
        log.log(
            logging.INFO if matches else logging.WARNING,
            "kv link runs on %s (lanes %s), %s was asked for",
            *(self.negotiated, ",".join(lanes), self.name),
        )
        link = UcxLink(worker, endpoint, self.negotiated)
        self._links.add(link)
        link.on_lost(lambda _: self._links.discard(link))
        return link
