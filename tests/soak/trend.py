"""A series over time as a straight line that outliers do not bend. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Trend:
    """`start` is the line's value at the first point; `per_hour` its slope, in the series' unit; points at seconds."""

    start: float
    per_hour: float
    peak: float


def trend(points: Sequence[Point]) -> Trend:
    """Theil and Sen: the median of the slopes between all pairs. Raises ValueError for fewer than two moments."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 > x1]
    if not slopes:
        raise ValueError("a trend needs two moments")
    slope, begin_s = median(slopes), points[0][0]
    start = median(y - slope * (x - begin_s) for x, y in points)
    return Trend(start, slope * 3600.0, max(y for _, y in points))
