"""What can be set of the operator, with defaults and limits: one JSON file, written by the chart. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.crd import ResourcesSpec
from baton_api.kubernetes import LISTEN_HOST, OPERATOR_HTTP_PORT, SERVICE_ACCOUNT_DIR
from baton_api.settings import setting


@dataclass(frozen=True, slots=True)
class LeaderSettings:
    """Which replica works, as client-go's leader election does it: by a Lease that is renewed."""

    enabled: bool = setting(True, "whether a Lease decides who works; off only for a single replica")
    lease_name: str = setting("baton-operator", "name of the Lease in the operator's own namespace")
    duration_s: float = setting(15.0, "how long a Lease that is not renewed keeps others out", low=1, high=3600)
    renew_s: float = setting(5.0, "between two renewals", low=0.1, high=1800)


def _some() -> ResourcesSpec:
    """Enough to be weighed against others, and not to be the first to be evicted."""
    return ResourcesSpec(requests={"cpu": "100m", "memory": "256Mi"})


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Images are the release's own; a Model's `spec.engine.image` wins for its workers."""

    prefill_image: str = setting(description="image of prefill workers", pattern=r"\S+")
    decode_image: str = setting(description="image of decode workers", pattern=r"\S+")
    gateway_image: str = setting(description="image of gateways", pattern=r"\S+")
    image_pull_policy: str = setting(
        "IfNotPresent", "when nodes pull an image", choices=("IfNotPresent", "Always", "Never")
    )
    image_pull_secrets: tuple[str, ...] = setting((), "Secrets with registry credentials, in each Model's namespace")
    namespace: str = setting("", "the operator's own; default: what its service account says, else default")
    watch_namespaces: tuple[str, ...] = setting((), "where Models are served; none: in every namespace")
    host: str = setting(LISTEN_HOST, "address of /health, /ready and /metrics")
    port: int = setting(OPERATOR_HTTP_PORT, "their port; 0 takes a free one", low=0, high=65535)
    gateway_replicas: int = setting(1, "gateway Pods per Model", low=1, high=64)
    gateway_resources: ResourcesSpec = setting(description="resources of a gateway Pod", factory=_some)
    worker_resources: ResourcesSpec = setting(
        description="of a worker Pod, where its pool says nothing of the kind", factory=_some
    )
    leader: LeaderSettings = setting(description="leader election", factory=LeaderSettings)
    workers: int = setting(
        32, "Models reconciled at once; most of them wait for an answer of the API server", low=1, high=256
    )
    settle_s: float = setting(0.05, "changes within so long are looked at together", low=0, high=10)
    progress_s: float = setting(
        5.0, "news that is only progress waits so long for more; what comes to rest is said at once", low=0, high=60
    )
    progress_per_s: float = setting(
        2.0, "so often progress is told of all Models together; more of them wait longer", low=0.01, high=1000
    )
    service_account_dir: str = setting(SERVICE_ACCOUNT_DIR, "where token, ca.crt and namespace are")
    resync_s: float = setting(600.0, "between two looks at a Model without any event", low=1)
    watch_timeout_s: float = setting(240.0, "the API server ends a watch after so long", low=1, high=3600)
    watch_silence_s: float = setting(90.0, "a watch without event or bookmark for so long is taken for dead", low=1)
    request_timeout_s: float = setting(30.0, "longest an API request may take", low=0.1, high=600)
    retry_base_s: float = setting(0.5, "first wait after an error; it doubles", low=0.01)
    retry_max_s: float = setting(5.0, "longest wait after an error", low=0.01)
    log_level: str = setting("INFO", "what is logged", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
