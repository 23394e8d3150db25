"""What is going on with a Model on a cluster, why, and what to do next. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from baton_api.crd_status import CONDITIONS, Reason
from baton_api.kubernetes import COMPONENT_LABEL, REVISION_LABEL

from .cluster import Json, Seen

RECENT_EVENTS = 8


@dataclass(frozen=True, slots=True)
class Trouble:
    """A Pod that is not ready, and why as far as Kubernetes says."""

    pod: str
    component: str
    revision: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`conditions` as the operator wrote them, in kstatus' order; `next_steps` are commands or edits."""

    name: str
    namespace: str
    ready: str
    reason: str
    message: str
    endpoint: str
    current: bool
    plan: Mapping[str, str]
    conditions: tuple[Json, ...]
    roles: tuple[tuple[str, str], ...]
    revisions: tuple[Json, ...]
    troubles: tuple[Trouble, ...]
    events: tuple[str, ...]
    next_steps: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def explain(seen: Seen) -> Explanation:
    metadata, status = seen.model["metadata"], seen.model.get("status") or {}
    found = {str(condition["type"]): condition for condition in status.get("conditions") or []}
    conditions = tuple(found[kind] for kind in CONDITIONS if kind in found)
    ready = found.get("Ready", {})
    reason = str(ready.get("reason", ""))
    troubles = tuple(_troubles(seen.pods))
    current = status.get("observedGeneration") == metadata.get("generation")
    return Explanation(
        name=metadata["name"],
        namespace=metadata["namespace"],
        ready=str(ready.get("status", "Unknown")),
        reason=reason or "NotObserved",
        message=str(ready.get("message", "the operator has not looked at it yet")),
        endpoint=str(status.get("endpoint", "")),
        current=current,
        plan=status.get("plan") or {},
        conditions=conditions,
        roles=tuple(_roles(status)),
        revisions=tuple(status.get("revisions") or ()),
        troubles=troubles,
        events=tuple(_recent(seen.events)),
        next_steps=tuple(_next(metadata, reason, current, troubles)),
    )


def _roles(status: Json) -> Iterator[tuple[str, str]]:
    for role in ("prefill", "decode"):
        said = status.get(role) or {}
        if said:
            yield role, f"{said.get('ready', 0)} ready of {said.get('wanted', 0)}, {said.get('updated', 0)} up to date"
    if status.get("gateway"):
        yield "gateway", f"{status['gateway']} ready"


def _troubles(pods: tuple[Json, ...]) -> Iterator[Trouble]:
    for pod in pods:
        why = pod_trouble(pod)
        if why is not None:
            labels = pod["metadata"].get("labels") or {}
            yield Trouble(pod["metadata"]["name"], labels.get(COMPONENT_LABEL, ""), labels.get(REVISION_LABEL, ""), why)


def pod_trouble(pod: Json) -> str | None:
    """None: it is ready. The first of: being deleted, not scheduled, a container that waits or ended, not ready."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return "is ending"
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', 'Unschedulable')}: {scheduled.get('message', '')}"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        if (why := _container_trouble(container)) is not None:
            return why
    return f"{status.get('phase', 'Pending')}: not ready yet"


def _container_trouble(container: Json) -> str | None:
    waiting = (container.get("state") or {}).get("waiting")
    ended = (container.get("lastState") or {}).get("terminated") or (container.get("state") or {}).get("terminated")
    restarts = container.get("restartCount", 0)
    crash = f" (exit code {ended.get('exitCode')}, {restarts} restarts)" if ended and restarts else ""
    if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
        return f"{waiting.get('reason')}{crash}: {waiting.get('message', '')}".rstrip(": ")
    return f"restarted{crash}" if crash and not container.get("ready") else None


def _recent(events: tuple[Json, ...]) -> Iterator[str]:
    """The last warnings, oldest first."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    for event in sorted(warnings, key=_time)[-RECENT_EVENTS:]:
        about = event.get("involvedObject") or {}
        yield f"{_time(event)} {about.get('kind')}/{about.get('name')} {event.get('reason')}: {event.get('message')}"


def _time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


LOGS = "kubectl -n {namespace} logs {pod} --previous"
EVENTS = "kubectl -n {namespace} describe pod {pod}"
NEXT: Mapping[str, tuple[str, ...]] = {
    Reason.SERVING: ("kubectl -n {namespace} port-forward service/{name}-gateway 8000:80, then ask 127.0.0.1:8000/v1",),
    Reason.INVALID_SPEC: ("mend the field that the message names: kubectl -n {namespace} edit model {name}",),
    Reason.NOT_SUPPORTED: ("leave out what the message names: kubectl -n {namespace} edit model {name}",),
    Reason.REFUSED_BY_API_SERVER: ("kubectl -n {namespace} get events: a quota, Pod Security or an admission policy",),
    Reason.NAME_TAKEN: ("delete or rename what the message names; it is tried again within 5 minutes",),
    Reason.WRITES_FAIL: ("mend what the message names (an admission webhook?); it is tried again by itself",),
    Reason.PODS_REFUSED: ("mend what the message names (quota, Pod Security, PriorityClass); nothing else is needed",),
    Reason.CREATING: ("wait; if it stays so, look at the operator's log",),
    Reason.STARTING_WORKERS: ("kubectl -n {namespace} get pods -l baton.dev/model={name} --watch", LOGS),
    Reason.STARTING_GATEWAY: ("kubectl -n {namespace} get pods -l baton.dev/model={name} --watch", LOGS),
    Reason.WORKERS_UNSCHEDULABLE: ("baton doctor: are there nodes with these resources?", EVENTS),
    Reason.WORKERS_CRASHING: (LOGS,),
    Reason.GATEWAY_CRASHING: (LOGS,),
    Reason.IMAGE_UNAVAILABLE: ("check image name, tag and pull secrets", EVENTS),
    Reason.NO_PREFILL_WORKERS: ("kubectl -n {namespace} scale pool {name}-prefill --replicas=1", LOGS),
    Reason.NO_DECODE_WORKERS: ("kubectl -n {namespace} scale pool {name}-decode --replicas=1", LOGS),
    Reason.ROLLING_OUT: ("kubectl -n {namespace} get pods -l baton.dev/model={name} -L baton.dev/revision --watch",),
    Reason.APPLYING: ("wait; if it stays so, somebody undoes the operator's writes: the message names the field",),
    Reason.CLEANING_UP: ("kubectl -n {namespace} get pods -l baton.dev/model={name} --watch",),
    Reason.DELETING: ("who put the finalizer there that the message names, and does it run?",),
    Reason.NO_SUCH_MODEL: (
        "make the Model again, or: kubectl -n {namespace} delete pool {name}-prefill {name}-decode",
    ),
    Reason.SCALING: ("kubectl -n {namespace} get pools --watch",),
    Reason.SCALE_CLAMPED: ("raise minReplicas or maxReplicas: kubectl -n {namespace} edit model {name}",),
    Reason.FEWER_WORKERS: ("kubectl -n {namespace} get pods -l baton.dev/model={name}", EVENTS),
}


def _next(metadata: Json, reason: str, current: bool, troubles: tuple[Trouble, ...]) -> Iterator[str]:
    """What names a Pod is said of the first one in trouble, and not at all when none is."""
    if not current or not reason:
        yield "the operator has not seen this generation; does it run? baton doctor says"
    ill = next((trouble.pod for trouble in troubles if trouble.why != "is ending"), None)
    for step in NEXT.get(reason, ()):
        if "{pod}" not in step or ill is not None:
            yield step.format(namespace=metadata["namespace"], name=metadata["name"], pod=ill)
