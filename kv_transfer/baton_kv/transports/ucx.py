"""Transport over UCX, by ucxx: two-sided tagged messages straight from and into KV blocks.

ucxx's low-level objects are used, with one context and worker per transport and UCX's own progress thread: bytes are
copied off the event loop and outside the interpreter's lock. Completion is polled from the event loop while something
is in flight. A UCX tag is the receiver's link number and the link's tag, because matching is per worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any

from baton_api.errors import PeerLost, SettingError
from baton_kv.transport import TOKEN_BYTES, Expected, Link

from . import ucx_env

log = logging.getLogger("baton.kv")

_GREETING = struct.Struct("<I")  # listener: its link number
_HELLO = struct.Struct(f"<{TOKEN_BYTES}sI")  # connecting side: token, its link number
_TAKEN = 1  # listener: one byte
_MAX_HANDSHAKES = 256
_SHORT_PAUSE_S, _LONG_PAUSE_S = 0.0002, 0.001
_CLOSE_NS = 1_000_000_000


class _Ucxx:
    """The parts of ucxx that are used. Imported when the first transport is made."""

    def __init__(self) -> None:
        for name, value in ucx_env.PROCESS_ENV.items():
            os.environ.setdefault(name, value)
        try:
            import libucx

            libucx.load_library()  # else ucxx takes whatever old libucp the system has
            from ucxx._lib import libucxx
            from ucxx._lib.arr import Array
            from ucxx.types import Tag, TagMaskFull
        except ImportError as error:
            raise SettingError(
                "kv.transport", "ucx", f"cannot be loaded ({error})", "install baton-serve[ucx] or use tcp"
            ) from error
        self.api, self.Array, self.Tag, self.full_mask = libucxx, Array, Tag, TagMaskFull


class UcxLink:
    def __init__(self, ucxx: _Ucxx, endpoint: Any, near: int, far: int, negotiated: str) -> None:
        self._ucxx, self._endpoint, self.negotiated = ucxx, endpoint, negotiated
        self._near, self._far = near << 32, far << 32
        self._loop = asyncio.get_running_loop()
        self._pending: list[tuple[Any, asyncio.Future[None], Any]] = []
        self._poller: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[str], None]] = []
        endpoint.set_close_callback(self._peer_closed)

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        return self._submit(lambda data: self._endpoint.tag_send(data, self._ucxx.Tag(self._far | tag)), view)

    def recv(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        return self._submit(
            lambda data: self._endpoint.tag_recv(data, self._ucxx.Tag(self._near | tag), self._ucxx.full_mask), view
        )

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
        except self._ucxx.api.UCXError as error:
            future.set_exception(PeerLost(f"ucx: {error}"))
            return future
        self._pending.append((request, future, data))
        if self._poller is None:
            self._poller = self._loop.create_task(self._poll())
        return future

    async def _poll(self) -> None:
        """Looks for completed requests while there are pending ones; never more than a third of the time."""
        pause_s = _SHORT_PAUSE_S
        while self._pending:
            began_s = time.perf_counter()
            found = self._collect()
            pause_s = _SHORT_PAUSE_S if found else min(2 * pause_s, _LONG_PAUSE_S)
            await asyncio.sleep(max(pause_s, 2 * (time.perf_counter() - began_s)))
        self._poller = None

    def _collect(self) -> bool:
        waiting = []
        for item in self._pending:
            if item[0].completed:
                self._complete(item[0], item[1])
            else:
                waiting.append(item)
        found = len(waiting) < len(self._pending)
        self._pending = waiting
        return found

    def _complete(self, request: Any, future: asyncio.Future[None]) -> None:
        try:
            request.check_error()
        except self._ucxx.api.UCXError as error:
            if not future.done():
                future.set_exception(PeerLost(f"ucx: {self._lost or error}"))
            self._drop(f"ucx: {error}")
        else:
            if not future.done():
                future.set_result(None)

    def _peer_closed(self, *_: object) -> None:
        """Called on UCX's progress thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed already
            self._loop.call_soon_threadsafe(self._drop, "peer closed the link")

    def _drop(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = why
        self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        """Closing an endpoint by force ends its requests; only a request that says so is over."""
        await asyncio.to_thread(self._endpoint.close_blocking, _CLOSE_NS, 1)
        self._endpoint.remove_close_callback()
        began_s = time.monotonic()
        while self._poller is not None:
            await asyncio.wait([self._poller], timeout=5.0)
            if self._poller is not None and not self._poller.done():
                log.error("ucx keeps %d requests %.0f s after close", len(self._pending), time.monotonic() - began_s)
        for heard in self._listeners:
            heard(self._lost or "closed")


class UcxTransport:
    """`name` is a profile of ucx_env. Errors of UCX become PeerLost here."""

    def __init__(self, name: str, host: str, port: int, timeout_s: float) -> None:
        self.name = name
        self.negotiated = name
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._ucxx = _Ucxx()
        context = self._ucxx.api.UCXContext(ucx_env.options(name, os.environ))
        self._worker = self._ucxx.api.UCXWorker(context, enable_delayed_submission=True, enable_python_future=False)
        self._worker.start_progress_thread(polling_mode=False, epoll_timeout=1)
        self._listener: Any = None
        self._expected = Expected()
        self._numbers = itertools.count(1)
        self._links: set[UcxLink] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unfinished: list[tuple[Any, bytearray]] = []

    async def listen(self) -> str:
        loop = asyncio.get_running_loop()

        def arrived(endpoint: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed already
                loop.call_soon_threadsafe(self._arrived, endpoint)

        self._listener = self._ucxx.api.UCXListener.create(
            worker=self._worker, port=self._port, cb_func=arrived, deliver_endpoint=True
        )
        return f"{self._host}|{self._listener.port}"

    def expect(self, token: bytes) -> asyncio.Future[Link]:
        return self._expected.add(token)

    async def connect(self, address: str, token: bytes, timeout_s: float) -> Link:
        host, _, port = address.rpartition("|")
        near = next(self._numbers)
        endpoint = None
        try:
            async with asyncio.timeout(timeout_s):
                endpoint = self._ucxx.api.UCXEndpoint.create(self._worker, host, int(port), True)
                # Listen first: UCX 1.21 spins for ever in a stream send on an endpoint that cannot connect.
                greeting = await self._stream(endpoint.stream_recv, bytearray(_GREETING.size))
                await self._stream(endpoint.stream_send, bytearray(_HELLO.pack(token, near)))
                await self._stream(endpoint.stream_recv, bytearray(_TAKEN))
                return self._link(endpoint, near, _GREETING.unpack(greeting)[0])
        except TimeoutError as error:
            await self._discard(endpoint)
            raise PeerLost(f"no ucx link to {address} within {timeout_s:g} s") from error
        except (self._ucxx.api.UCXError, OSError, RuntimeError, ValueError) as error:
            await self._discard(endpoint)
            raise PeerLost(f"no ucx link to {address}: {error}") from error
        except asyncio.CancelledError:
            await self._discard(endpoint)
            raise

    async def close(self) -> None:
        self._expected.cancel_all()
        self._listener = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.abort() for link in set(self._links)))
        await asyncio.to_thread(self._worker.stop_progress_thread)

    async def _stream(self, post: Callable[[Any], Any], data: bytearray) -> bytearray:
        """One message of the handshake: per endpoint, so that two connecting peers cannot be mixed up."""
        request = post(self._ucxx.Array(data))
        try:
            while not request.completed:
                await asyncio.sleep(_LONG_PAUSE_S)
        except asyncio.CancelledError:
            self._unfinished.append((request, data))  # UCX may still write until the endpoint is closed
            raise
        request.check_error()
        return data

    async def _discard(self, endpoint: Any) -> None:
        """Closes an endpoint that became no link, and lets go of the buffers of handshakes that are over."""
        if endpoint is not None:
            await asyncio.to_thread(endpoint.close_blocking, _CLOSE_NS, 1)
        self._unfinished = [item for item in self._unfinished if not item[0].completed]

    def _link(self, endpoint: Any, near: int, far: int) -> UcxLink:
        from .ucx_query import lane_transports

        lanes = lane_transports(endpoint.handle)
        self.negotiated = ucx_env.negotiated(lanes)
        matches = self.name in ("ucx", self.negotiated)
        log.log(
            logging.INFO if matches else logging.WARNING,
            "kv link runs on %s (lanes %s), %s was asked for",
            *(self.negotiated, ",".join(lanes), self.name),
        )
        link = UcxLink(self._ucxx, endpoint, near, far, self.negotiated)
        self._links.add(link)
        link.on_lost(lambda _: self._links.discard(link))
        return link

    def _arrived(self, endpoint: Any) -> None:
        if len(self._tasks) < _MAX_HANDSHAKES:
            self._spawn(self._shake(endpoint))
        else:
            self._spawn(self._discard(endpoint))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake(self, endpoint: Any) -> None:
        """The token within the time, or the endpoint is closed."""
        near, link = next(self._numbers), None
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._stream(endpoint.stream_send, bytearray(_GREETING.pack(near)))
                token, far = _HELLO.unpack(await self._stream(endpoint.stream_recv, bytearray(_HELLO.size)))
                if self._expected.has(token):
                    await self._stream(endpoint.stream_send, bytearray(_TAKEN))
                    link = self._link(endpoint, near, far)
                    if not self._expected.arrived(token, link):
                        await link.abort()
        except (TimeoutError, OSError, RuntimeError, self._ucxx.api.UCXError) as error:
            log.info("ucx handshake failed: %s", error)
        finally:
            if link is None:
                await self._discard(endpoint)
