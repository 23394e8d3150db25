"""What to say of a Model and of its Pools, as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import Model
from baton_api.crd_status import (
    Condition,
    ModelStatus,
    PlanStatus,
    PoolStatus,
    Reason,
    RevisionStatus,
    RoleStatus,
)  # fmt: skip
from baton_api.settings import camel_case
from baton_api.worker import Role

from . import objects
from .checks import READY, Finding, View, degraded, is_asked, progressing, worker_trouble
from .snapshot import condition_of, generation_of, revision_label

Json = dict[str, Any]


def model_status(view: View, now: str) -> Json:
    """The whole status as JSON. `now` is RFC 3339."""
    objection = next((found for check in READY if (found := check(view)) is not None), None)
    reason, message = objection or (Reason.SERVING, f"requests are served at {_endpoint(view.model)}")
    conditions = {"Ready": (objection is None, reason, message)}
    moving, (why, what) = progressing(view)
    conditions["Progressing"] = (moving, why, what)
    short = degraded(view)
    conditions["Degraded"] = (short is not None, *(short or (Reason.AS_WANTED, "every worker is as wanted")))
    if view.refused or view.taken:
        conditions["Stalled"] = (True, reason, message)
    elif moving or objection is not None:
        conditions["Reconciling"] = (True, why if moving else reason, what if moving else message)
    roles = {role: _role_status(view, role) for role in Role}
    ready, wanted = view.gateway
    return as_json(
        ModelStatus(
            observed_generation=generation_of(view.snapshot.model),
            reason=reason.value,
            endpoint=_endpoint(view.model),
            model=view.model.name,
            revision=view.revision,
            prefill=roles[Role.PREFILL],
            decode=roles[Role.DECODE],
            gateway=f"{ready}/{wanted}",
            revisions=_revisions(view),
            plan=_plan_status(view, moving),
            conditions=_conditions(view.snapshot.model, conditions, now),
        )
    )


NEWS = ("observedGeneration", "reason", "plan", "conditions")


def stalled_status(raw: Json, reason: Reason, message: str, now: str) -> Json:
    """Of a Model that cannot be served at all; what it has already goes on as it is."""
    found = {"Ready": (False, reason, message), "Stalled": (True, reason, message)}
    said = ModelStatus(
        observed_generation=generation_of(raw),
        reason=reason.value,
        plan=PlanStatus("blocked", message),
        conditions=_conditions(raw, found, now),
    )
    new = as_json(said)
    return (raw.get("status") or {}) | {name: new[name] for name in NEWS}


BY_THE_CLUSTER = ("foregroundDeletion", "orphan")
"""Finalizers of the garbage collector."""


def deletion_status(raw: Json, now: str) -> Json | None:
    """Of a Model that is being deleted and that somebody's finalizer holds; None: nobody's does."""
    held_by = [name for name in raw["metadata"].get("finalizers") or () if name not in BY_THE_CLUSTER]
    if not held_by:
        return None
    message = f"it is being deleted, and finalizers of others hold it: {', '.join(held_by)}; its Pods run on until then"
    return stalled_status(raw, Reason.DELETING, message, now)


def lone_pool_status(raw: Json, model: str, now: str) -> Json | None:
    """Of a Pool without its Model; None: the garbage collector is on its way to it."""
    metadata = raw["metadata"]
    if metadata.get("ownerReferences") or "deletionTimestamp" in metadata:
        return None
    message = f"there is no Model {model}: kubectl delete -n {metadata['namespace']} pool {metadata['name']}"
    found = {kind: (kind == "Stalled", Reason.NO_SUCH_MODEL, message) for kind in ("Ready", "Stalled")}
    said = as_json(PoolStatus(observed_generation=generation_of(raw), conditions=_conditions(raw, found, now)))
    return (raw.get("status") or {}) | {name: said[name] for name in ("observedGeneration", "conditions")}


def pool_status(view: View, role: Role, raw: Json, now: str) -> Json:
    """Of one Pool."""
    size, counts = view.plan.sizes[role], view.plan.counts[role]
    spec, ready = objects.pool_spec(raw), view.ready(role)
    settled = ready == size and not counts.old_asked and is_asked(view, role)
    trouble = None if settled else worker_trouble(view, role)
    if spec.replicas != size:
        message = f"{spec.replicas} replicas are outside minReplicas and maxReplicas: {size} are kept"
        finding: Finding = (Reason.SCALE_CLAMPED, message)
    elif settled:
        finding = (Reason.AS_WANTED, f"{ready} of {size} workers are ready")
    elif counts.old_asked:
        finding = trouble or (Reason.ROLLING_OUT, f"{counts.new_ready} of {size} workers are of {view.revision}")
    else:
        finding = trouble or (Reason.SCALING, f"{ready} of {size} workers are ready")
    conditions = {"Ready": (settled, *finding)}
    if not settled:
        conditions["Reconciling"] = (True, *finding)
    return as_json(
        PoolStatus(
            observed_generation=generation_of(raw),
            replicas=_existing(view, role),
            ready_replicas=ready,
            updated_replicas=counts.new_ready,
            selector=names.selector_text(names.role_selector(view.model.metadata.name, role)),
            conditions=_conditions(raw, conditions, now),
        )
    )


def _role_status(view: View, role: Role) -> RoleStatus:
    size, ready = view.plan.sizes.get(role, 0), view.ready(role)
    return RoleStatus(f"{ready}/{size}", size, _existing(view, role), ready, view.plan.counts[role].new_ready)


def _existing(view: View, role: Role) -> int:
    return sum(int((item.get("status") or {}).get("replicas", 0)) for item in view.snapshot.deployments(role))


def _revisions(view: View) -> tuple[RevisionStatus, ...]:
    found = []
    for role in Role:
        for item in view.snapshot.deployments(role):
            status = item.get("status") or {}
            existing, ready = int(status.get("replicas", 0)), int(status.get("readyReplicas", 0))
            asked = int(item["spec"].get("replicas", 1))
            found.append(RevisionStatus(role.value, revision_label(item), existing, ready, asked))
    return tuple(found)


def _plan_status(view: View, moving: bool) -> PlanStatus:
    if any(count.old for count in view.plan.counts.values()):
        return PlanStatus("rollout", view.plan.step.reason)
    if moving:
        return PlanStatus("wait", "for Pods to be ready")
    return PlanStatus("steady", view.plan.step.reason)


def _endpoint(model: Model) -> str:
    return names.endpoint(model.metadata.name, model.metadata.namespace)


def _conditions(raw: Json, found: Mapping[str, tuple[bool, Reason, str]], now: str) -> tuple[Condition, ...]:
    """`lastTransitionTime` is that of the last change of status."""
    made = []
    for kind, (is_so, reason, message) in found.items():
        status, before = "True" if is_so else "False", condition_of(raw, kind)
        since = before["lastTransitionTime"] if before.get("status") == status else now
        made.append(Condition(kind, status, reason.value, message[:1024], since, generation_of(raw)))
    return tuple(made)


def as_json(said: Any) -> Json:
    """In camelCase, without what is empty."""
    found: Json = {}
    for field in fields(said):
        value = getattr(said, field.name)
        if is_dataclass(value):
            value = as_json(value)
        elif isinstance(value, tuple):
            value = [as_json(item) for item in value]
        if value not in (None, "", []):
            found[camel_case(field.name)] = value
    return found
