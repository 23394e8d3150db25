"""What to write, in which order and why: the difference between what should be and what is. Pure.

Nothing is written that is as wanted already. What Pods need to start comes first: accounts, secrets and settings, then
Deployments (up before down); then Roles, Services and Pools, then RoleBindings, budgets and policies; what is no longer
wanted goes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import Model
from baton_api.worker import Role

from . import kinds, objects
from .compare import Compared
from .desired import Desired, pools_of
from .kinds import Kind
from .objects import Owner
from .rollout import Count, Limits, RoleCounts, Step, next_step
from .snapshot import Snapshot, annotations_of, is_owned_by, name_of, revision_label

Json = dict[str, Any]
MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Action:
    """One write. `verb` is apply (server-side; of what is missing only if the name is free), create, merge (a JSON
    merge patch), secret (created with fresh content) or delete (of that `uid` only)."""

    verb: str
    kind: Kind
    name: str
    reason: str
    body: Any = None
    uid: str = ""

    @property
    def stage(self) -> int:
        return 9 if self.verb == "delete" else self.kind.stage

    @property
    def label(self) -> str:
        """For metrics: few values."""
        return MISSING if self.reason == MISSING else self.reason.partition(":")[0].partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Plan:
    """`sizes` are the workers wanted when settled; `counts` what the step was decided from."""

    actions: tuple[Action, ...]
    step: Step
    sizes: Mapping[Role, int]
    counts: Mapping[Role, RoleCounts]

    def split(self) -> tuple[list[Action], list[Action]]:
        """What Pods wait for; the rest."""
        waited_for = [action for action in self.actions if action.stage <= kinds.STARTS]
        return waited_for, [action for action in self.actions if action.stage > kinds.STARTS]


def plan(model: Model, owner: Owner, wanted: Desired, snapshot: Snapshot, compared: Compared) -> Plan:
    """Whatever the state: from any of them repeated plans lead to the same objects. `compared` goes with `wanted`."""
    sizes = {role: pool_size(model, role, snapshot) for role in pools_of(model)}
    counts = {role: role_counts(snapshot, role, wanted.revision, sizes.get(role)) for role in Role}
    rollout = model.spec.rollout
    step = next_step(counts, Limits(rollout.max_surge, rollout.max_unavailable))
    actions = [
        *_secrets(owner, wanted, snapshot),
        *_objects(model, wanted, snapshot, compared),
        *_workers(wanted, snapshot, step, compared),
        *_leftovers(owner, wanted, snapshot),
    ]
    return Plan(tuple(sorted(actions, key=lambda action: action.stage)), step, sizes, counts)


def pool_size(model: Model, role: Role, snapshot: Snapshot) -> int:
    """The Pool's, unless the Model says another number than when the Pool was last set: then the Model's."""
    given = pools_of(model)[role]
    pool = snapshot.pool(role)
    if pool is None or annotations_of(pool).get(objects.MODEL_REPLICAS) != str(given.replicas):
        return given.replicas
    asked = objects.pool_spec(pool).replicas
    return max(given.min_replicas or 0, asked if given.max_replicas is None else min(asked, given.max_replicas))


def role_counts(snapshot: Snapshot, role: Role, revision: str, size: int | None) -> RoleCounts:
    """`size` None: the role is not wanted, and all its workers are old."""
    deployments = snapshot.deployments(role)
    new = [item for item in deployments if size is not None and revision_label(item) == revision]
    old = [item for item in deployments if item not in new]
    return RoleCounts(size or 0, count_of(new[0]) if new else Count(0, 0), tuple(count_of(item) for item in old))


def count_of(deployment: Json) -> Count:
    status = deployment.get("status") or {}
    asked, ready = int(deployment["spec"].get("replicas", 1)), int(status.get("readyReplicas", 0))
    return Count(asked, ready, revision_label(deployment))


def _secrets(owner: Owner, wanted: Desired, snapshot: Snapshot) -> Iterator[Action]:
    """Made once, their content never written again. Those of a Model of that name that is gone are taken over, also
    when it left them without an owner (--cascade=orphan): its Pods know them. A user's own stays without one."""
    metadata = objects.secret_labels(owner)
    for name in wanted.secrets:
        found = snapshot.find(kinds.SECRET, name)
        if found is None:
            yield Action("secret", kinds.SECRET, name, MISSING, metadata)
        elif not is_owned_by(found, owner.uid) and (
            found["metadata"].get("ownerReferences") or objects.MADE_HERE in annotations_of(found)
        ):
            body = {"metadata": {"ownerReferences": metadata["ownerReferences"]}}
            yield Action("merge", kinds.SECRET, name, "owner: a Model of this name that is gone", body)


def _objects(model: Model, wanted: Desired, snapshot: Snapshot, compared: Compared) -> Iterator[Action]:
    for item in wanted.objects:
        kind, name = kinds.BY_KIND[item["kind"]], name_of(item)
        found = snapshot.find(kind, name)
        if kind is kinds.POOL:
            yield from _pool(model, item, found, compared)
            continue
        reason = _reason(item, found, compared)
        if reason is not None:
            yield Action("apply", kind, name, reason, item)


def _reason(item: Json, found: Json | None, compared: Compared) -> str | None:
    if found is None:
        return MISSING
    different = compared.difference(item, found)
    return None if different is None else f"changed: {different}"


def _pool(model: Model, item: Json, found: Json | None, compared: Compared) -> Iterator[Action]:
    """Its replicas belong to whoever scales: they are set when it is made and when the Model's own number changes. By
    merge patches, as an apply that leaves a field out would give it up."""
    name = name_of(item)
    replicas = pools_of(model)[Role(item["spec"]["role"])].replicas
    sized = objects.pool_replicas(replicas)
    annotations = item["metadata"]["annotations"] | sized["metadata"]["annotations"]
    whole = {
        **item,
        "metadata": item["metadata"] | {"annotations": annotations},
        "spec": item["spec"] | sized["spec"],
    }
    if found is None:
        yield Action("create", kinds.POOL, name, MISSING, whole)
        return
    if annotations_of(found).get(objects.MODEL_REPLICAS) != str(replicas):
        yield Action("merge", kinds.POOL, name, f"replicas: the Model says {replicas}", _merge(whole, found))
    elif (different := compared.difference(item, found)) is not None:
        yield Action("merge", kinds.POOL, name, f"changed: {different}", _merge(item, found))


def _merge(item: Json, found: Json) -> Json:
    """A merge patch that also takes limits away that are no longer given."""
    gone = {name: None for name in ("minReplicas", "maxReplicas") if name in found["spec"] and name not in item["spec"]}
    metadata = {name: item["metadata"][name] for name in ("labels", "annotations", "ownerReferences")}
    return {"metadata": metadata, "spec": item["spec"] | gone}


def _workers(wanted: Desired, snapshot: Snapshot, step: Step, compared: Compared) -> Iterator[Action]:
    for role, item in wanted.workers.items():
        name, size = name_of(item), step.roles[role].new
        found = snapshot.find(kinds.DEPLOYMENT, name)
        reason = _reason(item, found, compared)
        if reason is not None:
            yield Action("apply", kinds.DEPLOYMENT, name, reason, objects.sized(item, size))
        elif found is not None and count_of(found).asked != size:
            yield _resize(name, size, wanted.revision)
    for role, role_step in step.roles.items():
        old = [item for item in snapshot.deployments(role) if not _is_new(item, role, wanted)]
        for item, size in zip(old, role_step.old, strict=True):
            yield from _old_workers(item, size, snapshot)


def _resize(name: str, size: int, revision: str) -> Action:
    """A merge patch: the whole template need not be sent, and compared, again."""
    return Action("merge", kinds.DEPLOYMENT, name, f"size: {size} of {revision}", {"spec": {"replicas": size}})


def _is_new(item: Json, role: Role, wanted: Desired) -> bool:
    return role in wanted.workers and revision_label(item) == wanted.revision


def _old_workers(item: Json, size: int, snapshot: Snapshot) -> Iterator[Action]:
    """Smaller, and gone with its settings once its last Pod has ended."""
    name, revision = name_of(item), revision_label(item)
    if count_of(item).asked != size:
        yield _resize(name, size, revision)
    elif size == 0 and not (item.get("status") or {}).get("replicas") and not _has_pods(item, snapshot):
        uid = item["metadata"]["uid"]
        yield Action("delete", kinds.DEPLOYMENT, name, f"rollout: {revision} is empty", uid=uid)


def _has_pods(item: Json, snapshot: Snapshot) -> bool:
    return any(pod.name.startswith(f"{name_of(item)}-") for pod in snapshot.pods)


def _leftovers(owner: Owner, wanted: Desired, snapshot: Snapshot) -> Iterator[Action]:
    """What this Model owns and no longer needs, under a name that an operator gives: what somebody else has hung on to
    the Model goes with it, not before. Deployments of workers go through the rollout instead."""
    needed = {(item["kind"], name_of(item)) for item in wanted.objects}
    needed |= {(kinds.SECRET.kind, name) for name in wanted.secrets}
    needed |= {(kinds.CONFIG_MAP.kind, name) for kind, name in snapshot.children if kind == kinds.DEPLOYMENT.kind}
    for (kind, name), item in snapshot.children.items():
        is_workers = kind == kinds.DEPLOYMENT.kind and revision_label(item)
        if (kind, name) in needed or is_workers or not is_owned_by(item, owner.uid):
            continue
        if not names.is_childs_name(owner.name, name):
            continue
        if "deletionTimestamp" not in item["metadata"]:
            yield Action("delete", kinds.BY_KIND[kind], name, "leftover: no longer wanted", uid=item["metadata"]["uid"])
