"""A worker's metrics: engine gauges and counters at scrape time, requests and transfers as they end."""

from __future__ import annotations

from baton_api.metrics import KV, WORKER
from baton_api.timing import PullTimeline
from baton_engine.nouns import EngineStats
from baton_kv.observer import Side
from baton_wire.exposition import Metrics

# cumulative EngineStats field -> counter
COUNTERS = {
    "preemptions": "vllm:num_preemptions_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
}
SOURCES = {
    "prompt_tokens_computed": "local_compute",
    "prompt_tokens_cached": "local_cache_hit",
    "prompt_tokens_transferred": "external_kv_transfer",
}


class Telemetry:
    """One process's metrics. `model` is the label model_name."""

    def __init__(self, model: str) -> None:
        self.metrics = Metrics((*WORKER, *KV), model_name=model)
        self._seen: dict[str, int] = {}

    def exposition(self, stats: EngineStats, draining: bool) -> bytes:
        """The text for /metrics."""
        self.metrics.gauge("vllm:num_requests_running").set(stats.running)
        self.metrics.gauge("vllm:num_requests_waiting").set(stats.waiting)
        self.metrics.gauge("vllm:kv_cache_usage_perc").set(stats.kv_usage)
        self.metrics.gauge("baton_worker_draining").set(draining)
        for field, name in COUNTERS.items():
            self.metrics.counter(name).inc(self._grown(stats, field))
        for field, source in SOURCES.items():
            grown = self._grown(stats, field)
            self.metrics.counter("vllm:prompt_tokens_by_source_total", source=source).inc(grown)
            self.metrics.counter("vllm:prompt_tokens_total").inc(grown)
        return self.metrics.text()

    def leg_ended(self, leg: str, outcome: str) -> None:
        self.metrics.counter("baton_worker_requests_total", leg=leg, outcome=outcome).inc()

    def choice_ended(self, reason: str) -> None:
        self.metrics.counter("vllm:request_success_total", finished_reason=reason).inc()

    def recomputed(self, reason: str) -> None:
        self.metrics.counter("baton_worker_kv_recomputes_total", reason=reason).inc()

    def engine_failed(self, what: str) -> None:
        self.metrics.counter("baton_worker_engine_failures_total", what=what).inc()

    def first_token(self, seconds: float) -> None:
        self.metrics.histogram("vllm:time_to_first_token_seconds").observe(seconds)

    def next_token(self, seconds: float) -> None:
        self.metrics.histogram("vllm:inter_token_latency_seconds").observe(seconds)

    def request_ended(self, seconds: float) -> None:
        self.metrics.histogram("vllm:e2e_request_latency_seconds").observe(seconds)

    def started(self, queue_s: float | None, compute_s: float | None) -> None:
        """A leg's wait for blocks, and its prompt's computation if that was done here."""
        if queue_s is not None:
            self.metrics.histogram("vllm:request_queue_time_seconds").observe(queue_s)
        if compute_s is not None:
            self.metrics.histogram("vllm:request_prefill_time_seconds").observe(compute_s)

    # baton_kv.observer.KvObserver

    def on_transfer_end(self, side: Side, outcome: str, moved_bytes: int, timeline: PullTimeline | None) -> None:
        self.metrics.counter("baton_kv_transfers_total", side=side, outcome=outcome).inc()
        self.metrics.counter("baton_kv_transfer_bytes_total", side=side).inc(moved_bytes)
        if timeline is not None:
            self.metrics.histogram("baton_kv_transfer_seconds").observe(timeline.landed_s)
            self.metrics.histogram("baton_kv_transfer_exposed_seconds").observe(timeline.exposed_s)
            self.metrics.histogram("baton_kv_transfer_overlap_ratio").observe(timeline.overlap)

    def on_checksum_failures(self, blocks: int) -> None:
        self.metrics.counter("baton_kv_checksum_failures_total").inc(blocks)

    def on_leases(self, held: int) -> None:
        self.metrics.gauge("baton_kv_leases").set(held)

    def on_link(self, asked: str, negotiated: str) -> None:
        self.metrics.only("baton_kv_transport_info", asked=asked, negotiated=negotiated)

    def _grown(self, stats: EngineStats, field: str) -> int:
        now: int = getattr(stats, field)
        grown = now - self._seen.get(field, 0)
        self._seen[field] = now
        return grown
