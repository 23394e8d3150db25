"""What a Model says of the workers of one role: how many, on what, and how their Pods look. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .quantities import QUANTITY
from .settings import setting

MAX_REPLICAS = 4096
DNS_SUBDOMAIN = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY = rf"({DNS_SUBDOMAIN}/)?{_NAME}"
LABEL_VALUE = rf"({_NAME})?"
RESOURCE_NAME = rf"cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i|{DNS_SUBDOMAIN}/{_NAME}"


@dataclass(frozen=True, slots=True)
class ResourcesSpec:
    """Kubernetes resource requirements of one worker."""

    requests: Mapping[str, int | str] = setting(
        description="quantities the scheduler sets aside",
        factory=dict,
        keys=RESOURCE_NAME,
        pattern=QUANTITY,
        longest=32,
        most=8,
    )
    limits: Mapping[str, int | str] = setting(
        description="quantities a worker may not exceed; GPUs and RDMA devices stand here: nvidia.com/gpu, rdma/hca",
        factory=dict,
        keys=RESOURCE_NAME,
        pattern=QUANTITY,
        longest=32,
        most=8,
    )


@dataclass(frozen=True, slots=True)
class ParallelismSpec:
    """How one worker spreads over devices."""

    tensor: int = setting(1, "tensor parallel size", low=1, high=1024)
    pipeline: int = setting(1, "pipeline parallel size", low=1, high=1024)
    data: int = setting(1, "data parallel size", low=1, high=1024)
    expert: int = setting(1, "expert parallel size", low=1, high=1024)


@dataclass(frozen=True, slots=True)
class TolerationSpec:
    """A taint of nodes that workers do not mind."""

    key: str | None = setting(None, "the taint's key; none with operator Exists: every taint", pattern=LABEL_KEY)
    operator: str = setting("Equal", "how value is compared", choices=("Equal", "Exists"))
    value: str | None = setting(None, "the taint's value", pattern=LABEL_VALUE)
    effect: str | None = setting(
        None, "the taint's effect; none: every effect", choices=("NoSchedule", "PreferNoSchedule", "NoExecute")
    )
    toleration_seconds: int | None = setting(
        None, "how long a NoExecute taint is endured; none: for ever", low=0, high=2**31
    )


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The workers of one role. The fields that EngineSpec has too win over it."""

    replicas: int = setting(1, "workers", low=0, high=MAX_REPLICAS)
    min_replicas: int | None = setting(
        None,
        "fewest workers, whoever scales; default: the planner keeps replicas, others are free",
        low=0,
        high=MAX_REPLICAS,
    )
    max_replicas: int | None = setting(
        None,
        "most workers, whoever scales; default: the planner keeps replicas, others are free",
        low=1,
        high=MAX_REPLICAS,
    )
    device: str | None = setting(None, "where this role runs", pattern=r"auto|cpu|cuda(:[0-9]+)?")
    threads: int | None = setting(None, "torch threads of a worker of this role", low=1, high=1024)
    max_batched_tokens: int | None = setting(None, "token budget of a step in this role", low=1, high=2**20)
    max_running: int | None = setting(None, "sequences in the running batch of this role", low=1, high=65536)
    resources: ResourcesSpec = setting(description="Kubernetes resources of a worker", factory=ResourcesSpec)
    parallelism: ParallelismSpec = setting(description="devices of one worker", factory=ParallelismSpec)
    node_selector: Mapping[str, str] = setting(
        description="labels of the nodes that workers run on",
        factory=dict,
        keys=LABEL_KEY,
        pattern=LABEL_VALUE,
        most=32,
    )
    tolerations: tuple[TolerationSpec, ...] = setting((), "taints of nodes that workers do not mind", most=32)
    affinity: Mapping[str, Any] = setting(
        description="a Pod's affinity, as Kubernetes has it (kubectl explain pod.spec.affinity)", factory=dict
    )
    labels: Mapping[str, str] = setting(
        description="extra labels of the workers' Pods; Baton's own win",
        factory=dict,
        keys=LABEL_KEY,
        pattern=LABEL_VALUE,
        most=32,
    )
    annotations: Mapping[str, str] = setting(
        description="extra annotations of the workers' Pods, such as Multus networks",
        factory=dict,
        keys=LABEL_KEY,
        most=32,
    )
    priority_class_name: str | None = setting(None, "PriorityClass of the workers' Pods", pattern=DNS_SUBDOMAIN)
    runtime_class_name: str | None = setting(None, "RuntimeClass of the workers' Pods", pattern=DNS_SUBDOMAIN)
    service_account_name: str | None = setting(
        None, "ServiceAccount of the workers' Pods; its token is not mounted", pattern=DNS_SUBDOMAIN
    )
