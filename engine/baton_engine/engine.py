"""The native engine: a thread that runs schedule -> run -> commit over a Runner, for callers on an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from baton_api.errors import BadRequest, BatonError, InternalError, NoCapacity, Overloaded
from baton_api.layout import KvLayout
from baton_api.sampling import SampledToken

from .batch import Runner
from .block_pool import BlockPool
from .limits import EngineSettings, Limits
from .nouns import BlockStore, EngineEvent, EngineStats, Failed, Finished, GenerateRequest, KvEvent, Sink
from .scheduler import Scheduler
from .step import Step

log = logging.getLogger(__name__)

Command = Callable[[], None]
KvSink = Callable[[Sequence[KvEvent]], None]
FailureSink = Callable[[str], None]
RETRY_AFTER_S = 1.0
MAX_ALONE = 3
"""So many requests of a failed step fail alone, one after the other, before the rest is not tried any more."""


class NativeEngine:
    """Implements `nouns.Engine`. Make it on the event loop's thread; its own thread starts at once and, when there is
    nothing to compute, sleeps until the next command.

    The scheduler is touched under `_lock` only; the runner works outside it, so that a look at the state never waits
    for a step. submit() raises, beyond what the protocol says, Overloaded when `settings.max_requests` are held and
    NoCapacity once close() was called.
    """

    def __init__(
        self,
        runner: Runner,
        settings: EngineSettings | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = settings or EngineSettings()
        self._runner = runner
        self._loop = loop or asyncio.get_running_loop()
        self._clock = clock
        self._max_requests = settings.max_requests
        blocks, block_tokens = runner.store.num_blocks, runner.layout.block_tokens
        self._limits = Limits(
            max_model_tokens=min(runner.max_model_len, blocks * block_tokens),
            max_running=settings.max_running,
            vocab_size=runner.vocab_size,
            eos_token_ids=runner.eos_token_ids,
        )
        self._pool = BlockPool(blocks)
        self._scheduler = Scheduler(self._pool, block_tokens, self._limits, settings.max_batched_tokens)
        self._stats = self._scheduler.stats()
        self._lock = threading.Lock()
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._sinks: dict[str, Sink] = {}
        self._kv_sinks: list[KvSink] = []
        self._failure_sinks: list[FailureSink] = []
        self._closing = False
        self._closed = asyncio.Event()
        self._awake_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="baton-engine", daemon=True)
        self._thread.start()

    # On the event loop's thread

    @property
    def layout(self) -> KvLayout:
        return self._runner.layout

    @property
    def store(self) -> BlockStore:
        return self._runner.store

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together: the model's limit, or the pool's if that is less."""
        return self._limits.max_model_tokens

    def submit(self, request: GenerateRequest, sink: Sink) -> None:
        if self._closing:
            raise NoCapacity("the engine is draining", code="draining")
        if request.request_id in self._sinks:
            raise BadRequest(f"request id {request.request_id!r} is in use", param="request_id")
        if len(self._sinks) >= self._max_requests:
            raise Overloaded(
                f"{len(self._sinks)} requests are held, as many as the engine takes", retry_after_s=RETRY_AFTER_S
            )
        self._limits.check(request)
        self._sinks[request.request_id] = sink
        self._commands.put(lambda: self._scheduler.submit(request, self._clock()))

    def land(self, request_id: str, first: Sequence[SampledToken]) -> None:
        self._commands.put(partial(self._scheduler.land, request_id, tuple(first)))

    def recompute(self, request_id: str) -> None:
        self._commands.put(partial(self._scheduler.recompute, request_id))

    def release(self, request_id: str) -> None:
        self._commands.put(partial(self._scheduler.release, request_id))

    def stop_choice(self, request_id: str, choice: int) -> None:
        self._commands.put(partial(self._scheduler.stop_choice, request_id, choice))

    def pause(self, request_id: str) -> None:
        self._commands.put(partial(self._scheduler.pause, request_id))

    def resume(self, request_id: str) -> None:
        self._commands.put(partial(self._scheduler.resume, request_id))

    def abort(self, request_id: str) -> None:
        self._commands.put(partial(self._scheduler.abort, request_id))

    def stats(self) -> EngineStats:
        return self._stats

    @property
    def running(self) -> bool:
        """False once its thread has ended, by close() or by an error it could not survive."""
        return self._thread.is_alive()

    def step_age_s(self) -> float:
        """How long its thread has been busy without coming to an end of a step; 0 while there is nothing to do."""
        since_s = self._awake_since_s
        return 0.0 if since_s is None else max(0.0, self._clock() - since_s)

    def on_kv_events(self, sink: KvSink) -> None:
        self._kv_sinks.append(sink)

    def on_failure(self, sink: FailureSink) -> None:
        self._failure_sinks.append(sink)

    def cached_keys(self) -> list[tuple[bytes, bytes | None]]:
        with self._lock:
            return self._pool.cached_keys()

    def check_invariants(self) -> None:
        with self._lock:
            self._scheduler.check_invariants()

    async def close(self) -> None:
        """Ends every request with Failed(NoCapacity, draining), then the thread. A step under way is waited for."""
        if not self._closing:
            self._closing = True
            self._commands.put(None)
        await self._closed.wait()
        self._thread.join()

    def _deliver(self, events: Sequence[tuple[str, EngineEvent]], kv_events: Sequence[KvEvent]) -> None:
        for kv_sink in self._kv_sinks if kv_events else ():
            self._guarded(partial(kv_sink, kv_events))
        for request_id, event in events:
            over = isinstance(event, Finished | Failed)
            sink = self._sinks.pop(request_id) if over else self._sinks[request_id]
            if not self._guarded(partial(sink, event)):
                self.abort(request_id)

    def _failed(self, what: str) -> None:
        for sink in self._failure_sinks:
            self._guarded(partial(sink, what))

    def _guarded(self, call: Callable[[], None]) -> bool:
        """A sink that raises costs its own request, not the others'."""
        try:
            call()
        except Exception as error:
            self._loop.call_exception_handler({"message": "an engine sink raised", "exception": error})
            return False
        return True

    def _end(self, reason: BatonError) -> None:
        """The thread is over: whoever is left hears it, also those whose submit() it never saw."""
        self._closing = True
        self._deliver([(request_id, Failed(reason)) for request_id in self._sinks], ())
        self._closed.set()

    # On the engine's thread

    def _run(self) -> None:
        reason: BatonError = NoCapacity("the engine is draining", code="draining")
        try:
            idle = True
            while self._take_commands(wait=idle):
                self._awake_since_s = self._clock()
                idle = not self._step()
                if idle:
                    self._awake_since_s = None
            with self._lock:
                self._scheduler.fail_all(reason)
            self._publish()
        except Exception as error:
            log.exception("the engine stopped")
            reason = InternalError(f"the engine stopped: {error!r}")
            self._tell(partial(self._failed, "stopped"))
        self._tell(partial(self._end, reason))

    def _take_commands(self, *, wait: bool) -> bool:
        """Applies all commands that are there; with `wait`, sleeps until there is one. False: stop."""
        while wait or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            if wait:
                self._awake_since_s = self._clock()
            with self._lock:
                command()
            self._copy_blocks()
            wait = False
        return True

    def _step(self) -> bool:
        """One step; False when there is nothing to compute."""
        with self._lock:
            step = self._scheduler.schedule(self._clock())
        self._publish()
        if not step.work:
            return False
        if (error := self._perform(step)) is not None:
            self._tell(partial(self._failed, "step"))
            self._find_guilty(step, error)
        self._publish()
        return True

    def _perform(self, step: Step) -> Exception | None:
        """Computes and commits a step. What it raised is returned without its frames, which hold tensors: after an
        out-of-memory error they must be gone before anything else is tried."""
        try:
            results = self._compute(step)
        except Exception as error:
            log.exception("a step failed with %d requests in it", len(step.request_ids))
            return error.with_traceback(None)
        with self._lock:
            self._scheduler.commit(step, results, self._clock())
        self._copy_blocks()
        return None

    def _find_guilty(self, step: Step, error: Exception) -> None:
        """Computes a failed step again in ever smaller parts: a part that was too large for the memory passes, and one
        request that cannot be computed fails alone. When several in a row fail alone it is the device: all fail."""
        parts: list[Step] = [step]
        alone: list[Step] = []
        untried: list[Step] = []
        passed = in_a_row = 0
        while parts:
            part = parts.pop(0)
            if in_a_row == MAX_ALONE:
                untried.append(part)
            elif part is not step and self._perform(part) is None:
                passed, in_a_row = passed + 1, 0
            elif halves := part.halves():
                parts[:0] = halves
            else:
                in_a_row += 1
                alone.append(part)
        broken = in_a_row == MAX_ALONE and not passed
        for part in alone:
            self._fail(part.request_ids, "step", error, device=broken)
        for part in untried:
            self._fail(part.request_ids, "step", error, device=True)

    def _compute(self, step: Step) -> list[list[SampledToken]]:
        slices = step.slices()
        results = self._runner.run(slices)
        if [len(drawn) for drawn in results] != [len(part.draws) for part in slices]:
            raise RuntimeError("the runner's tokens do not answer the step's draws")
        return results

    def _copy_blocks(self) -> None:
        with self._lock:
            copies = self._scheduler.take_copies()
        if not copies:
            return
        try:
            self._runner.copy_blocks([(copy.source, copy.destination) for copy in copies])
        except Exception as error:
            self._fail({copy.request_id for copy in copies}, "copy", error)

    def _fail(self, request_ids: set[str], what: str, error: Exception, *, device: bool = False) -> None:
        """`device`: it is not for these requests that it failed."""
        log.error("a %s failed with %d requests in it", what, len(request_ids), exc_info=error)
        message = f"the model {what} failed; the worker's log says why"
        reason = (
            NoCapacity(message, code="engine_failing", retry_after_s=RETRY_AFTER_S)
            if device
            else InternalError(message)
        )
        with self._lock:
            self._scheduler.fail(request_ids, reason)

    def _publish(self) -> None:
        """Hands what happened to the event loop, in one call."""
        with self._lock:
            events, kv_events = self._scheduler.take_events(), self._pool.take_events()
            self._stats = self._scheduler.stats()
        if events or kv_events:
            self._tell(partial(self._deliver, events, kv_events))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            # The loop is closed, without close() before it: nobody is left to work for.
            self._commands.put(None)
