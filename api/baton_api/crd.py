"""The `Model` resource, group baton.dev, v1alpha1: what a user writes, parsed strictly. Pure.

One field, `spec.source`, is required; every other has a default that works. The same resource is read by `baton up` and
by the operator; `crd_schema` makes the CRD's schema from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .crd_rules import problems
from .crd_spec import (
    TRANSPORTS,
    AutoscalingSpec,
    EngineSpec,
    FailurePolicySpec,
    KvSpec,
    ModelSpec,
    RolloutSpec,
    RoutingSpec,
    SloSpec,
    TargetSpec,
    TierSpec,
)
from .crd_workers import MAX_REPLICAS, ParallelismSpec, PoolSpec, ResourcesSpec, TolerationSpec
from .errors import SettingError
from .settings import camel_case, parse, setting

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "MAX_REPLICAS",
    "TRANSPORTS",
    "VERSION",
    "AutoscalingSpec",
    "EngineSpec",
    "FailurePolicySpec",
    "KvSpec",
    "Metadata",
    "Model",
    "ModelSpec",
    "ParallelismSpec",
    "PoolSpec",
    "ResourcesSpec",
    "RolloutSpec",
    "RoutingSpec",
    "SloSpec",
    "TargetSpec",
    "TierSpec",
    "TolerationSpec",
    "parse_model",
    "problems",
]

GROUP, VERSION, KIND = "baton.dev", "v1alpha1", "Model"
API_VERSION = f"{GROUP}/{VERSION}"
DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
MODEL_NAME = r"[a-z]([-a-z0-9]{0,53}[a-z0-9])?"
"""Services are named after the Model, with 8 characters more (RFC 1035 labels)."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is read of a Kubernetes object's metadata."""

    name: str = setting(description="a-z, 0-9 and -, from a letter on, at most 55 characters", pattern=MODEL_NAME)
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


def _expect(raw: Mapping[Any, Any], name: str, value: str) -> None:
    if raw.get(name) != value:
        raise SettingError(name, raw.get(name), "is not what this reads", f"use {value}")


def _known_metadata(raw: Any) -> Any:
    if not isinstance(raw, Mapping):
        return {} if raw is None else raw
    return {name: raw[name] for name in Metadata.__dataclass_fields__ if name in raw}
