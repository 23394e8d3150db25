"""The settings files of a Model's processes, rendered by the dataclasses that the processes parse. Pure.

Only what differs from the defaults is written, so that a release that adds a setting makes no new revision.
"""

from __future__ import annotations

import dataclasses
import json
from math import ceil
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import Model, PoolSpec
from baton_api.quantities import quantity
from baton_api.worker import Role
from baton_gateway.settings import GatewaySettings
from baton_worker.settings import ComputeSettings, PoolSettings, WorkerSettings

from .model_source import model_source


def worker_settings(model: Model, role: Role, pool: PoolSpec, revision: str) -> WorkerSettings:
    """Of every worker of a role; its own name and address come by the environment and win. Raises SettingError."""
    spec, kv, engine = model.spec, model.spec.kv, model.spec.engine
    return WorkerSettings(
        worker_id=names.pool_name(model.metadata.name, role),
        model_path=model_source(spec.source).path,
        secret_file=names.SECRET_FILE,
        model_name=model.name,
        revision=revision,
        host=names.LISTEN_HOST,
        advertise_host=names.workers_service_name(model.metadata.name),
        port=names.WORKER_HTTP_PORT,
        control_port=names.WORKER_CONTROL_PORT,
        kv=PoolSettings(
            transport=kv.transport,
            block_tokens=kv.block_tokens,
            num_blocks=kv.blocks,
            kv_bytes=kv.bytes,
            lease_s=kv.lease_seconds,
            heartbeat_s=kv.heartbeat_seconds,
            transfer_timeout_s=kv.transfer_timeout_seconds,
        ),
        engine=ComputeSettings(
            device=pool.device or engine.device,
            dtype=engine.dtype,
            threads=pool.threads or engine.threads or _cores(pool),
            max_batched_tokens=pool.max_batched_tokens or engine.max_batched_tokens,
            max_running=pool.max_running or engine.max_running,
            max_requests=engine.max_requests,
            max_model_len=engine.max_model_len,
        ),
        drain_s=spec.failure_policy.drain_seconds,
        request_timeout_s=spec.failure_policy.request_timeout_seconds,
    )


def _cores(pool: PoolSpec) -> int | None:
    """What the Pod may use: torch itself would count the node's cores."""
    cpu = pool.resources.limits.get("cpu", pool.resources.requests.get("cpu"))
    return None if cpu is None else max(1, min(1024, ceil(quantity(cpu))))


def gateway_settings(model: Model) -> GatewaySettings:
    """Raises SettingError."""
    spec, policy, routing = model.spec, model.spec.failure_policy, model.spec.routing
    return GatewaySettings(
        model_path=model_source(spec.source).path,
        discovery="kubernetes",
        model_name=model.metadata.name,
        served_name=model.spec.served_name,
        namespace=model.metadata.namespace,
        host=names.LISTEN_HOST,
        port=names.GATEWAY_HTTP_PORT,
        secret_file=names.SECRET_FILE,
        api_key_file=names.API_KEY_FILE,
        mode=spec.mode,
        on_prefill_failure=policy.on_prefill_failure,
        request_timeout_s=policy.request_timeout_seconds,
        drain_s=policy.drain_seconds,
        prefix_keys=routing.keys,
        min_remote_prefill_tokens=routing.min_remote_prefill_tokens,
        index_keys=routing.index_keys,
        max_in_flight=routing.max_in_flight,
        max_queued=routing.max_queued,
        max_connections=routing.max_connections,
        max_connections_per_address=routing.max_connections_per_address,
        processes=routing.processes,
    )


def as_file(settings: WorkerSettings | GatewaySettings) -> str:
    """The JSON that the process parses back to the same settings."""
    return json.dumps(_differing(settings), indent=2, sort_keys=True) + "\n"


def _differing(settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            value = _differing(value)
            if value:
                found[field.name] = value
        elif value != field.default:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found
