"""Alternating rounds and their statistics. Pure.

The machine is shared, so its speed drifts: what is compared runs in the same round, in an order that turns every round,
and a ratio is the median of the rounds' own ratios, not the ratio of two medians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one quantity over the rounds; unit as the samples'."""

    median: float
    low: float
    high: float
    rounds: int


def spread(samples: Sequence[float]) -> Spread:
    """Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    return Spread(median(samples), min(samples), max(samples), len(samples))


def turned(contenders: Sequence[T], round_number: int) -> list[T]:
    """The order of one round: each contender is first, second, ... equally often."""
    shift = round_number % len(contenders)
    return [*contenders[shift:], *contenders[:shift]]


def paired(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """ours / peer, round by round. Raises ValueError when the rounds do not match or a peer's sample is 0."""
    if any(sample == 0 for sample in peer):
        raise ValueError("a peer's sample is 0")
    return spread([mine / theirs for mine, theirs in zip(ours, peer, strict=True)])
