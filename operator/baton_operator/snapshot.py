"""One look at a Model and all that belongs to it: what every decision is made from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baton_api import kubernetes as names
from baton_api.worker import Role

from . import kinds

Json = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a Model."""


@dataclass(frozen=True, slots=True)
class PodState:
    """What of a Pod matters here. `trouble` is a container's waiting or ending reason, `message` what it says."""

    name: str
    component: str
    role: str
    revision: str
    ready: bool
    deleting: bool
    trouble: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`children` by kind and name: what the caches hold with this Model's label, owned or not."""

    model: Json
    children: Mapping[tuple[str, str], Json]
    pods: tuple[PodState, ...] = ()
    optional: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        return str(self.model["metadata"]["name"])

    def find(self, kind: kinds.Kind, name: str) -> Json | None:
        return self.children.get((kind.kind, name))

    def pool(self, role: Role) -> Json | None:
        return self.find(kinds.POOL, names.pool_name(self.name, role))

    def deployments(self, role: Role) -> list[Json]:
        """Of one role, all revisions, oldest first; under the names that an operator gives: a copy that somebody made
        with its labels is his."""
        found = [
            item
            for (kind, name), item in self.children.items()
            if kind == kinds.DEPLOYMENT.kind
            and labels_of(item).get(names.ROLE_LABEL) == role.value
            and name == names.worker_name(self.name, role, revision_label(item))
        ]
        return sorted(found, key=lambda item: (item["metadata"].get("creationTimestamp", ""), name_of(item)))


def name_of(item: Json) -> str:
    return str(item["metadata"]["name"])


def labels_of(item: Json) -> Mapping[str, str]:
    labels: Mapping[str, str] = item["metadata"].get("labels") or {}
    return labels


def annotations_of(item: Json) -> Mapping[str, str]:
    annotations: Mapping[str, str] = item["metadata"].get("annotations") or {}
    return annotations


def revision_label(item: Json) -> str:
    return labels_of(item).get(names.REVISION_LABEL, "")


def generation_of(raw: Json) -> int:
    return int(raw["metadata"].get("generation", 0))


def condition_of(raw: Json, kind: str) -> Mapping[str, Any]:
    """As observed; {} when it is not there."""
    conditions = (raw.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item.get("type") == kind), {})


def is_owned_by(item: Json, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or [])


def is_ours(item: Json, uid: str) -> bool:
    """Of an object as the API server has it, with any labels: this Model's, or made by an operator."""
    managers = {entry.get("manager") for entry in item["metadata"].get("managedFields") or ()}
    is_made_by_us = (
        labels_of(item).get(names.MANAGED_BY_LABEL) == names.FIELD_MANAGER and names.FIELD_MANAGER in managers
    )
    return is_owned_by(item, uid) or is_made_by_us


def pod_state(raw: Json) -> PodState:
    """Of a Pod as the API server has it."""
    labels, status = labels_of(raw), raw.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    trouble, message = _trouble(status, conditions)
    return PodState(
        name=name_of(raw),
        component=labels.get(names.COMPONENT_LABEL, ""),
        role=labels.get(names.ROLE_LABEL, ""),
        revision=labels.get(names.REVISION_LABEL, ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in raw["metadata"],
        trouble=trouble,
        message=message,
    )


def _trouble(status: Json, conditions: Mapping[str, Json]) -> tuple[str, str]:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return "Unschedulable", str(scheduled.get("message", ""))
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            ended = (container.get("lastState") or {}).get("terminated") or {}
            why = f"; it ended with {ended.get('reason')} ({ended.get('exitCode')})" if ended else ""
            return str(waiting["reason"]), f"{container.get('name')}: {waiting.get('message', '')}{why}"
    return "", ""
