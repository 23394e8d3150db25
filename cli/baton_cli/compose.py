"""Which local processes serve a Model, with which settings; what of the Model they cannot do. Pure.

The only place where the resource's fields meet the settings of workers and gateway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from baton_api.crd import (
    AutoscalingSpec,
    Model,
    ModelSpec,
    ParallelismSpec,
    PoolSpec,
    ResourcesSpec,
    RolloutSpec,
    SloSpec,
)
from baton_api.errors import SettingError
from baton_api.worker import Role

MODULES = {Role.PREFILL: "baton_prefill", Role.DECODE: "baton_decode"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the processes find things: absolute paths. `port` is the gateway's, 0 for a free one. `cores` are what the
    workers share when the Model does not say how many threads each takes."""

    model_path: str
    fleet_file: str
    secret_file: str
    api_key_file: str
    host: str = "127.0.0.1"
    port: int = 8000
    cores: int = 1


@dataclass(frozen=True, slots=True)
class Process:
    """`python -m module --settings FILE`; `role` None is the gateway."""

    name: str
    module: str
    settings: dict[str, Any]
    role: Role | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def compose(model: Model, place: Place) -> tuple[Process, ...]:
    """The workers, then the gateway. Raises SettingError for what the local runtime cannot do."""
    for refusal in refusals(model.spec):
        raise refusal
    pools = ((Role.PREFILL, model.spec.prefill_pool), (Role.DECODE, model.spec.decode))
    workers = (_worker(model, place, role, pool, index) for role, pool in pools for index in range(pool.replicas))
    return (*workers, _gateway(model, place))


def _worker(model: Model, place: Place, role: Role, pool: PoolSpec, index: int) -> Process:
    name = f"{role.value}-{index}"
    spec = model.spec
    settings = {
        "worker_id": name,
        "model_path": place.model_path,
        "secret_file": place.secret_file,
        "model_name": model.name,
        "host": "127.0.0.1",
        "kv": _kv(spec),
        "engine": _engine(spec, pool, place.cores),
        "drain_s": spec.failure_policy.drain_seconds,
        "request_timeout_s": spec.failure_policy.request_timeout_seconds,
    }
    return Process(name, MODULES[role], settings, role, spec.engine.env)


def _kv(spec: ModelSpec) -> dict[str, Any]:
    kv = spec.kv
    return {
        "transport": kv.transport,
        "block_tokens": kv.block_tokens,
        "num_blocks": kv.blocks,
        "kv_bytes": kv.bytes,
        "lease_s": kv.lease_seconds,
        "heartbeat_s": kv.heartbeat_seconds,
        "transfer_timeout_s": kv.transfer_timeout_seconds,
    }


def _engine(spec: ModelSpec, pool: PoolSpec, cores: int) -> dict[str, Any]:
    engine = spec.engine
    fair_share = max(1, cores // (spec.prefill_pool.replicas + spec.decode.replicas))
    return {
        "device": pool.device or engine.device,
        "dtype": engine.dtype,
        "threads": pool.threads or engine.threads or fair_share,
        "max_batched_tokens": pool.max_batched_tokens or engine.max_batched_tokens,
        "max_running": pool.max_running or engine.max_running,
        "max_requests": engine.max_requests,
        "max_model_len": engine.max_model_len,
    }


def _gateway(model: Model, place: Place) -> Process:
    spec, policy, routing = model.spec, model.spec.failure_policy, model.spec.routing
    settings = {
        "fleet_file": place.fleet_file,
        "model_path": place.model_path,
        "secret_file": place.secret_file,
        "api_key_file": place.api_key_file,
        "host": place.host,
        "port": place.port,
        "mode": spec.mode,
        "on_prefill_failure": policy.on_prefill_failure,
        "request_timeout_s": policy.request_timeout_seconds,
        "drain_s": policy.drain_seconds,
        "prefix_keys": routing.keys,
        "min_remote_prefill_tokens": routing.min_remote_prefill_tokens,
        "index_keys": routing.index_keys,
        "max_in_flight": routing.max_in_flight,
        "max_queued": routing.max_queued,
        "max_connections": routing.max_connections,
        "max_connections_per_address": routing.max_connections_per_address,
        "processes": routing.processes,
    }
    return Process("gateway", "baton_gateway", settings)


def refusals(spec: ModelSpec) -> Iterator[SettingError]:
    """What would have to be served otherwise than it was asked for: that is never done quietly."""
    engine, kv = spec.engine, spec.kv
    if "://" in spec.source:
        yield SettingError(
            "spec.source", spec.source, "is not read by `baton up`", "download it and give the directory"
        )
    if engine.type != "native":
        yield SettingError("spec.engine.type", engine.type, "is not run by `baton up`", "use native")
    if engine.args:
        yield SettingError("spec.engine.args", list(engine.args), "mean nothing to engine native", "leave them out")
    if kv.dtype not in ("auto", engine.dtype):
        yield SettingError("spec.kv.dtype", kv.dtype, "differs from the compute type", "use auto")
    if kv.tiers:
        yield SettingError("spec.kv.tiers", len(kv.tiers), "tiers: there are none here yet", "leave them out")
    if spec.decode.replicas < 1:
        yield SettingError("spec.decode.replicas", spec.decode.replicas, "serves nothing", "use 1 or more")
    for path, pool in _pools(spec):
        if pool.parallelism != ParallelismSpec():
            fix = "leave it out; more replicas are possible"
            yield SettingError(f"{path}.parallelism", pool.parallelism, "needs more than one device per worker", fix)


def notices(spec: ModelSpec) -> Iterator[str]:
    """What is for a cluster and has no effect here, one sentence each, to be shown at the start."""
    cluster_only = {
        "spec.slo": spec.slo != SloSpec(),
        "spec.autoscaling": spec.autoscaling != AutoscalingSpec(),
        "spec.rollout": spec.rollout != RolloutSpec(),
        "spec.engine.image": bool(spec.engine.image),
    }
    for path, pool in _pools(spec):
        cluster_only[f"{path}.resources"] = pool.resources != ResourcesSpec()
        cluster_only[f"{path}.minReplicas"] = pool.min_replicas not in (None, pool.replicas)
        cluster_only[f"{path}.maxReplicas"] = pool.max_replicas not in (None, pool.replicas)
    for path, given in cluster_only.items():
        if given:
            yield f"{path} has no effect in `baton up`: it is for a cluster; pools keep their replicas here"


def _pools(spec: ModelSpec) -> tuple[tuple[str, PoolSpec], tuple[str, PoolSpec]]:
    return ("spec.prefill", spec.prefill_pool), ("spec.decode", spec.decode)
