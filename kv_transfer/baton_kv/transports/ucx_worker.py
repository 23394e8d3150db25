"""ucxx, loaded when a transport needs it, and one UCX worker with the thread that drives it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

from baton_api.errors import SettingError

from . import ucx_env

PAUSE_S = 0.001  # uvloop's timers know no less
_EPOLL_MS = 100  # only a safety net: no lost wake-up was seen at 1000
_CLOSE_NS = 1_000_000_000


class Ucxx:
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


class UcxWorker:
    """A UCX worker with its progress thread, and whatever requests run on it."""

    def __init__(self, ucxx: Ucxx, context: Any) -> None:
        self.ucxx = ucxx
        self.worker: Any = ucxx.api.UCXWorker(context, enable_delayed_submission=True, enable_python_future=False)
        self.worker.start_progress_thread(polling_mode=False, epoll_timeout=_EPOLL_MS)
        self.endpoints: list[Any] = []
        self._unfinished: list[tuple[Any, bytearray]] = []
        self._stopped = False
        self._mode = threading.Lock()

    async def stream(self, post: Callable[[Any], Any], data: bytearray) -> bytearray:
        """One message of a handshake."""
        request = post(self.ucxx.Array(data))
        try:
            while not request.completed:
                await asyncio.sleep(PAUSE_S)
        except asyncio.CancelledError:
            self._unfinished.append((request, data))  # UCX may write until the worker has stopped
            raise
        request.check_error()
        return data

    def close_endpoints(self) -> None:
        """By force: their requests end with an error. Blocks for a moment; not for the event loop's thread."""
        with self._mode:
            for endpoint in self.endpoints:
                endpoint.close_blocking(_CLOSE_NS, 1)
                endpoint.remove_close_callback()

    def spin(self, on: bool) -> None:
        """Whether the progress thread takes a core for itself. Blocks for a moment; not for the event loop's thread."""
        with self._mode:
            if not self._stopped:
                self.worker.stop_progress_thread()
                self.worker.start_progress_thread(polling_mode=on, epoll_timeout=_EPOLL_MS)

    def stop(self) -> None:
        """Nothing is copied on this worker any more, and its sockets go. Blocks for a moment; not for the event loop's
        thread. A cycle that waits for the garbage collector may hold this object, but no descriptor with it."""
        with self._mode:
            if not self._stopped:
                self._stopped = True
                self.worker.stop_progress_thread()
                self.endpoints.clear()
                self._unfinished.clear()
                self.worker = None

    async def close(self) -> None:
        await asyncio.to_thread(self.close_endpoints)
        await asyncio.to_thread(self.stop)
