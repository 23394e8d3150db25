"""A worker's settings: one JSON file, parsed strictly. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.errors import SettingError
from baton_api.settings import setting

ANY_ADDRESS = ("0.0.0.0", "::", "")
"""Listening there is listening everywhere; nobody can be sent there."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The KV pool and how its blocks move. `num_blocks` wins over `kv_bytes`."""

    transport: str = setting("ucx", "KV transport", choices=("ucx", "ucx/tcp", "ucx/shm", "tcp", "cma", "inproc"))
    block_tokens: int = setting(16, "tokens per KV block", low=1, high=1024)
    num_blocks: int | None = setting(None, "KV blocks in the pool", low=1)
    kv_bytes: int = setting(256 * 2**20, "bytes of the KV pool", low=2**16)
    lease_s: float = setting(10.0, "how long blocks are kept for a pull without a sign of life", low=0.1, high=3600)
    heartbeat_s: float = setting(0.7, "heartbeat between two workers", low=0.05, high=60)
    transfer_timeout_s: float = setting(
        30.0, "longest wait for KV, its prefill included; then decode prefills", low=0.1, high=3600
    )


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """What the model runs on and how much one step takes."""

    device: str = setting("auto", "where the model runs: auto, cpu, cuda or cuda:INDEX")
    dtype: str = setting(
        "auto", "compute type; auto: float32 on a CPU, else the model's", choices=("auto", "float32", "bfloat16")
    )
    threads: int | None = setting(None, "torch threads; default: torch's own choice", low=1, high=1024)
    max_batched_tokens: int = setting(512, "token budget of a step: the prefill chunk", low=1, high=2**20)
    max_running: int = setting(64, "sequences in the running batch", low=1, high=65536)
    max_requests: int = setting(4096, "requests held at once, waiting ones included", low=1, high=2**20)
    max_failures: int = setting(3, "failed steps within failure_window_s after which it ends itself; 0: never", low=0)
    failure_window_s: float = setting(60.0, "how long a failed step is remembered", low=0.1, high=86400)
    max_model_len: int | None = setting(None, "longest prompt plus answer; default: the model's", low=1)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`secret_file` holds the deployment's secret: ticket and HTTP keys are derived from it, so gateway and workers
    of one deployment share it. `port` and `control_port` 0 let the system choose."""

    worker_id: str = setting(
        description="name of this worker, unique in the fleet: letters, digits, . _ -", pattern=r"[A-Za-z0-9._-]{1,253}"
    )
    model_path: str = setting(description="Hugging Face directory")
    secret_file: str = setting(description="file with the deployment's secret, 32 bytes or more")
    model_name: str = setting("model", "name that clients use")
    revision: str = setting("1", "revision of the model resource")
    host: str = setting("127.0.0.1", "address to listen on")
    advertise_host: str | None = setting(None, "address others reach this worker at; default: host")
    port: int = setting(0, "HTTP port", low=0, high=65535)
    control_port: int = setting(0, "gRPC port", low=0, high=65535)
    kv: PoolSettings = setting(factory=PoolSettings)
    engine: ComputeSettings = setting(factory=ComputeSettings)
    drain_s: float = setting(60.0, "longest a drain may take", low=0, high=3600)
    request_timeout_s: float = setting(600.0, "longest a request may take", low=1, high=86400)
    max_answer_bytes: int = setting(64 * 2**20, "largest answer that is not streamed", low=1)
    stuck_s: float = setting(120.0, "a step that takes longer is stuck: /health fails", low=1, high=3600)

    def __post_init__(self) -> None:
        if self.advertise_host is not None and self.advertise_host in ANY_ADDRESS:
            raise SettingError("advertise_host", self.advertise_host, "is nobody's address", "give one others can call")
        if self.advertise_host is None and self.host in ANY_ADDRESS:
            fix = "set advertise_host (in a Pod BATON_ADVERTISE_HOST from status.podIP)"
            raise SettingError("host", self.host, "is not an address that others can be told", fix)

    @property
    def reached_at(self) -> str:
        return self.advertise_host or self.host
