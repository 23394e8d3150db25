"""A link over one stream socket: blocks go from memory to the kernel and from the kernel to memory, nothing between.

A frame is a 24-byte header (kind, tag, length, address) and, for DATA, the block. Two threads serve the socket with
blocking calls, outside the interpreter's lock. Each block's digest is taken where it landed, while the cache has it.

On one host the sending end may lend its memory instead (`lends`): READ names an address, the receiving end copies the
block itself (cross_memory.py), several at a time, and answers DONE. Whoever aborts a link that lends may reuse its
blocks while the other end still copies; what that end then has fails with the link, or by its checksum.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from baton_api.errors import PeerLost
from baton_kv.checksums import digest_as_it_lands

from . import cross_memory

_HEADER = struct.Struct("<IIQQ")
_DATA, _READ, _DONE = range(3)
_LEND_BYTES = 64 << 10  # smaller blocks are sooner sent than asked for
_PIECE_BYTES = 512 << 10  # read by the digest before it leaves the core's cache, its source beside it
_READERS = min(4, os.cpu_count() or 1)

Landing: TypeAlias = "asyncio.Future[int | None]"
Frame: TypeAlias = "tuple[int, memoryview | None, asyncio.Future[None] | None]"


class SocketLink:
    """Owns `sock`, connected. `peer_pid`: the process whose lent memory is read here."""

    def __init__(self, sock: socket.socket, negotiated: str, *, lends: bool = False, peer_pid: int = 0) -> None:
        self.negotiated = negotiated
        self._loop = asyncio.get_running_loop()
        self._sock, self._lends, self._peer_pid = sock, lends, peer_pid
        self._posted: dict[int, tuple[memoryview, Landing]] = {}
        self._lent: dict[int, tuple[memoryview, asyncio.Future[None]]] = {}
        self._outbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._unfinished: set[asyncio.Future[None] | Landing] = set()
        self._lost: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[str], None]] = []
        sock.setblocking(True)
        self._fetchers = ThreadPoolExecutor(_READERS, "kv-fetch") if peer_pid else None
        works = (self._read, self._write)
        self._threads = [threading.Thread(target=self._guard, args=(work,), daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if self._accept(future):
            self._outbox.put((tag, view, future))
        return future

    def recv(self, tag: int, view: memoryview) -> Landing:
        future: Landing = self._loop.create_future()
        if self._accept(future):
            self._posted[tag] = (view, future)
        return future

    def on_lost(self, heard: Callable[[str], None]) -> None:
        if self._closing is None or not self._closing.done():
            self._listeners.append(heard)
        else:
            self._loop.call_soon(heard, self._lost or "")

    async def abort(self) -> None:
        self._drop("aborted")
        assert self._closing is not None
        await asyncio.wait([self._closing])

    def _accept(self, future: asyncio.Future[None] | Landing) -> bool:
        if self._lost is not None:
            future.set_exception(PeerLost(f"link is down: {self._lost}"))
            return False
        self._unfinished.add(future)
        return True

    def _drop(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
            self._closing = self._loop.create_task(self._close(why))

    async def _close(self, why: str) -> None:
        """A shut-down socket ends the threads' calls; then nothing touches a view, and everyone who waits is told."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._outbox.put(None)
        await asyncio.to_thread(self._join)
        self._sock.close()
        self._posted.clear()
        self._lent.clear()
        for future in self._unfinished:
            if not future.done():
                future.set_exception(PeerLost(why))
        self._unfinished.clear()
        for heard in self._listeners:
            self._loop.call_soon(heard, why)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        if self._fetchers is not None:
            self._fetchers.shutdown(cancel_futures=True)

    # ---- below: on the threads

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, PeerLost) as error:
            self._on_loop(self._drop, str(error))

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed already
            self._loop.call_soon_threadsafe(call, *arguments)

    def _finish(self, future: asyncio.Future[None] | Landing, result: int | None = None) -> None:
        self._on_loop(self._finished, future, result)

    def _finished(self, future: Landing, result: int | None) -> None:
        self._unfinished.discard(future)
        if not future.done():
            future.set_result(result)

    def _write(self) -> None:
        while (frame := self._outbox.get()) is not None:
            tag, view, future = frame
            if view is None or future is None:
                self._sock.sendall(_HEADER.pack(_DONE, tag, 0, 0))
            elif self._lends and view.nbytes >= _LEND_BYTES:
                self._lent[tag] = (view, future)
                self._sock.sendall(_HEADER.pack(_READ, tag, view.nbytes, cross_memory.address_of(view)))
            else:
                self._sock.sendall(_HEADER.pack(_DATA, tag, view.nbytes, 0))
                self._sock.sendall(view)
                self._finish(future)

    def _read(self) -> None:
        header = memoryview(bytearray(_HEADER.size))
        while True:
            self._fill(header)
            kind, tag, length, address = _HEADER.unpack(header)
            if kind == _DONE and tag in self._lent:
                self._finish(self._lent.pop(tag)[1])
            else:
                self._arrived(kind, tag, length, address)

    def _arrived(self, kind: int, tag: int, length: int, address: int) -> None:
        posted = self._posted.pop(tag, None)
        if posted is None:
            raise PeerLost(f"message {tag} came without a receive")
        view, future = posted
        if length not in (0, view.nbytes):
            raise PeerLost(f"message {tag} has {length} bytes, its receive {view.nbytes}")
        if kind == _READ and self._fetchers is not None and length:
            self._fetchers.submit(self._guard, lambda: self._fetch(tag, address, view, future))
        elif kind == _DATA:
            digest = digest_as_it_lands(self._filled(view)) if length else None
            self._finish(future, digest)
        else:
            raise PeerLost(f"message {tag} is of kind {kind}, which this link does not take")

    def _fetch(self, tag: int, address: int, view: memoryview, future: Landing) -> None:
        if self._lost is None:
            digest = digest_as_it_lands(self._copied(address, view))
            self._outbox.put((tag, None, None))
            self._finish(future, digest)

    def _copied(self, address: int, view: memoryview) -> Iterator[memoryview]:
        for start in range(0, view.nbytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            cross_memory.read(self._peer_pid, address + start, piece)
            yield piece

    def _filled(self, view: memoryview) -> Iterator[memoryview]:
        for start in range(0, view.nbytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._fill(piece)
            yield piece

    def _fill(self, view: memoryview) -> None:
        """Reads until `view` is full. Raises PeerLost at the end of the stream."""
        while view.nbytes:
            count = self._sock.recv_into(view, view.nbytes, socket.MSG_WAITALL)
            if not count:
                raise PeerLost("peer closed the link")
            view = view[count:]
