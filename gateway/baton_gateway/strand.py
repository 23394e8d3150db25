"""A request's coroutine run by hand: no task, no futures, no turns of the event loop on its common way.

It begins inside the read that brought the request, and goes on inside the read that brought what it waits for. It may
await Signals and, where it must wait for something rarer (a slot, a worker, a thread), asyncio's own futures. What
asks for the current task (asyncio.timeout) does not work inside; Alarms are its deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Protocol


class Signal:
    """`await signal` returns at the next `wake`. At most one strand waits, and sets itself as `strand`."""

    __slots__ = ("strand",)

    def __init__(self) -> None:
        self.strand: Strand | None = None

    def __await__(self) -> Generator[Signal, None, None]:
        yield self

    def wake(self) -> None:
        strand, self.strand = self.strand, None
        if strand is not None:
            strand.step()


class Strand:
    """Runs `coroutine` from `start` on. `expired`: it was cancelled because its time was over."""

    __slots__ = ("_cancelled", "_coroutine", "_running", "_waits", "expired")

    def __init__(self) -> None:
        self._coroutine: Coroutine[Any, None, None] | None = None
        self._waits: Any = None
        self._running = False
        self._cancelled = False
        self.expired = False

    def start(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self.step()

    def step(self, error: BaseException | None = None) -> None:
        """On to the next wait, or to the end."""
        coroutine = self._coroutine
        if coroutine is None:
            return
        self._running = True
        self._waits = None
        try:
            waits = coroutine.send(None) if error is None else coroutine.throw(error)
            while self._cancelled:  # while it ran
                self._cancelled = False
                waits = coroutine.throw(asyncio.CancelledError())
        except (StopIteration, asyncio.CancelledError):
            self._coroutine = None
            return
        except BaseException:
            self._coroutine = None
            raise
        finally:
            self._running = False
        self._waits = waits
        if isinstance(waits, Signal):
            waits.strand = self
        else:
            waits._asyncio_future_blocking = False
            waits.add_done_callback(self._future_done)

    def cancel(self) -> None:
        """As a task's: CancelledError where it waits; at its next wait when it is running just now."""
        if self._running:
            self._cancelled = True
            return
        waits, self._waits = self._waits, None
        if isinstance(waits, Signal):
            waits.strand = None
        elif waits is not None:
            waits.remove_done_callback(self._future_done)
            waits.cancel()
        self.step(asyncio.CancelledError())

    def expire(self, after_s: float) -> None:
        """Its time is over."""
        self.expired = True
        self.cancel()

    def _future_done(self, future: asyncio.Future[Any]) -> None:
        if self._waits is future:
            self.step()


class Expiring(Protocol):
    def expire(self, after_s: float) -> None: ...


class Alarms:
    """Tells what has been armed for `after_s` that its time is over. All wait equally long, so the first armed is the
    first to expire, and one timer does for all."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._loop = asyncio.get_running_loop()
        self._armed: dict[Expiring, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, what: Expiring) -> None:
        due_s = self._loop.time() + self._after_s
        self._armed[what] = due_s
        if self._timer is None:
            self._timer = self._loop.call_at(due_s, self._ring)

    def disarm(self, what: Expiring) -> None:
        """A second call does nothing."""
        self._armed.pop(what, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        due = [what for what, due_s in self._armed.items() if due_s <= now_s]
        for what in due:
            if self._armed.pop(what, None) is not None:
                what.expire(self._after_s)
        if self._armed and self._timer is None:
            self._timer = self._loop.call_at(max(next(iter(self._armed.values())), now_s + 0.001), self._ring)
