"""From a Model to processes: every setting reaches the process that acts on it, and what none acts on is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from baton_api.crd import API_VERSION, KIND, Model, parse_model
from baton_api.errors import SettingError
from baton_api.settings import parse
from baton_api.worker import Role
from baton_cli.compose import Place, Process, compose, notices
from baton_gateway.settings import GatewaySettings
from baton_worker.settings import WorkerSettings

PLACE = Place("/models/m", "/run/fleet.json", "/run/secret", "/run/api-key", host="0.0.0.0", port=8123)


def model(**spec: Any) -> Model:
    return parse_model(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "m"}, "spec": {"source": "/models/m", **spec}}
    )


def composed(**spec: Any) -> dict[str, Process]:
    return {process.name: process for process in compose(model(**spec), PLACE)}


def worker(name: str, **spec: Any) -> WorkerSettings:
    return parse(WorkerSettings, composed(**spec)[name].settings)


def gateway(**spec: Any) -> GatewaySettings:
    return parse(GatewaySettings, composed(**spec)["gateway"].settings)


def test_the_smallest_model_is_one_prefill_one_decode_and_the_gateway() -> None:
    found = composed()
    assert [(p.name, p.module, p.role) for p in found.values()] == [
        ("prefill-0", "baton_prefill", Role.PREFILL),
        ("decode-0", "baton_decode", Role.DECODE),
        ("gateway", "baton_gateway", None),
    ]


def test_every_replica_is_a_process_of_its_own_name() -> None:
    names = set(composed(prefill={"replicas": 2}, decode={"replicas": 3}))
    assert names == {"prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2", "gateway"}
    assert worker("decode-2", decode={"replicas": 3}).worker_id == "decode-2"


def test_an_aggregated_model_has_decode_workers_only() -> None:
    assert set(composed(mode="aggregated")) == {"decode-0", "gateway"}


@pytest.mark.parametrize(
    ("spec", "path", "value"),
    [
        ({"servedName": "other"}, ("model_name",), "other"),
        ({}, ("model_name",), "m"),
        ({}, ("model_path",), "/models/m"),
        ({}, ("secret_file",), "/run/secret"),
        ({}, ("host",), "127.0.0.1"),
        ({"kv": {"transport": "tcp"}}, ("kv", "transport"), "tcp"),
        ({"kv": {"blockTokens": 8}}, ("kv", "block_tokens"), 8),
        ({"kv": {"blocks": 99}}, ("kv", "num_blocks"), 99),
        ({"kv": {"bytes": 2**20}}, ("kv", "kv_bytes"), 2**20),
        ({"kv": {"leaseSeconds": 3}}, ("kv", "lease_s"), 3.0),
        ({"kv": {"heartbeatSeconds": 1}}, ("kv", "heartbeat_s"), 1.0),
        ({"kv": {"transferTimeoutSeconds": 7}}, ("kv", "transfer_timeout_s"), 7.0),
        ({"engine": {"device": "cuda:1"}}, ("engine", "device"), "cuda:1"),
        ({"engine": {"device": "cpu"}, "decode": {"device": "cuda"}}, ("engine", "device"), "cuda"),
        ({"engine": {"dtype": "float32"}}, ("engine", "dtype"), "float32"),
        ({"engine": {"threads": 2}}, ("engine", "threads"), 2),
        ({"engine": {"maxBatchedTokens": 64}}, ("engine", "max_batched_tokens"), 64),
        ({"decode": {"maxBatchedTokens": 96}}, ("engine", "max_batched_tokens"), 96),
        ({"prefill": {"maxBatchedTokens": 96}}, ("engine", "max_batched_tokens"), 512),
        ({"decode": {"maxRunning": 4}}, ("engine", "max_running"), 4),
        ({"engine": {"maxRequests": 9}}, ("engine", "max_requests"), 9),
        ({"engine": {"maxModelLen": 128}}, ("engine", "max_model_len"), 128),
        ({"failurePolicy": {"drainSeconds": 5}}, ("drain_s",), 5.0),
        ({"failurePolicy": {"requestTimeoutSeconds": 5}}, ("request_timeout_s",), 5.0),
    ],
)
def test_a_worker_gets_what_the_model_says(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    found: Any = worker("decode-0", **spec)
    for name in path:
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ({}, "fleet_file", "/run/fleet.json"),
        ({}, "api_key_file", "/run/api-key"),
        ({}, "secret_file", "/run/secret"),
        ({}, "model_path", "/models/m"),
        ({}, "host", "0.0.0.0"),
        ({}, "port", 8123),
        ({}, "auth", True),
        ({"mode": "disaggregated"}, "mode", "disaggregated"),
        ({"failurePolicy": {"onPrefillFailure": "fail"}}, "on_prefill_failure", "fail"),
        ({"failurePolicy": {"requestTimeoutSeconds": 5}}, "request_timeout_s", 5.0),
        ({"failurePolicy": {"drainSeconds": 5}}, "drain_s", 5.0),
        ({"routing": {"minRemotePrefillTokens": 0}}, "min_remote_prefill_tokens", 0),
        ({"routing": {"indexKeys": 5}}, "index_keys", 5),
        ({"mode": "aggregated", "routing": {"keys": "text"}}, "prefix_keys", "text"),
        ({"routing": {"maxInFlight": 5}}, "max_in_flight", 5),
        ({"routing": {"maxQueued": 5}}, "max_queued", 5),
        ({"routing": {"processes": 2}}, "processes", 2),
        ({"routing": {"maxConnections": 5}}, "max_connections", 5),
        ({"routing": {"maxConnectionsPerAddress": 5}}, "max_connections_per_address", 5),
    ],
)
def test_the_gateway_gets_what_the_model_says(spec: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(gateway(**spec), field) == value


def test_environment_of_the_engine_goes_to_workers_only() -> None:
    found = composed(engine={"env": {"A": "b"}})
    assert [dict(process.env) for process in found.values()] == [{"A": "b"}, {"A": "b"}, {}]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"source": "hf://org/name@main"}, "spec.source"),
        ({"engine": {"type": "vllm"}}, "spec.engine.type"),
        ({"engine": {"args": ["--x"]}}, "spec.engine.args"),
        ({"kv": {"dtype": "bfloat16"}}, "spec.kv.dtype"),
        ({"kv": {"tiers": [{"name": "host", "bytes": 1}]}}, "spec.kv.tiers"),
        ({"prefill": {"replicas": 0}, "decode": {"replicas": 0}}, "spec.decode.replicas"),
        ({"prefill": {"parallelism": {"tensor": 2}}}, "spec.prefill.parallelism"),
        ({"decode": {"parallelism": {"expert": 2}}}, "spec.decode.parallelism"),
    ],
)
def test_what_would_be_served_otherwise_than_asked_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as refused:
        composed(**spec)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"slo": {"ttft": {"targetMs": 300}}}, "spec.slo"),
        ({"autoscaling": {"scaleDownDelaySeconds": 1}}, "spec.autoscaling"),
        ({"rollout": {"maxSurge": 2}}, "spec.rollout"),
        ({"engine": {"image": "ghcr.io/x/y:1"}}, "spec.engine.image"),
        ({"decode": {"resources": {"limits": {"cpu": 1}}}}, "spec.decode.resources"),
        ({"prefill": {"minReplicas": 0}}, "spec.prefill.minReplicas"),
        ({"decode": {"maxReplicas": 3}}, "spec.decode.maxReplicas"),
    ],
)
def test_what_is_for_a_cluster_only_is_said_and_does_not_stop_the_start(spec: dict[str, Any], field: str) -> None:
    assert [notice.split(" ")[0] for notice in notices(model(**spec).spec)] == [field]
    assert composed(**spec)


def test_nothing_is_said_of_defaults_written_out() -> None:
    spec = {"decode": {"replicas": 2, "minReplicas": 2, "maxReplicas": 2}, "rollout": {"maxSurge": 1}}
    assert list(notices(model(**spec).spec)) == []


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 4), (9, 4)])
def test_workers_share_the_cores_unless_the_model_says_how_many_threads(cores: int, threads: int) -> None:
    spread = compose(model(), replace(PLACE, cores=cores))
    assert [process.settings["engine"]["threads"] for process in spread[:2]] == [threads, threads]
