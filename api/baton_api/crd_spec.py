"""What a Model's `spec` may say: each field with its default, limits and description. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .crd_workers import MAX_REPLICAS, PoolSpec
from .settings import setting

TRANSPORTS = ("ucx", "ucx/tcp", "ucx/shm", "tcp", "cma")
IMAGE = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*"
MAX_SAFE_INT = 2**53
"""What JSON of any language keeps whole."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What computes, and how much one step takes."""

    type: str = setting("native", "engine that runs the model", choices=("native", "vllm", "sglang"))
    image: str = setting("", "container image; default: the release's own", pattern=rf"({IMAGE})?", longest=512)
    args: tuple[str, ...] = setting((), "extra arguments of the engine's process", most=64)
    env: Mapping[str, str] = setting(
        description="extra environment of the engine's process", factory=dict, keys=r"[A-Za-z_][A-Za-z0-9_]*", most=64
    )
    device: str = setting("auto", "where the model runs", pattern=r"auto|cpu|cuda(:[0-9]+)?")
    dtype: str = setting(
        "auto", "compute type; auto: float32 on a CPU, else the model's", choices=("auto", "float32", "bfloat16")
    )
    threads: int | None = setting(None, "torch threads of a worker; default: torch's own choice", low=1, high=1024)
    max_batched_tokens: int = setting(512, "token budget of a step: the prefill chunk", low=1, high=2**20)
    max_running: int = setting(64, "sequences in a worker's running batch", low=1, high=65536)
    max_requests: int = setting(4096, "requests a worker holds, waiting ones included", low=1, high=2**20)
    max_model_len: int | None = setting(
        None, "longest prompt plus answer in tokens; default: the model's", low=1, high=MAX_SAFE_INT
    )


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A place for KV blocks below the device's memory."""

    name: str = setting(description="which tier", choices=("host", "disk"))
    bytes: int = setting(description="its size in bytes", low=1, high=MAX_SAFE_INT)
    path: str = setting("", "directory of a disk tier")


@dataclass(frozen=True, slots=True)
class KvSpec:
    """The KV pool of each worker, and how its blocks move. `blocks` wins over `bytes`."""

    block_tokens: int = setting(16, "tokens per KV block", low=1, high=1024)
    dtype: str = setting("auto", "type of the KV; auto is the compute type", choices=("auto", "float32", "bfloat16"))
    transport: str = setting(
        "ucx",
        "how blocks move from prefill to decode; ucx/shm and cma: on one machine only, not between Pods",
        choices=TRANSPORTS,
    )
    blocks: int | None = setting(None, "KV blocks in a worker's pool", low=1, high=MAX_SAFE_INT)
    bytes: int = setting(256 * 2**20, "bytes of a worker's KV pool", low=2**16, high=MAX_SAFE_INT)
    lease_seconds: float = setting(10.0, "how long prefill keeps blocks without a sign of decode", low=0.1, high=3600)
    heartbeat_seconds: float = setting(0.7, "heartbeat between two workers", low=0.05, high=60)
    transfer_timeout_seconds: float = setting(
        30.0, "longest wait for KV, its prefill included; then decode prefills", low=0.1, high=3600
    )
    tiers: tuple[TierSpec, ...] = setting((), "tiers below the device's memory, fastest first")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A latency objective: this quantile stays below this many milliseconds."""

    target_ms: float = setting(description="milliseconds", low=0.01, high=3_600_000)
    quantile: float = setting(0.99, "share of requests that keep it", low=0.5, high=0.9999)


@dataclass(frozen=True, slots=True)
class SloSpec:
    """What users are promised. Kept for the planner: it has no effect in this release, which refuses autoscaling."""

    ttft: TargetSpec | None = setting(None, "time to first token")
    tpot: TargetSpec | None = setting(None, "time per output token after the first")


@dataclass(frozen=True, slots=True)
class AutoscalingSpec:
    """Whether the planner moves the pools' sizes between minReplicas and maxReplicas to keep the SLO."""

    enabled: bool = setting(False, "whether the planner sizes the pools")
    scale_down_delay_seconds: float = setting(
        300.0, "how long less must suffice before a worker goes", low=0, high=86400 * 7
    )


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How the gateway picks workers."""

    keys: str = setting(
        "tokens",
        "what prefixes are known by; text: the gateway tokenises nothing (mode aggregated only)",
        choices=("tokens", "text"),
    )
    min_remote_prefill_tokens: int = setting(
        32, "shorter (uncached) prompts are prefilled on decode", low=0, high=MAX_SAFE_INT
    )
    index_keys: int = setting(
        500_000, "block keys in the prefix index of each gateway process", low=1, high=MAX_SAFE_INT
    )
    max_in_flight: int = setting(1024, "requests being served at once", low=1, high=MAX_SAFE_INT)
    max_queued: int = setting(1024, "requests waiting for a slot", low=0, high=MAX_SAFE_INT)
    max_connections: int = setting(
        4096, "client connections open at once, divided among the processes", low=1, high=MAX_SAFE_INT
    )
    max_connections_per_address: int = setting(
        512,
        "of one address (IPv6: one /64), divided likewise; behind a proxy or ingress give it maxConnections",
        low=1,
        high=MAX_SAFE_INT,
    )
    processes: int = setting(1, "gateway processes on the one port, each on a core of its own", low=1, high=64)


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How a new revision replaces the old one; prefill and decode move in step."""

    max_surge: int = setting(1, "workers above replicas during a rollout, per role", low=0, high=MAX_REPLICAS)
    max_unavailable: int = setting(0, "workers below replicas during a rollout, per role", low=0, high=MAX_REPLICAS)


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
        pattern=r"[^\t\n\v\f\r ](.*[^\t\n\v\f\r ])?",
        longest=1024,
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
    slo: SloSpec = setting(
        description="latency objectives; no effect yet: they are for autoscaling, which this release refuses",
        factory=SloSpec,
    )
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
