"""The `Model` resource, group baton.dev, v1alpha1: what a user writes, parsed strictly. Pure.

One field, `spec.source`, is required; every other has a default that works. The same resource is read by `baton up` and
by the operator; `crd_schema` makes the CRD's schema from these classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import SettingError
from .settings import camel_case, parse, setting

GROUP, VERSION, KIND = "baton.dev", "v1alpha1", "Model"
API_VERSION = f"{GROUP}/{VERSION}"
DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
TRANSPORTS = ("ucx", "ucx/tcp", "ucx/shm", "tcp", "cma")
MAX_REPLICAS = 4096


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What computes, and how much one step takes."""

    type: str = setting("native", "engine that runs the model", choices=("native", "vllm", "sglang"))
    image: str = setting("", "container image; default: the release's own")
    args: tuple[str, ...] = setting((), "extra arguments of the engine's process")
    env: Mapping[str, str] = setting(description="extra environment of the engine's process", factory=dict)
    device: str = setting("auto", "where the model runs", pattern=r"auto|cpu|cuda(:[0-9]+)?")
    dtype: str = setting(
        "auto", "compute type; auto: float32 on a CPU, else the model's", choices=("auto", "float32", "bfloat16")
    )
    threads: int | None = setting(None, "torch threads of a worker; default: torch's own choice", low=1, high=1024)
    max_batched_tokens: int = setting(512, "token budget of a step: the prefill chunk", low=1, high=2**20)
    max_running: int = setting(64, "sequences in a worker's running batch", low=1, high=65536)
    max_requests: int = setting(4096, "requests a worker holds, waiting ones included", low=1, high=2**20)
    max_model_len: int | None = setting(None, "longest prompt plus answer in tokens; default: the model's", low=1)


@dataclass(frozen=True, slots=True)
class ResourcesSpec:
    """Kubernetes resource requirements of one worker."""

    requests: Mapping[str, int | str] = setting(description="quantities the scheduler sets aside", factory=dict)
    limits: Mapping[str, int | str] = setting(description="quantities a worker may not exceed", factory=dict)


@dataclass(frozen=True, slots=True)
class ParallelismSpec:
    """How one worker spreads over devices."""

    tensor: int = setting(1, "tensor parallel size", low=1, high=1024)
    pipeline: int = setting(1, "pipeline parallel size", low=1, high=1024)
    data: int = setting(1, "data parallel size", low=1, high=1024)
    expert: int = setting(1, "expert parallel size", low=1, high=1024)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The workers of one role. The fields that EngineSpec has too win over it."""

    replicas: int = setting(1, "workers", low=0, high=MAX_REPLICAS)
    min_replicas: int | None = setting(None, "fewest workers; default: replicas", low=0, high=MAX_REPLICAS)
    max_replicas: int | None = setting(None, "most workers; default: replicas", low=1, high=MAX_REPLICAS)
    device: str | None = setting(None, "where this role runs", pattern=r"auto|cpu|cuda(:[0-9]+)?")
    threads: int | None = setting(None, "torch threads of a worker of this role", low=1, high=1024)
    max_batched_tokens: int | None = setting(None, "token budget of a step in this role", low=1, high=2**20)
    max_running: int | None = setting(None, "sequences in the running batch of this role", low=1, high=65536)
    resources: ResourcesSpec = setting(description="Kubernetes resources of a worker", factory=ResourcesSpec)
    parallelism: ParallelismSpec = setting(description="devices of one worker", factory=ParallelismSpec)


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A place for KV blocks below the device's memory."""

    name: str = setting(description="which tier", choices=("host", "disk"))
    bytes: int = setting(description="its size in bytes", low=1)
    path: str = setting("", "directory of a disk tier")


@dataclass(frozen=True, slots=True)
class KvSpec:
    """The KV pool of each worker, and how its blocks move. `blocks` wins over `bytes`."""

    block_tokens: int = setting(16, "tokens per KV block", low=1, high=1024)
    dtype: str = setting("auto", "type of the KV; auto is the compute type", choices=("auto", "float32", "bfloat16"))
    transport: str = setting("ucx", "how blocks move from prefill to decode", choices=TRANSPORTS)
    blocks: int | None = setting(None, "KV blocks in a worker's pool", low=1)
    bytes: int = setting(256 * 2**20, "bytes of a worker's KV pool", low=2**16)
    lease_seconds: float = setting(10.0, "how long prefill keeps blocks without a sign of decode", low=0.1, high=3600)
    heartbeat_seconds: float = setting(2.0, "heartbeat between two workers", low=0.05, high=60)
    transfer_timeout_seconds: float = setting(60.0, "longest a transfer may take", low=0.1, high=3600)
    tiers: tuple[TierSpec, ...] = setting((), "tiers below the device's memory, fastest first")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A latency objective: this quantile stays below this many milliseconds."""

    target_ms: float = setting(description="milliseconds", low=0.01, high=3_600_000)
    quantile: float = setting(0.99, "share of requests that keep it", low=0.5, high=0.9999)


@dataclass(frozen=True, slots=True)
class SloSpec:
    """What users are promised."""

    ttft: TargetSpec | None = setting(None, "time to first token")
    tpot: TargetSpec | None = setting(None, "time per output token after the first")


@dataclass(frozen=True, slots=True)
class AutoscalingSpec:
    """Whether the planner moves the pools' sizes between minReplicas and maxReplicas to keep the SLO."""

    enabled: bool = setting(False, "whether the planner sizes the pools")
    scale_down_delay_seconds: float = setting(300.0, "how long less must suffice before a worker goes", low=0)


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How the gateway picks workers."""

    keys: str = setting(
        "tokens",
        "what prefixes are known by; text: the gateway tokenises nothing (mode aggregated only)",
        choices=("tokens", "text"),
    )
    min_remote_prefill_tokens: int = setting(32, "shorter (uncached) prompts are prefilled on decode", low=0)
    index_keys: int = setting(500_000, "block keys in the gateway's prefix index", low=1)
    max_in_flight: int = setting(1024, "requests being served at once", low=1)
    max_queued: int = setting(1024, "requests waiting for a slot", low=0)


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How a new revision replaces the old one; prefill and decode move in step."""

    max_surge: int = setting(1, "workers above replicas during a rollout, per role", low=0)
    max_unavailable: int = setting(0, "workers below replicas during a rollout, per role", low=0)


@dataclass(frozen=True, slots=True)
class FailurePolicySpec:
    """What happens to a request when a part of its path fails."""

    on_prefill_failure: str = setting(
        "recompute", "recompute: decode prefills for itself; fail: the request fails", choices=("recompute", "fail")
    )
    request_timeout_seconds: float = setting(600.0, "longest a request may take", low=1, high=86400)
    drain_seconds: float = setting(60.0, "longest a worker may finish its work before it ends", low=0, high=3600)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What shall be served, and how."""

    source: str = setting(
        description="the model: a directory in Hugging Face format, pvc://claim/path, hf://org/name@revision or oci://image",
        pattern=r"\S(.*\S)?",
    )
    served_name: str = setting("", "name that clients use; default: metadata.name")
    engine: EngineSpec = setting(description="what computes", factory=EngineSpec)
    mode: str = setting(
        "auto",
        "auto: a prefill worker is used when there is one; disaggregated: not ready without; aggregated: decode only",
        choices=("auto", "disaggregated", "aggregated"),
    )
    prefill: PoolSpec | None = setting(None, "the prefill pool; default: one worker, none when aggregated")
    decode: PoolSpec = setting(description="the decode pool", factory=PoolSpec)
    kv: KvSpec = setting(description="KV pools and transfer", factory=KvSpec)
    slo: SloSpec = setting(description="latency objectives", factory=SloSpec)
    autoscaling: AutoscalingSpec = setting(description="sizes that follow the SLO", factory=AutoscalingSpec)
    routing: RoutingSpec = setting(description="the gateway's choices", factory=RoutingSpec)
    rollout: RolloutSpec = setting(description="how a new revision comes in", factory=RolloutSpec)
    failure_policy: FailurePolicySpec = setting(description="what a failure does", factory=FailurePolicySpec)

    @property
    def prefill_pool(self) -> PoolSpec:
        """The prefill pool with its default; no workers when aggregated."""
        if self.prefill is not None:
            return self.prefill
        return PoolSpec(replicas=0) if self.mode == "aggregated" else PoolSpec()


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is read of a Kubernetes object's metadata."""

    name: str = setting(description="a DNS label: a-z, 0-9 and -, at most 63 characters", pattern=DNS_LABEL)
    namespace: str = setting("default", "namespace", pattern=DNS_LABEL)
    labels: Mapping[str, str] = setting(description="labels", factory=dict)
    annotations: Mapping[str, str] = setting(description="annotations", factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """One model being served."""

    metadata: Metadata
    spec: ModelSpec

    @property
    def name(self) -> str:
        """What clients put into a request's `model`."""
        return self.spec.served_name or self.metadata.name


def parse_model(raw: Any) -> Model:
    """A Model from what YAML or JSON holds. Raises SettingError naming the field's path, its value and the fix.

    `status` and what the API server adds to `metadata` are left alone, so that `kubectl get -o yaml` can be read back.
    """
    if not isinstance(raw, Mapping):
        raise SettingError("Model", raw, "is not a mapping", f"start with `apiVersion: {API_VERSION}`")
    _expect(raw, "apiVersion", API_VERSION)
    _expect(raw, "kind", KIND)
    for name in raw:
        if name not in ("apiVersion", "kind", "metadata", "spec", "status"):
            raise SettingError(str(name), raw[name], "is not a field of a resource", "put it under `spec`")
    model = Model(
        metadata=parse(Metadata, _known_metadata(raw.get("metadata")), "metadata", camel_case),
        spec=parse(ModelSpec, raw.get("spec"), "spec", camel_case),
    )
    for problem in problems(model.spec):
        raise problem
    return model


def problems(spec: ModelSpec) -> Iterator[SettingError]:
    """What no single field's limits say."""
    yield from _pool_problems("spec.prefill", spec.prefill_pool)
    yield from _pool_problems("spec.decode", spec.decode)
    for path, pool in (("spec.prefill", spec.prefill_pool), ("spec.decode", spec.decode)):
        yield from _step_problems(path, pool, spec.engine)
    if spec.mode == "aggregated" and spec.prefill is not None and spec.prefill.replicas > 0:
        value = spec.prefill.replicas
        yield SettingError("spec.prefill.replicas", value, "does not fit mode aggregated", "use 0, or another mode")
    if spec.mode == "disaggregated" and spec.prefill_pool.replicas < 1:
        yield SettingError("spec.prefill.replicas", 0, "does not fit mode disaggregated", "use 1 or more")
    if spec.routing.keys == "text" and spec.mode != "aggregated":
        yield SettingError("spec.routing.keys", "text", f"does not fit mode {spec.mode}", "use tokens, or aggregated")
    if spec.decode.replicas < 1 and spec.prefill_pool.replicas > 0:
        yield SettingError("spec.decode.replicas", 0, "leaves prefill without decode", "use 1 or more")
    if spec.rollout.max_surge + spec.rollout.max_unavailable < 1:
        yield SettingError("spec.rollout.maxSurge", 0, "stops a rollout when maxUnavailable is 0 too", "use 1 or more")
    if spec.autoscaling.enabled and spec.slo == SloSpec():
        yield SettingError("spec.autoscaling.enabled", True, "has no objective to keep", "give spec.slo.ttft or .tpot")


def _pool_problems(path: str, pool: PoolSpec) -> Iterator[SettingError]:
    """Invariant I8: min <= replicas <= max."""
    low, high = pool.min_replicas, pool.max_replicas
    if low is not None and low > pool.replicas:
        yield SettingError(
            f"{path}.minReplicas", low, f"is above replicas {pool.replicas}", "lower it, or add replicas"
        )
    if high is not None and high < pool.replicas:
        yield SettingError(f"{path}.maxReplicas", high, f"is below replicas {pool.replicas}", "raise it")


def _step_problems(path: str, pool: PoolSpec, engine: EngineSpec) -> Iterator[SettingError]:
    """A step has to have room for a token of every running sequence."""
    batched, running = pool.max_batched_tokens or engine.max_batched_tokens, pool.max_running or engine.max_running
    if batched < running:
        field = f"{path}.maxBatchedTokens" if pool.max_batched_tokens else "spec.engine.maxBatchedTokens"
        yield SettingError(field, batched, f"is below maxRunning {running}", "raise it, or lower maxRunning")


def _expect(raw: Mapping[Any, Any], name: str, value: str) -> None:
    if raw.get(name) != value:
        raise SettingError(name, raw.get(name), "is not what this reads", f"use {value}")


def _known_metadata(raw: Any) -> Any:
    if not isinstance(raw, Mapping):
        return {} if raw is None else raw
    return {name: raw[name] for name in Metadata.__dataclass_fields__ if name in raw}
