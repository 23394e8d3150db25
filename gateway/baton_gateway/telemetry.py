"""The gateway's metrics: plain numbers while requests run, Prometheus' families when somebody asks."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from baton_api.metrics import BY_NAME, GATEWAY, Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST
_LABEL = re.compile(r"[a-z0-9_.-]{1,48}")

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Series = tuple[str, ...]
"""A metric's name, then its labels' values."""
T = TypeVar("T")


@functools.lru_cache(maxsize=1024)
def label(text: str) -> str:
    """`text` if it may be a label's value; what another process made up is "other", so that series stay few."""
    return text if _LABEL.fullmatch(text) else "other"


class Numbers:
    """The values of one process: counters and gauges by series, histograms as their buckets' counts (not cumulative;
    the last one is above all bounds), then the sum."""

    __slots__ = ("histograms", "values")

    def __init__(self) -> None:
        self.values: dict[Series, float] = {}
        self.histograms: dict[Series, list[float]] = {}

    def add(self, other: Numbers) -> None:
        for series, value in other.values.items():
            self.values[series] = self.values.get(series, 0.0) + value
        for series, counts in other.histograms.items():
            mine = self.histograms.get(series)
            self.histograms[series] = (
                list(counts) if mine is None else [a + b for a, b in zip(mine, counts, strict=True)]
            )


class Telemetry(Collector):
    """prometheus-client's own counters cost a lock and four calls each time: 15 us a request."""

    def __init__(self) -> None:
        self.numbers = Numbers()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def count(self, *series: str, amount: float = 1) -> None:
        """A counter up, or a gauge up or down; `series` is the name, then the labels."""
        values = self.numbers.values
        values[series] = values.get(series, 0.0) + amount

    def observe(self, name: str, value: float, *labels: str) -> None:
        series = (name, *labels)
        counts = self.numbers.histograms.get(series)
        if counts is None:
            counts = self.numbers.histograms[series] = [0.0] * (len(BY_NAME[name].buckets) + 2)
        counts[bisect_left(BY_NAME[name].buckets, value)] += 1
        counts[-1] += value

    def set(self, name: str, value: float) -> None:
        """A gauge without labels."""
        self.numbers.values[(name,)] = value

    def set_all(self, name: str, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """A gauge's series are exactly these from now on."""
        mine = self.numbers.values
        for series in [series for series in mine if series[0] == name]:
            del mine[series]
        for labels, value in values:
            mine[name, *labels] = value

    def exposition(self, others: Iterable[Numbers] = ()) -> bytes:
        """Prometheus' text format, of this process and `others` together."""
        return generate_latest(_Sum(self.numbers, *others))

    def collect(self) -> Iterator[Family]:
        return families(self.numbers)


class _Sum(CollectorRegistry):
    """Looks like a registry to generate_latest."""

    def __init__(self, *parts: Numbers) -> None:
        super().__init__()
        self._sum = Numbers()
        for numbers in parts:
            self._sum.add(numbers)

    def collect(self) -> Iterator[Family]:
        return families(self._sum)


def families(numbers: Numbers) -> Iterator[Family]:
    """Every metric of the table; those without labels also when nothing was counted yet."""
    for metric in GATEWAY:
        if metric.kind == "histogram":
            yield _histogram(metric, numbers)
            continue
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=metric.labels)
        for series, value in _of(metric, numbers.values, 0.0):
            family.add_metric(series[1:], value)
        yield family


def _histogram(metric: Metric, numbers: Numbers) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
    for series, counts in _of(metric, numbers.histograms, [0.0] * (len(bounds) + 1)):
        total, buckets = 0.0, []
        for bound, count in zip(bounds, counts, strict=False):
            total += count
            buckets.append((bound, total))
        family.add_metric(series[1:], buckets, counts[-1])
    return family


def _of(metric: Metric, values: dict[Series, T], nothing: T) -> list[tuple[Series, T]]:
    found = [(series, value) for series, value in values.items() if series[0] == metric.name]
    return found or ([] if metric.labels else [((metric.name,), nothing)])
