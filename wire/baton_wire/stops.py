"""Signals that ask a process to stop, once it has."""

from __future__ import annotations

import asyncio
import signal


def ignore_stops(loop: asyncio.AbstractEventLoop) -> None:
    """The last thing that `loop` runs: a signal between its end and the process's would change the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
