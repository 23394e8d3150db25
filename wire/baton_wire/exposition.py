"""prometheus-client metrics made from baton_api.metrics, and their text exposition."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from baton_api.metrics import BY_NAME, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One process's metrics, by the names of the table. Asking for a name of another table is a KeyError."""

    def __init__(self, table: Iterable[Metric], **constant_labels: str) -> None:
        self.registry = CollectorRegistry()
        self._constant = constant_labels
        self._made = {metric.name: _make(metric, self.registry) for metric in table}
        self._children = {name: self._child(name) for name in self._made}

    def counter(self, name: str, **labels: str) -> Counter:
        found = self._at(name, labels)
        assert isinstance(found, Counter)
        return found

    def gauge(self, name: str, **labels: str) -> Gauge:
        found = self._at(name, labels)
        assert isinstance(found, Gauge)
        return found

    def only(self, name: str, **labels: str) -> None:
        """Sets an info gauge to 1 for these labels and forgets those it had before."""
        self._made[name].clear()
        self.gauge(name, **labels).set(1)

    def histogram(self, name: str, **labels: str) -> Histogram:
        found = self._at(name, labels)
        assert isinstance(found, Histogram)
        return found

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _at(self, name: str, labels: dict[str, str]) -> Counter | Gauge | Histogram:
        return self._made[name].labels(**self._constants(name), **labels) if labels else self._children[name]

    def _child(self, name: str) -> Counter | Gauge | Histogram:
        wanted = BY_NAME[name].labels
        constants = self._constants(name)
        return self._made[name].labels(**constants) if wanted and len(constants) == len(wanted) else self._made[name]

    def _constants(self, name: str) -> dict[str, str]:
        return {label: self._constant[label] for label in BY_NAME[name].labels if label in self._constant}


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if metric.kind == "counter":
        return Counter(metric.name.removesuffix("_total"), metric.help, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels, registry=registry)
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
