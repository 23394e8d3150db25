"""What the operator says of a Model and of a Pool under `status`: types, and the reasons of conditions. Pure.

Conditions follow kstatus: Ready; Reconciling and Stalled, which are there only while they are true; Progressing and
Degraded. Source: kubernetes-sigs/cli-utils, pkg/kstatus/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .settings import setting


class Reason(StrEnum):
    """Frozen: dashboards, alerts and scripts name these. tests/unit/test_crd_status.py keeps the list."""

    SERVING = "Serving"
    INVALID_SPEC = "InvalidSpec"
    NOT_SUPPORTED = "NotSupported"
    REFUSED_BY_API_SERVER = "RefusedByApiServer"
    NAME_TAKEN = "NameTaken"
    WRITES_FAIL = "WritesFail"
    CREATING = "Creating"
    STARTING_WORKERS = "StartingWorkers"
    STARTING_GATEWAY = "StartingGateway"
    WORKERS_UNSCHEDULABLE = "WorkersUnschedulable"
    WORKERS_CRASHING = "WorkersCrashing"
    PODS_REFUSED = "PodsRefused"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    GATEWAY_CRASHING = "GatewayCrashing"
    NO_PREFILL_WORKERS = "NoPrefillWorkers"
    NO_DECODE_WORKERS = "NoDecodeWorkers"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    FEWER_WORKERS = "FewerWorkers"
    APPLYING = "Applying"
    CLEANING_UP = "CleaningUp"
    DELETING = "Deleting"
    NO_SUCH_MODEL = "NoSuchModel"
    SETTLED = "Settled"
    AS_WANTED = "AsWanted"
    SCALE_CLAMPED = "ScaleClamped"


CONDITIONS = ("Ready", "Reconciling", "Stalled", "Progressing", "Degraded")


@dataclass(frozen=True, slots=True)
class Condition:
    """One observation, as in meta/v1."""

    type: str = setting(description="what is observed", choices=CONDITIONS)
    status: str = setting(description="whether it is so", choices=("True", "False", "Unknown"))
    reason: str = setting(description="why, one word of a fixed list", choices=tuple(reason.value for reason in Reason))
    message: str = setting(description="why, and what to do about it")
    last_transition_time: str = setting(description="when status changed last (RFC 3339)")
    observed_generation: int = setting(description="the generation this was observed at", low=0)


@dataclass(frozen=True, slots=True)
class RevisionStatus:
    """Workers of one role and revision."""

    role: str = setting(description="prefill or decode")
    revision: str = setting(description="what they run, as in the label baton.dev/revision")
    replicas: int = setting(0, "workers that exist", low=0)
    ready: int = setting(0, "workers that are ready", low=0)
    wanted: int = setting(0, "workers asked for at this step", low=0)


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """Workers of one role, all revisions together."""

    summary: str = setting("", "ready/wanted, for kubectl get")
    wanted: int = setting(0, "workers wanted when settled", low=0)
    replicas: int = setting(0, "workers that exist", low=0)
    ready: int = setting(0, "workers that are ready", low=0)
    updated: int = setting(0, "ready workers of the newest revision", low=0)


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """What the operator does at the moment, and why."""

    step: str = setting(description="the step: steady, scale, rollout, wait, blocked")
    reason: str = setting(description="why this step")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What is, as the operator last saw it."""

    observed_generation: int = setting(0, "the generation of the spec that this status is about", low=0)
    reason: str = setting("", "the Ready condition's reason")
    endpoint: str = setting("", "where clients in the cluster reach the Model: an OpenAI base URL is this plus /v1")
    model: str = setting("", "what clients put into a request's model")
    revision: str = setting("", "the newest revision of the workers")
    prefill: RoleStatus = setting(description="the prefill workers", factory=RoleStatus)
    decode: RoleStatus = setting(description="the decode workers", factory=RoleStatus)
    gateway: str = setting("", "gateway Pods, ready/wanted")
    revisions: tuple[RevisionStatus, ...] = setting((), "workers per role and revision")
    plan: PlanStatus | None = setting(None, "the step being taken and why")
    conditions: tuple[Condition, ...] = setting((), "kstatus conditions")


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What is of one role."""

    observed_generation: int = setting(0, "the generation of the spec that this status is about", low=0)
    replicas: int = setting(0, "workers that exist", low=0)
    ready_replicas: int = setting(0, "workers that are ready", low=0)
    updated_replicas: int = setting(0, "ready workers of the newest revision", low=0)
    selector: str = setting("", "label selector of the workers, for /scale")
    conditions: tuple[Condition, ...] = setting((), "kstatus conditions")
