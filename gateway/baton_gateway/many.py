"""Several gateway processes on one port: forks them, starts again what died, and ends them all.

The kernel spreads connections over their sockets (SO_REUSEPORT). What they share: the port, the secret, the API keys;
limits, divided so that all together keep to what was set; load and counters, by way of the board; where prompts were
routed, by way of rings: the prefix index of each knows of all. What each has of its own: connections, heartbeats.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from baton_api.errors import SettingError

from .board import Board
from .settings import GatewaySettings

log = logging.getLogger("baton.gateway.many")
FIRST_DELAY_S, MAX_DELAY_S, STABLE_S = 0.5, 10.0, 30.0
BAD_SETTING_EXIT = 2
KILL_AFTER_S = 3.0
"""Once the time to drain is over."""
_POLL_S = 0.1
_STOPS = (signal.SIGTERM, signal.SIGINT)

Serve = Callable[[int, Callable[[], None], int], int]
"""(index, tell that it is ready, lifeline) -> exit code. The lifeline's reading end closes when the parent is gone."""


@dataclass(slots=True)
class _Child:
    pid: int = 0
    since_s: float = 0.0
    due_s: float = 0.0
    failures: int = 0


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for SO_REUSEPORT listeners but takes no connections itself. Raises SettingError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        raise SettingError("host, port", f"{host}:{port}", f"cannot be had ({error})", "give a free one") from error
    return held


def share_of(settings: GatewaySettings, index: int, port: int) -> GatewaySettings:
    """What one of the processes is told: the limits are divided, so that all together keep to them. Each takes one
    connection and one body of the largest size, however many they are."""

    def part(total: int) -> int:
        return total // settings.processes + (index < total % settings.processes)

    return replace(
        settings,
        port=port,
        reuse_port=True,
        processes=1,
        max_in_flight=part(settings.max_in_flight),
        max_connections=max(1, part(settings.max_connections)),
        max_connections_per_address=max(1, part(settings.max_connections_per_address)),
        max_bodies_bytes=max(min(settings.max_bodies_bytes, settings.max_body_bytes), part(settings.max_bodies_bytes)),
        max_queued=part(settings.max_queued),
        max_tokenising=max(1, part(settings.max_tokenising)),
        retry_burst=min(settings.retry_burst, max(1, part(settings.retry_burst))),
        resume_burst=min(settings.resume_burst, max(1, part(settings.resume_burst))),
        text_cache_bytes=part(settings.text_cache_bytes),
    )


class Family:
    """`run` until all have ended; returns the exit code. `on_ready` is called once, when all listen. What has not ended
    so many seconds after a stop is killed."""

    def __init__(self, board: Board, serve: Serve, on_ready: Callable[[], None], stop_s: float) -> None:
        self._board = board
        self._serve = serve
        self._on_ready = on_ready
        self._stop_s = stop_s
        self._kill_s = math.inf
        self._children = [_Child() for _ in range(board.processes)]
        self._told, self._tell = os.pipe()
        self._lifeline, self._held = os.pipe()
        self._ready: set[int] = set()
        self._was_ready = False
        self._stopping = self._told_to_stop = False
        self._exit = 0

    def run(self) -> int:
        for number in _STOPS:
            signal.signal(number, self._stop)
        while not (self._stopping and not any(child.pid for child in self._children)):
            if self._stopping and not self._told_to_stop:
                self._told_to_stop = True
                self._kill_s = time.monotonic() + self._stop_s
                for child in self._children:
                    if child.pid:
                        os.kill(child.pid, signal.SIGTERM)
            now_s = time.monotonic()
            if now_s >= self._kill_s:
                self._kill_what_is_left()
            for index, child in enumerate(self._children):
                if not child.pid and not self._stopping and now_s >= child.due_s:
                    self._fork(index, child)
            self._listen()
            self._reap()
        return self._exit

    def _kill_what_is_left(self) -> None:
        self._kill_s = math.inf
        for index, child in enumerate(self._children):
            if child.pid:
                log.error("gateway process %d did not end in %.1f s; killed", index, self._stop_s)
                os.kill(child.pid, signal.SIGKILL)

    def _fork(self, index: int, child: _Child) -> None:
        """With the stop signals held back: a child that got one before its handlers stand would run `_stop`: lost."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number in _STOPS:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
                os.close(self._held)
                code = self._serve(index, lambda: _say(self._tell, index), self._lifeline)
            except BaseException:
                log.exception("gateway process %d", index)
            finally:
                logging.shutdown()
                os._exit(code)
        child.pid, child.since_s = pid, time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def _listen(self) -> None:
        readable, _, _ = select.select([self._told], [], [], _POLL_S)
        if readable:
            self._ready.update(os.read(self._told, 4096))
        if len(self._ready) == len(self._children) and not self._was_ready:
            self._was_ready = True
            self._on_ready()

    def _reap(self) -> None:
        for index, child in enumerate(self._children):
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    self._ended(index, child, os.waitstatus_to_exitcode(status))

    def _ended(self, index: int, child: _Child, code: int) -> None:
        child.pid = 0
        self._board.strike_out(index)
        if self._stopping:
            self._exit = self._exit or max(0, code)
            return
        if not self._was_ready and code == BAD_SETTING_EXIT:
            self._exit = code
            self._stop()
            return
        now_s = time.monotonic()
        child.failures = 1 if now_s - child.since_s > STABLE_S else child.failures + 1
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(child.failures - 1, 16))
        child.due_s = now_s + delay_s
        log.error("gateway process %d ended with %d; started again in %.1f s", index, code, delay_s)

    def _stop(self, *_: object) -> None:
        """Nothing more: it may run between any two steps of `run`, where a child is just being reaped."""
        self._stopping = True


def _say(pipe: int, index: int) -> None:
    os.write(pipe, bytes([index]))
