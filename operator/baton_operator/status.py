"""What to say of a Model and of its Pools: a chain of checks, the first that objects gives the reason. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
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

from . import kinds, objects
from .plan import MISSING, Plan
from .snapshot import PodState, Snapshot, revision_label

Json = dict[str, Any]
Finding = tuple[Reason, str]


@dataclass(frozen=True, slots=True)
class View:
    """What the checks look at. `refused` are writes that the API server will refuse again, `retrying` those that failed
    and may succeed: what, and its words. `taken` says which names are somebody else's."""

    model: Model
    snapshot: Snapshot
    revision: str
    plan: Plan
    refused: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    retrying: tuple[str, ...] = ()

    def ready(self, role: Role) -> int:
        counts = self.plan.counts[role]
        return counts.new_ready + sum(min(old.ready, old.asked) for old in counts.old)

    @property
    def gateway(self) -> tuple[int, int]:
        """Ready, wanted."""
        found = self.snapshot.find(kinds.DEPLOYMENT, names.gateway_name(self.model.metadata.name))
        if found is None:
            return 0, 1
        return int((found.get("status") or {}).get("readyReplicas", 0)), int(found["spec"].get("replicas", 1))

    @property
    def gateway_rollout(self) -> str | None:
        """What is still to come of the gateway's Deployment; None: nothing is."""
        found = self.snapshot.find(kinds.DEPLOYMENT, names.gateway_name(self.model.metadata.name))
        if found is None:
            return "it is not made yet"
        status, wanted = found.get("status") or {}, self.gateway[1]
        counts = [int(status.get(name, 0)) for name in ("updatedReplicas", "readyReplicas", "replicas")]
        if int(status.get("observedGeneration", 0)) >= _generation(found) and counts == [wanted] * 3:
            return None
        said = f"gateway Pods of the newest settings: {counts[0]}/{wanted}; ready: {counts[1]}, in all: {counts[2]}"
        if not found["spec"].get("paused"):
            return said
        metadata = found["metadata"]
        where = f"-n {self.model.metadata.namespace} deployment {metadata['name']}"
        return f"{said}; Deployment {metadata['name']} is paused: kubectl rollout resume {where}"

    @property
    def was_ready(self) -> bool:
        return condition_of(self.snapshot.model, "Ready").get("status") == "True"

    def describe(self, component: str) -> str:
        """The command that says more."""
        selector = f"{names.MODEL_LABEL}={self.model.metadata.name},{names.COMPONENT_LABEL}={component}"
        return f"see: kubectl describe pods -n {self.model.metadata.namespace} -l {selector}"


IMAGE_TROUBLES = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")


def trouble_of(pods: Sequence[PodState], component: str) -> tuple[str, PodState] | None:
    """The worst of what keeps Pods from being ready: nowhere to run, no image, crashing."""
    troubled = [
        pod for pod in pods if pod.component == component and pod.trouble and not pod.ready and not pod.deleting
    ]
    for what, fits in (
        ("unschedulable", lambda pod: pod.trouble == "Unschedulable"),
        ("image", lambda pod: pod.trouble in IMAGE_TROUBLES),
        ("crashing", lambda pod: True),
    ):
        found = [pod for pod in troubled if fits(pod)]
        if found:
            return what, min(found, key=lambda pod: pod.name)
    return None


def _pods_refused(deployment: Json) -> Finding | None:
    """Admission lets no Pod in: a quota, Pod Security, a PriorityClass or ServiceAccount that is not there."""
    failure = condition_of(deployment, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    return Reason.PODS_REFUSED, f"Deployment {deployment['metadata']['name']}: {failure.get('message', '')}"


def worker_trouble(view: View, role: Role) -> Finding | None:
    for item in view.snapshot.deployments(role):
        if (refused := _pods_refused(item)) is not None:
            return refused
    found = trouble_of(view.snapshot.pods, role.value)
    if found is None:
        return None
    what, pod = found
    reasons = {
        "unschedulable": Reason.WORKERS_UNSCHEDULABLE,
        "image": Reason.IMAGE_UNAVAILABLE,
        "crashing": Reason.WORKERS_CRASHING,
    }
    return reasons[what], f"{role.value} worker {pod.name}: {pod.trouble}: {pod.message}; {view.describe(role.value)}"


def gateway_trouble(view: View) -> Finding | None:
    deployment = view.snapshot.find(kinds.DEPLOYMENT, names.gateway_name(view.model.metadata.name))
    if deployment is not None and (refused := _pods_refused(deployment)) is not None:
        return refused
    found = trouble_of(view.snapshot.pods, names.GATEWAY)
    if found is None:
        return None
    what, pod = found
    reason = Reason.IMAGE_UNAVAILABLE if what == "image" else Reason.GATEWAY_CRASHING
    return reason, f"gateway {pod.name}: {pod.trouble}: {pod.message}; {view.describe(names.GATEWAY)}"


def _refused(view: View) -> Finding | None:
    if view.taken:
        return Reason.NAME_TAKEN, "; ".join((*view.taken, *view.refused))
    if not view.refused:
        return None
    return Reason.REFUSED_BY_API_SERVER, "; ".join(view.refused)


def _created(view: View) -> Finding | None:
    missing = sorted(f"{action.kind.kind} {action.name}" for action in view.plan.actions if action.reason == MISSING)
    return (Reason.CREATING, "; ".join((*view.retrying, f"to be made: {', '.join(missing)}"))) if missing else None


def _sizes(view: View) -> Finding | None:
    name, namespace = view.model.metadata.name, view.model.metadata.namespace
    for role, reason in ((Role.DECODE, Reason.NO_DECODE_WORKERS), (Role.PREFILL, Reason.NO_PREFILL_WORKERS)):
        needed = role is Role.DECODE or view.model.spec.mode == "disaggregated"
        if needed and view.plan.sizes.get(role) == 0:
            pool = names.pool_name(name, role)
            fix = f"kubectl scale -n {namespace} pool {pool} --replicas=1"
            return reason, f"Pool {pool} has 0 replicas: {fix}"
    return None


def _workers_ready(view: View) -> Finding | None:
    """Mode auto goes on without prefill workers once it has served: decode prefills for itself."""
    for role in (Role.DECODE, Role.PREFILL):
        size, ready = view.plan.sizes.get(role, 0), view.ready(role)
        optional = role is Role.PREFILL and view.model.spec.mode == "auto" and view.was_ready
        if size and not ready and not optional:
            waiting = f"0 of {size} {role.value} workers are ready; {view.describe(role.value)}"
            return worker_trouble(view, role) or (Reason.STARTING_WORKERS, waiting)
    return None


def _gateway_ready(view: View) -> Finding | None:
    ready, wanted = view.gateway
    if ready:
        return None
    waiting = f"0 of {wanted} gateway Pods are ready; {view.describe(names.GATEWAY)}"
    return gateway_trouble(view) or (Reason.STARTING_GATEWAY, waiting)


READY: tuple[Callable[[View], Finding | None], ...] = (_refused, _created, _sizes, _workers_ready, _gateway_ready)


def _progressing(view: View) -> tuple[bool, Finding]:
    if view.retrying:
        return True, (Reason.WRITES_FAIL, f"tried again: {'; '.join(view.retrying)}")
    if any(count.old_asked for count in view.plan.counts.values()):
        return True, (Reason.ROLLING_OUT, f"to revision {view.revision}: {view.plan.step.reason}")
    if any(count.old for count in view.plan.counts.values()):
        return True, (Reason.ROLLING_OUT, f"to revision {view.revision}: the last old workers are ending")
    short = [role for role, size in view.plan.sizes.items() if view.ready(role) != size or not _is_asked(view, role)]
    if short:
        parts = [f"{role.value} {view.ready(role)}/{view.plan.sizes[role]}" for role in sorted(short)]
        return True, (Reason.SCALING, f"workers ready: {', '.join(parts)}")
    ready, wanted = view.gateway
    rollout = view.gateway_rollout
    if rollout is not None:
        reason = Reason.STARTING_GATEWAY if ready < wanted else Reason.ROLLING_OUT
        return True, (reason, rollout)
    if (refused := _refused(view)) is not None:
        return False, refused
    if (missing := _created(view)) is not None:
        return True, missing
    return _pending(view)


def _pending(view: View) -> tuple[bool, Finding]:
    """What is there and not yet as wanted."""
    actions = view.plan.actions
    changes = sorted(f"{item.kind.kind} {item.name} ({item.reason})" for item in actions if item.verb != "delete")
    if changes:
        return True, (Reason.APPLYING, f"to be written: {', '.join(changes)}")
    leftovers = sorted(f"{item.kind.kind} {item.name}" for item in actions)
    if leftovers:
        return True, (Reason.CLEANING_UP, f"to be deleted: {', '.join(leftovers)}")
    return False, (Reason.SETTLED, "nothing is left to do")


def _is_asked(view: View, role: Role) -> bool:
    return view.plan.counts[role].new.asked == view.plan.sizes[role]


def _degraded(view: View) -> Finding | None:
    """Old workers or gateways that are ready do not make up for new ones that cannot be."""
    for role, size in view.plan.sizes.items():
        counts = view.plan.counts[role]
        is_short = view.ready(role) < size or counts.new_ready < counts.new.asked
        if is_short and (found := worker_trouble(view, role)) is not None:
            return found
    if view.gateway_rollout is not None and (found := gateway_trouble(view)) is not None:
        return found
    if view.was_ready and view.plan.sizes.get(Role.PREFILL, 0) and not view.ready(Role.PREFILL):
        return Reason.FEWER_WORKERS, f"no prefill worker is ready: decode prefills; {view.describe('prefill')}"
    return None


def model_status(view: View, now: str) -> Json:
    """The whole status as JSON. `now` is RFC 3339."""
    objection = next((found for check in READY if (found := check(view)) is not None), None)
    reason, message = objection or (Reason.SERVING, f"requests are served at {_endpoint(view.model)}")
    conditions = {"Ready": (objection is None, reason, message)}
    moving, (why, what) = _progressing(view)
    conditions["Progressing"] = (moving, why, what)
    degraded = _degraded(view)
    conditions["Degraded"] = (degraded is not None, *(degraded or (Reason.AS_WANTED, "every worker is as wanted")))
    if view.refused or view.taken:
        conditions["Stalled"] = (True, reason, message)
    elif moving or objection is not None:
        conditions["Reconciling"] = (True, why if moving else reason, what if moving else message)
    roles = {role: _role_status(view, role) for role in Role}
    ready, wanted = view.gateway
    return as_json(
        ModelStatus(
            observed_generation=_generation(view.snapshot.model),
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
        observed_generation=_generation(raw),
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
    said = as_json(PoolStatus(observed_generation=_generation(raw), conditions=_conditions(raw, found, now)))
    return (raw.get("status") or {}) | {name: said[name] for name in ("observedGeneration", "conditions")}


def pool_status(view: View, role: Role, raw: Json, now: str) -> Json:
    """Of one Pool."""
    size, counts = view.plan.sizes[role], view.plan.counts[role]
    spec, ready = objects.pool_spec(raw), view.ready(role)
    settled = ready == size and not counts.old_asked and _is_asked(view, role)
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
            observed_generation=_generation(raw),
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


def _generation(raw: Json) -> int:
    return int(raw["metadata"].get("generation", 0))


def condition_of(raw: Json, kind: str) -> Mapping[str, Any]:
    """As observed; {} when it is not there."""
    conditions = (raw.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item.get("type") == kind), {})


def _conditions(raw: Json, found: Mapping[str, tuple[bool, Reason, str]], now: str) -> tuple[Condition, ...]:
    """`lastTransitionTime` is that of the last change of status."""
    made = []
    for kind, (is_so, reason, message) in found.items():
        status, before = "True" if is_so else "False", condition_of(raw, kind)
        since = before["lastTransitionTime"] if before.get("status") == status else now
        made.append(Condition(kind, status, reason.value, message[:1024], since, _generation(raw)))
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
