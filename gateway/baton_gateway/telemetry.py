"""The gateway's metrics, made from the one table, in a registry of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from baton_api.metrics import GATEWAY, Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST
_LABEL = re.compile(r"[a-z0-9_.-]{1,48}")


def label(text: str) -> str:
    """`text` if it may be a label's value; what another process made up is "other", so that series stay few."""
    return text if _LABEL.fullmatch(text) else "other"


class Telemetry:
    """Children are kept: looking one up costs more than counting."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics = {metric.name: _make(metric, self.registry) for metric in GATEWAY}
        self._children: dict[tuple[str, ...], Any] = {}

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        self._child(name, labels).inc(amount)

    def observe(self, name: str, value: float, *labels: str) -> None:
        self._child(name, labels).observe(value)

    def move(self, name: str, by: int) -> None:
        """A gauge without labels, up or down."""
        self._child(name, ()).inc(by)

    def set_all(self, name: str, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """A gauge's series are exactly these from now on."""
        metric = self._metrics[name]
        metric.clear()
        for labels, value in values:
            metric.labels(*labels).set(value)

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _child(self, name: str, labels: tuple[str, ...]) -> Any:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            metric = self._metrics[name]
            child = self._children[key] = metric.labels(*labels) if labels else metric
        return child


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.help, metric.labels, registry=registry)
