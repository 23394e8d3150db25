"""What keeps a Model from being as wanted: a chain of checks, the first that objects gives the reason. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import Model
from baton_api.crd_status import Reason
from baton_api.worker import Role

from . import kinds
from .plan import MISSING, Plan
from .snapshot import PodState, Snapshot, condition_of, generation_of

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
        return counts.new_ready + sum(old.serving for old in counts.old)

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
        if int(status.get("observedGeneration", 0)) >= generation_of(found) and counts == [wanted] * 3:
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
    """Mode auto waits for prefill workers while they only start, and goes on without those that are in trouble or were
    there: decode prefills for itself."""
    for role in (Role.DECODE, Role.PREFILL):
        size, ready = view.plan.sizes.get(role, 0), view.ready(role)
        if not size or ready:
            continue
        trouble = worker_trouble(view, role)
        if role is Role.PREFILL and view.model.spec.mode == "auto" and (trouble or view.was_ready):
            continue
        waiting = f"0 of {size} {role.value} workers are ready; {view.describe(role.value)}"
        return trouble or (Reason.STARTING_WORKERS, waiting)
    return None


def _gateway_ready(view: View) -> Finding | None:
    ready, wanted = view.gateway
    if ready:
        return None
    waiting = f"0 of {wanted} gateway Pods are ready; {view.describe(names.GATEWAY)}"
    return gateway_trouble(view) or (Reason.STARTING_GATEWAY, waiting)


READY: tuple[Callable[[View], Finding | None], ...] = (_refused, _created, _sizes, _workers_ready, _gateway_ready)


def progressing(view: View) -> tuple[bool, Finding]:
    if view.retrying:
        return True, (Reason.WRITES_FAIL, f"tried again: {'; '.join(view.retrying)}")
    if any(count.old_asked for count in view.plan.counts.values()):
        return True, (Reason.ROLLING_OUT, f"to revision {view.revision}: {view.plan.step.reason}")
    if any(count.old for count in view.plan.counts.values()):
        return True, (Reason.ROLLING_OUT, f"to revision {view.revision}: the last old workers are ending")
    short = [role for role, size in view.plan.sizes.items() if view.ready(role) != size or not is_asked(view, role)]
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


def is_asked(view: View, role: Role) -> bool:
    return view.plan.counts[role].new.asked == view.plan.sizes[role]


def degraded(view: View) -> Finding | None:
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
