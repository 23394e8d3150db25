"""A soak's result as rows of the benchmarks' form: ours is the end, the peer is the beginning. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import Row, single

from .soak import Result
from .trend import Trend, trend
from .vitals import Vitals

WARM_UP_SHARE = 0.1  # of the run; what fills up has filled before it (soak.WARM_S)
SLOPE_BAR = 1.01  # faults row 47: at most 1 % an hour
LEAKS = ("tasks", "fds", "threads")
ONE_MORE = 1  # of each: a connection just being closed, a thread of gRPC's pool; every kill leaking one would be ten


def rows_of(result: Result) -> list[Row]:
    """Per process: memory's slope and peak; then what was left behind when all was idle again."""
    return [*_memory(result), *_leaks(result)]


def _memory(result: Result) -> Iterator[Row]:
    for name, points in result.series.items():
        found = steady(points)
        if found is not None:
            warm = ("once warm", found.start)
            later = found.start + found.per_hour
            yield single(f"{name} RSS", "MiB", later, warm, bar=SLOPE_BAR, metric="one hour later, at the slope seen")
            yield single(f"{name} RSS", "MiB", found.peak, warm, bar=None, metric="peak")


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
            began = ("before the load", getattr(before, what))
            bar = float(f"{1.0 + ONE_MORE / began[1]:.5g}")  # as ratios are rounded
            yield single(name, what, getattr(after, what), began, bar=bar, metric="idle again")
        began = ("before the load", before.held + 1)
        yield single(name, "held + 1", after.held + 1, began, bar=1.0, metric="blocks, leases, requests, connections")
