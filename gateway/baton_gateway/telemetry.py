"""The gateway's metrics: plain numbers while requests run, Prometheus' families when somebody asks."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from baton_api.metrics import BY_NAME, GATEWAY, Metric

from .timeline import Timeline

CONTENT_TYPE = CONTENT_TYPE_LATEST
_LABEL = re.compile(r"[a-z0-9_.-]{1,48}")

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Series = tuple[str, ...]
"""A metric's name, then its labels' values."""
T = TypeVar("T")
_FOLD_AT = 1024
_SUMS = frozenset({"baton_gateway_in_flight"})  # gauges of which every process has its own part
_ENDED, _TOKENS, _FIRST_TOKEN = range(3)


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

    def add(self, other: Numbers, gauges: frozenset[str]) -> None:
        """Of the gauges only `gauges`: others are not sums."""
        for series, value in other.values.items():
            if BY_NAME[series[0]].kind == "counter" or series[0] in gauges:
                self.values[series] = self.values.get(series, 0.0) + value
        for series, counts in other.histograms.items():
            mine = self.histograms.get(series)
            self.histograms[series] = (
                list(counts) if mine is None else [a + b for a, b in zip(mine, counts, strict=True)]
            )


class Telemetry(Collector):
    """prometheus-client's own counters cost a lock and four calls each time: 15 us a request."""

    def __init__(self) -> None:
        self._numbers = Numbers()
        self._noted: list[tuple[Any, ...]] = []
        self.in_flight = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)

    @property
    def numbers(self) -> Numbers:
        """All there is up to now."""
        self._fold()
        self._numbers.values[("baton_gateway_in_flight",)] = self.in_flight
        return self._numbers

    def go_on_from(self, before: Numbers) -> None:
        """Counters of a process that this one replaces: they never go back. Gauges are not taken over."""
        self._numbers.add(before, gauges=frozenset())

    def first_token(self, model: str, timeline: Timeline) -> None:
        """An answer's head came: its time to first token, and where it went."""
        self._note((_FIRST_TOKEN, model, timeline.first_token_s, timeline.spans))

    def tokens(self, model: str, prompt: int | None, completion: int | None) -> None:
        """An answer is complete: how many tokens it read and wrote, None where nobody knows."""
        self._note((_TOKENS, model, prompt, completion))

    def ended(self, model: str, route: str, status: int, reason: str, taken_s: float | None) -> None:
        """A request is over, after `taken_s` if it is one whose time counts."""
        self.in_flight -= 1
        self._note((_ENDED, model, route, status, reason, taken_s))

    def _note(self, noted: tuple[Any, ...]) -> None:
        """Counted later, many at once: that costs a third of counting each on its way."""
        self._noted.append(noted)
        if len(self._noted) >= _FOLD_AT:
            self._fold()

    def _fold(self) -> None:
        noted, self._noted = self._noted, []
        count, observe = self.count, self.observe
        for kind, model, *said in noted:
            if kind == _ENDED:
                route, status, reason, taken_s = said
                count("baton_gateway_requests_total", route, str(status), reason)
                if status == 499:
                    count("baton_gateway_client_aborts_total")
                if taken_s is not None:
                    observe("baton_gateway_e2e_seconds", taken_s, model)
            elif kind == _TOKENS:
                for direction, amount in zip(("prompt", "completion"), said, strict=True):
                    if amount is not None:
                        count("baton_gateway_tokens_total", model, direction, amount=amount)
            else:
                first_token_s, spans = said
                observe("baton_gateway_ttft_seconds", first_token_s, model)
                for span in spans:
                    observe("baton_gateway_stage_seconds", span.duration_s, label(span.name))

    def count(self, *series: str, amount: float = 1) -> None:
        """A counter up, or a gauge up or down; `series` is the name, then the labels."""
        values = self._numbers.values
        values[series] = values.get(series, 0.0) + amount

    def observe(self, name: str, value: float, *labels: str) -> None:
        series = (name, *labels)
        counts = self._numbers.histograms.get(series)
        if counts is None:
            counts = self._numbers.histograms[series] = [0.0] * (len(BY_NAME[name].buckets) + 2)
        counts[bisect_left(BY_NAME[name].buckets, value)] += 1
        counts[-1] += value

    def set_all(self, name: str, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """A gauge's series are exactly these from now on."""
        mine = self._numbers.values
        for series in [series for series in mine if series[0] == name]:
            del mine[series]
        for labels, value in values:
            mine[name, *labels] = value

    def exposition(self, others: Iterable[Numbers] = ()) -> bytes:
        """Prometheus' text format, of this process and `others` together."""
        return generate_latest(_Sum(self.numbers, others))

    def collect(self) -> Iterator[Family]:
        return families(self.numbers)


class _Sum(CollectorRegistry):
    """Looks like a registry to generate_latest."""

    def __init__(self, own: Numbers, others: Iterable[Numbers]) -> None:
        super().__init__()
        self._sum = Numbers()
        self._sum.values = dict(own.values)
        self._sum.histograms = dict(own.histograms)
        for numbers in others:
            self._sum.add(numbers, _SUMS)

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
