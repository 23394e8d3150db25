"""What goes into the engine and what comes out of it. Pure.

One request's life in the engine, by leg:

    AGGREGATED   submit -> Sampled* -> Finished
    PREFILL      submit -> Computed* -> PrefillDone -> (blocks stay pinned) -> release() -> Finished
    DECODE       submit -> Reserved -> (the worker pulls KV) -> land(first) -> Sampled* -> Finished
                                                          or -> recompute() -> Sampled* -> Finished
    any          abort() -> Finished;  an error -> Failed

Exactly one of Finished and Failed ends every request, and by then every block it held has been given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from baton_api.errors import BatonError
from baton_api.layout import KvLayout
from baton_api.sampling import FinishReason, SampledToken, SamplingParams


class Leg(StrEnum):
    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """`salt` is the tenant's 32-byte block-key salt; `sampling.seed` is set. Stop strings are not the engine's: the
    text side ends a choice with stop_choice().

    `emitted`: resume. The tokens that each of the n choices has already from another worker (it goes on after them;
    they are not Sampled again), None for a choice that is over. Empty: every choice begins."""

    request_id: str
    token_ids: Sequence[int]
    sampling: SamplingParams
    salt: bytes
    leg: Leg = Leg.AGGREGATED
    emitted: tuple[tuple[int, ...] | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Reserved:
    """DECODE: blocks for the whole prompt (partial last included) are allocated; the first `held_blocks` hold the
    right KV already. Blocks from `held_blocks` on are the destination of the pull and belong to this request until
    land(), recompute() or abort(); the engine neither reads nor reuses them before (invariant I5)."""

    block_ids: tuple[int, ...]
    held_blocks: int


@dataclass(frozen=True, slots=True)
class Computed:
    """PREFILL: the whole blocks `block_ids` (from the prompt's first block on, growing) hold final KV.
    Sent after each chunk; blocks found in the prefix cache come with the first."""

    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """PREFILL: all prompt KV is in `block_ids` (partial last included) and the first token of each of the n choices
    is drawn. Durations in seconds on the engine's clock."""

    block_ids: tuple[int, ...]
    first: tuple[SampledToken, ...]
    queue_s: float
    compute_s: float
    chunks: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """New tokens of one choice. `finish` is set with the choice's last tokens. The first one of a request carries
    `cached_tokens` (prompt tokens not computed here), `computed_tokens` (prompt tokens computed here), `queue_s` (from
    submit() until blocks were there) and, when the prompt was computed here, `compute_s` (how long that took)."""

    choice: int
    tokens: tuple[SampledToken, ...]
    finish: FinishReason | None = None
    cached_tokens: int | None = None
    computed_tokens: int | None = None
    queue_s: float | None = None
    compute_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is over and holds no block."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request is over, holds no block, and this is why."""

    error: BatonError


EngineEvent = Reserved | Computed | PrefillDone | Sampled | Finished | Failed
Sink = Callable[[EngineEvent], None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges as of the last step. Counters are cumulative. Tokens and blocks, not bytes."""

    running: int
    waiting: int
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    preemptions: int
    steps: int
    prompt_tokens_computed: int
    prompt_tokens_cached: int
    prompt_tokens_transferred: int
    generation_tokens: int
    prefix_queries: int
    prefix_hits: int

    @property
    def kv_usage(self) -> float:
        """Share of blocks that some request holds, in [0, 1]."""
        return 1.0 - self.free_blocks / self.total_blocks


@dataclass(frozen=True, slots=True)
class KvBlockStored:
    """Blocks became findable in the prefix cache, in order; `parent` is the key before the first (None: the root)."""

    keys: tuple[bytes, ...]
    parent: bytes | None


@dataclass(frozen=True, slots=True)
class KvBlockRemoved:
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class KvCleared:
    """Every block left the prefix cache."""


KvEvent = KvBlockStored | KvBlockRemoved | KvCleared


class BlockStore(Protocol):
    """The memory of a block pool, as the KV transfer sees it. Block ids are in [0, num_blocks)."""

    @property
    def layout(self) -> KvLayout: ...

    @property
    def num_blocks(self) -> int: ...

    def view(self, block_id: int) -> memoryview:
        """Writable host bytes of one block, `layout.block_bytes` long, format "B"."""

    def before_send(self, block_ids: Sequence[int]) -> None:
        """Makes the host bytes of these blocks current (device -> host). Nothing to do on a CPU."""

    def after_land(self, block_ids: Sequence[int]) -> None:
        """Takes over verified host bytes of these blocks (host -> device). Nothing to do on a CPU."""


class Engine(Protocol):
    """The engine as a worker sees it. Every method returns at once and is called on the event loop's thread; the
    steps run on a thread of the engine's own; sinks are called on the event loop's thread, in order."""

    @property
    def layout(self) -> KvLayout: ...

    @property
    def store(self) -> BlockStore: ...

    @property
    def max_model_len(self) -> int: ...

    def submit(self, request: GenerateRequest, sink: Sink) -> None:
        """Raises BadRequest / ContextLengthExceeded when the request can never run here."""

    def land(self, request_id: str, first: Sequence[SampledToken]) -> None:
        """DECODE: all reserved blocks hold verified KV; go on from the n first tokens (they are emitted as Sampled)."""

    def recompute(self, request_id: str) -> None:
        """DECODE: no KV will come; prefill here, from the blocks held."""

    def release(self, request_id: str) -> None:
        """PREFILL: the lease is over; unpin. Unknown ids are ignored."""

    def stop_choice(self, request_id: str, choice: int) -> None:
        """The text side found a stop string: generate no more for this choice. Unknown ids are ignored."""

    def pause(self, request_id: str) -> None:
        """Generate no more until resume(): nobody reads it. Its blocks may be taken. Unknown ids are ignored."""

    def resume(self, request_id: str) -> None: ...

    def abort(self, request_id: str) -> None:
        """End the request and free its blocks. Unknown ids are ignored."""

    def stats(self) -> EngineStats: ...

    def on_kv_events(self, sink: Callable[[Sequence[KvEvent]], None]) -> None:
        """`sink` hears of every change of the prefix cache from now on, on the event loop's thread."""

    def on_failure(self, sink: Callable[[str], None]) -> None:
        """`sink` hears, on the event loop's thread, of every "step" that failed (once, whatever became of its parts),
        and when the engine "stopped" for good."""

    def cached_keys(self) -> list[tuple[bytes, bytes | None]]:
        """A snapshot of the prefix cache: (key, parent key) with parents before children."""

    def check_invariants(self) -> None:
        """Raises AssertionError when blocks do not add up (invariant I3)."""

    async def close(self) -> None: ...
