"""The exact split of a request's time to first token, and its Server-Timing form (W3C Server Timing). Pure.

Each process measures durations on its own monotonic clock; nothing here compares clocks of two hosts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """One named part of TTFT. `desc` carries what is not a duration (bytes, transport)."""

    name: str
    duration_s: float
    desc: str = ""


@dataclass(frozen=True, slots=True)
class PrefillTimeline:
    """What a prefill worker reports of one leg, seconds on its own clock, relative to the leg's arrival.

    `queue_s` until the first chunk was scheduled; `compute_s` from there until the first token was drawn;
    `chunks` how many steps the prompt took; `cached_tokens` the prompt tokens found in its prefix cache.
    """

    queue_s: float
    compute_s: float
    chunks: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class PullTimeline:
    """What a decode worker measures of one pull, seconds on its own clock since pull() was called.

    `prefill_done_s` is when the prefill leg's end was heard, `landed_s` when the last block had landed and verified;
    `bytes_before_done` landed while prefill was still computing (the overlap).
    """

    prefill_done_s: float
    landed_s: float
    total_bytes: int
    bytes_before_done: int
    blocks: int
    transport: str

    @property
    def exposed_s(self) -> float:
        """Transfer time that prefill did not hide."""
        return max(0.0, self.landed_s - self.prefill_done_s)

    @property
    def overlap(self) -> float:
        """Share of the bytes that landed before prefill ended, in [0, 1]; 1 when there was nothing to move."""
        return self.bytes_before_done / self.total_bytes if self.total_bytes else 1.0


def to_server_timing(spans: Iterable[Span]) -> str:
    """`queue;dur=1.250, transfer;dur=0.800;desc="524288 B ucx/tcp"`: milliseconds, as the W3C header has them."""
    return ", ".join(
        [
            f'{name};dur={duration_s * 1e3:.3f};desc="{desc}"' if desc else f"{name};dur={duration_s * 1e3:.3f}"
            for name, duration_s, desc in spans
        ]
    )


def from_server_timing(value: str) -> tuple[Span, ...]:
    """Reads what `to_server_timing` wrote; entries it cannot read are left out (a foreign worker's header)."""
    if not value:
        return ()
    return tuple([span for part in value.split(",") if (span := _span(part.strip())) is not None])


def _span(part: str) -> Span | None:
    name, *fields = part.split(";")
    values = dict(field.split("=", 1) for field in fields if "=" in field)
    try:
        return Span(name, float(values.get("dur", "0")) / 1e3, values.get("desc", "").strip('"'))
    except ValueError:
        return None
