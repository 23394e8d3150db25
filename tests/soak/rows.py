"""A soak's result as rows of the benchmarks' form: ours is the end, the peer is the beginning. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bench.rows import Row

from .soak import Result
from .trend import Trend, trend
from .vitals import Vitals

WARM_UP_SHARE = 0.25
SLOPE_BAR = 1.01  # faults row 47: at most 1 % an hour
LEAKS = ("tasks", "fds", "threads")


def rows_of(result: Result) -> list[Row]:
    """Per process: memory's slope and peak; then what was left behind when all was idle again."""
    return [*_memory(result), *_leaks(result)]


def _memory(result: Result) -> Iterator[Row]:
    for name, points in result.series.items():
        found = steady(points)
        if found is not None:
            after = "MiB after one hour at this slope"
            yield _row(f"{name} RSS slope", after, "MiB", found.start + found.per_hour, found.start, SLOPE_BAR)
            yield _row(f"{name} RSS peak", "peak", "MiB", found.peak, found.start, None)


def steady(points: list[tuple[float, Vitals]]) -> Trend | None:
    """Of the last incarnation, once warm; None when it did not live through most of the run."""
    begin_s = points[-1][0] * WARM_UP_SHARE
    last = points[-1][1].pid
    own = [(at_s, one.rss_mib) for at_s, one in points if one.pid == last and at_s >= begin_s]
    return trend(own) if own and own[0][0] - begin_s < 30.0 and len(own) > 2 else None


def _leaks(result: Result) -> Iterator[Row]:
    for name, after in result.after.items():
        before = result.before[name]
        for what in LEAKS:
            yield _row(f"{name} {what}", "idle again", "count", getattr(after, what), getattr(before, what), 1.0)
        yield _row(f"{name} held", "blocks + leases + requests + 1", "count", after.held + 1, before.held + 1, 1.0)


def _row(case: str, metric: str, unit: str, ours: float, began: float, bar: float | None) -> Row:
    ratio, load = ours / began, round(os.getloadavg()[0], 2)
    mine, theirs, same = float(f"{ours:.5g}"), float(f"{began:.5g}"), float(f"{ratio:.5g}")
    return Row(
        case, metric, unit, mine, "at the beginning", theirs, same, bar, None, "lower",
        (mine, mine), (theirs, theirs), (same, same), 1, load,
    )  # fmt: skip
