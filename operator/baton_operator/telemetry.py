"""The operator's metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from baton_api.errors import KubernetesError
from baton_api.metrics import OPERATOR
from baton_wire.exposition import Metrics


class Telemetry:
    def __init__(self) -> None:
        self.metrics = Metrics(OPERATOR)
        self._reasons: set[str] = set()

    def reconciled(self, outcome: str, seconds: float) -> None:
        self.metrics.counter("baton_operator_reconciles_total", outcome=outcome).inc()
        self.metrics.histogram("baton_operator_reconcile_seconds").observe(seconds)

    def wrote(self, verb: str, kind: str, reason: str) -> None:
        self.metrics.counter("baton_operator_writes_total", verb=verb, kind=kind, reason=reason).inc()

    def error(self, what: str, error: KubernetesError) -> None:
        self.failed(what, error.code or error.reason)

    def failed(self, what: str, reason: str) -> None:
        self.metrics.counter("baton_operator_errors_total", what=what, reason=reason).inc()

    def lead(self, leading: bool) -> None:
        self.metrics.gauge("baton_operator_leader").set(leading)

    def exposition(self, queued: int, reasons: Iterable[str]) -> bytes:
        """The text for /metrics; `reasons` are of the Models' Ready conditions."""
        self.metrics.gauge("baton_operator_queue").set(queued)
        found = Counter(reasons)
        self._reasons |= set(found)
        for reason in self._reasons:
            self.metrics.gauge("baton_operator_models", reason=reason).set(found[reason])
        return self.metrics.text()
