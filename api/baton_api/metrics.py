"""Every metric Baton exports: name, kind, unit, labels, buckets, defined once. Pure.

Components create their metrics from this table only, and dashboards and alerts are checked against it. Workers repeat
vLLM's names (with colons) so that existing dashboards, autoscalers and endpoint pickers work unmodified.
Sources of the names and buckets: vLLM v1/metrics/loggers.py; OpenMetrics naming rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TPOT_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TRANSFER_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SHARE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

_MODEL = ("model_name",)

WORKER = (
    Metric("vllm:num_requests_running", "gauge", "Requests in the running batch.", _MODEL),
    Metric("vllm:num_requests_waiting", "gauge", "Requests waiting to be scheduled.", _MODEL),
    Metric("vllm:kv_cache_usage_perc", "gauge", "KV blocks in use, 0 to 1.", _MODEL),
    Metric("vllm:num_preemptions_total", "counter", "Requests preempted for lack of blocks.", _MODEL),
    Metric("vllm:prompt_tokens_total", "counter", "Prompt tokens of requests that started.", _MODEL),
    Metric(
        "vllm:prompt_tokens_by_source_total",
        "counter",
        "Prompt tokens by where their KV came from.",
        (*_MODEL, "source"),
    ),
    Metric("vllm:generation_tokens_total", "counter", "Tokens generated.", _MODEL),
    Metric("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", _MODEL),
    Metric("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", _MODEL),
    Metric("vllm:request_success_total", "counter", "Requests that ended, by reason.", (*_MODEL, "finished_reason")),
    Metric("vllm:time_to_first_token_seconds", "histogram", "Time to first token.", _MODEL, TTFT_BUCKETS_S),
    Metric("vllm:inter_token_latency_seconds", "histogram", "Time between tokens.", _MODEL, TPOT_BUCKETS_S),
    Metric("vllm:e2e_request_latency_seconds", "histogram", "Whole request.", _MODEL, E2E_BUCKETS_S),
    Metric("vllm:request_queue_time_seconds", "histogram", "Waiting for blocks, per leg.", _MODEL, E2E_BUCKETS_S),
    Metric(
        "vllm:request_prefill_time_seconds",
        "histogram",
        "Computing the prompt, where done.",
        _MODEL,
        E2E_BUCKETS_S,
    ),
    Metric("baton_worker_requests_total", "counter", "Legs by kind and outcome reason.", ("leg", "outcome")),
    Metric("baton_worker_draining", "gauge", "1 while the worker drains."),
    Metric("baton_worker_tasks", "gauge", "asyncio tasks alive."),
    Metric("baton_worker_engine_failures_total", "counter", "Failed steps, and the engine's end.", ("what",)),
    Metric("baton_worker_kv_recomputes_total", "counter", "Prompts prefilled on decode, by why.", ("reason",)),
)

KV = (
    Metric("baton_kv_transport_info", "gauge", "1 for the transport in use.", ("asked", "negotiated")),
    Metric("baton_kv_transfers_total", "counter", "Transfers by side and outcome.", ("side", "outcome")),
    Metric("baton_kv_transfer_bytes_total", "counter", "KV bytes moved.", ("side",)),
    Metric("baton_kv_transfer_seconds", "histogram", "Pull, from open to verified.", (), TRANSFER_BUCKETS_S),
    Metric("baton_kv_transfer_exposed_seconds", "histogram", "Not hidden by prefill.", (), TRANSFER_BUCKETS_S),
    Metric("baton_kv_transfer_overlap_ratio", "histogram", "Share landed before prefill ended.", (), SHARE_BUCKETS),
    Metric("baton_kv_leases", "gauge", "Leases held."),
    Metric("baton_kv_checksum_failures_total", "counter", "Blocks whose checksum did not match."),
)

GATEWAY = (
    Metric("baton_gateway_requests_total", "counter", "Requests by outcome.", ("route", "code", "reason")),
    Metric("baton_gateway_in_flight", "gauge", "Requests being served."),
    Metric("baton_gateway_tasks", "gauge", "asyncio tasks alive."),
    Metric("baton_gateway_connections", "gauge", "Client connections open."),
    Metric("baton_gateway_unread_total", "counter", "Refused by the HTTP server before any route.", ("reason",)),
    Metric("baton_gateway_ttft_seconds", "histogram", "Time to first token at the gateway.", _MODEL, TTFT_BUCKETS_S),
    Metric("baton_gateway_e2e_seconds", "histogram", "Whole request at the gateway.", _MODEL, E2E_BUCKETS_S),
    Metric("baton_gateway_stage_seconds", "histogram", "Part of TTFT by stage.", ("stage",), TTFT_BUCKETS_S),
    Metric("baton_gateway_tokens_total", "counter", "Tokens by direction.", (*_MODEL, "direction")),
    Metric("baton_gateway_routes_total", "counter", "Routing decisions by reason.", ("reason",)),
    Metric("baton_gateway_refusals_total", "counter", "Requests refused, by reason.", ("reason",)),
    Metric("baton_gateway_retries_total", "counter", "Legs sent again, by leg and reason.", ("leg", "reason")),
    Metric(
        "baton_gateway_resumes_total",
        "counter",
        "Answers broken off, by why and outcome.",
        ("reason", "outcome"),
    ),
    Metric("baton_gateway_resume_seconds", "histogram", "From a break to the next worker's head.", (), TTFT_BUCKETS_S),
    Metric("baton_gateway_client_aborts_total", "counter", "Clients gone before the end."),
    Metric("baton_gateway_discovery_errors_total", "counter", "Looks at the cluster that failed, by why.", ("reason",)),
    Metric("baton_gateway_workers", "gauge", "Workers known, by role and state.", ("role", "state")),
)

RECONCILE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

OPERATOR = (
    Metric("baton_operator_reconciles_total", "counter", "Looks at a Model, by outcome.", ("outcome",)),
    Metric("baton_operator_reconcile_seconds", "histogram", "Length of a look.", (), RECONCILE_BUCKETS_S),
    Metric("baton_operator_writes_total", "counter", "Writes planned and done, by why.", ("verb", "kind", "reason")),
    Metric("baton_operator_errors_total", "counter", "API requests that failed.", ("what", "reason")),
    Metric("baton_operator_queue", "gauge", "Models waiting to be looked at."),
    Metric("baton_operator_models", "gauge", "Models by their Ready condition's reason.", ("reason",)),
    Metric("baton_operator_leader", "gauge", "1 while this replica holds the Lease."),
)

ALL = (*WORKER, *KV, *GATEWAY, *OPERATOR)
BY_NAME = {metric.name: metric for metric in ALL}
