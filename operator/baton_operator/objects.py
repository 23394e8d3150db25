"""One function per object of a Model, as docs/design/0005-kubernetes.md names them. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import PoolSpec
from baton_api.crd_pool import PoolResourceSpec
from baton_api.worker import Role

from . import kinds
from .kinds import Kind

Json = dict[str, Any]
APPLIED = f"{names.GROUP}/applied"
"""Annotation: a digest of what was applied last, so that a field that is no longer wanted is seen."""
MODEL_REPLICAS = f"{names.GROUP}/model-replicas"
"""Annotation of a Pool: the Model's own replicas when the operator last set the Pool's."""
MADE_HERE = f"{names.GROUP}/made-by-operator"
"""Annotation of a Secret whose content the operator drew; a user's own has none."""
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}


@dataclass(frozen=True, slots=True)
class Owner:
    """A Model that has a uid; namespace and labels of all its children come from here."""

    name: str
    namespace: str
    uid: str

    def reference(self) -> Json:
        return {
            "apiVersion": kinds.MODEL.api_version,
            "kind": kinds.MODEL.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
        }

    def child(self, kind: Kind, name: str, labels: dict[str, str], **fields: Any) -> Json:
        """The object, with the digest of itself."""
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": labels,
            "ownerReferences": [self.reference()],
        }
        made: Json = {"apiVersion": kind.api_version, "kind": kind.kind, **fields, "metadata": metadata}
        metadata["annotations"] = {APPLIED: digest(made)}
        return made


def digest(value: Any, digits: int = names.REVISION_DIGITS) -> str:
    """Hexadecimal, of the value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def worker_config_map(owner: Owner, role: Role, revision: str, settings_file: str) -> Json:
    return owner.child(
        kinds.CONFIG_MAP,
        names.worker_name(owner.name, role, revision),
        names.worker_labels(owner.name, role, revision),
        data={names.SETTINGS_KEY: settings_file},
        immutable=True,
    )


def gateway_config_map(owner: Owner, settings_file: str) -> Json:
    labels = names.component_labels(owner.name, names.GATEWAY)
    return owner.child(
        kinds.CONFIG_MAP, names.gateway_name(owner.name), labels, data={names.SETTINGS_KEY: settings_file}
    )


def worker_deployment(owner: Owner, role: Role, revision: str, template: Json) -> Json:
    """Without its size, which is not in the digest either: the Deployment controller copies annotations to ReplicaSets,
    and a change of size would cost it a second write."""
    return owner.child(
        kinds.DEPLOYMENT,
        names.worker_name(owner.name, role, revision),
        names.worker_labels(owner.name, role, revision),
        spec={
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 3600,
            "selector": {"matchLabels": names.revision_selector(owner.name, role, revision)},
            "template": template,
        },
    )


def sized(deployment: Json, replicas: int) -> Json:
    return {**deployment, "spec": {**deployment["spec"], "replicas": replicas}}


def gateway_deployment(owner: Owner, template: Json, replicas: int) -> Json:
    """A new Pod is ready before an old one goes: readiness means that a route exists."""
    return owner.child(
        kinds.DEPLOYMENT,
        names.gateway_name(owner.name),
        names.component_labels(owner.name, names.GATEWAY),
        spec={
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": names.gateway_selector(owner.name)},
            "template": template,
        },
    )


def gateway_service(owner: Owner) -> Json:
    port = {"name": names.HTTP_PORT_NAME, "port": names.GATEWAY_SERVICE_PORT, "targetPort": names.HTTP_PORT_NAME}
    return owner.child(
        kinds.SERVICE,
        names.gateway_name(owner.name),
        names.component_labels(owner.name, names.GATEWAY),
        spec={"selector": names.gateway_selector(owner.name), "ports": [port]},
    )


def workers_service(owner: Owner) -> Json:
    """Headless. Addresses stand there before they are ready: the gateway asks the workers themselves."""
    ports = ((names.HTTP_PORT_NAME, names.WORKER_HTTP_PORT), (names.CONTROL_PORT_NAME, names.WORKER_CONTROL_PORT))
    return owner.child(
        kinds.SERVICE,
        names.workers_service_name(owner.name),
        names.model_labels(owner.name),
        spec={
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.workers_selector(owner.name),
            "ports": [{"name": name, "port": port, "targetPort": name} for name, port in ports],
        },
    )


def gateway_account(owner: Owner) -> Json:
    return owner.child(
        kinds.SERVICE_ACCOUNT,
        names.gateway_name(owner.name),
        names.component_labels(owner.name, names.GATEWAY),
        automountServiceAccountToken=False,
    )


def gateway_role(owner: Owner) -> Json:
    read = ["list", "watch"]
    return owner.child(
        kinds.ROLE,
        names.gateway_name(owner.name),
        names.component_labels(owner.name, names.GATEWAY),
        rules=[
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
            {"apiGroups": [""], "resources": ["pods"], "verbs": read},
        ],
    )


def gateway_role_binding(owner: Owner) -> Json:
    name = names.gateway_name(owner.name)
    return owner.child(
        kinds.ROLE_BINDING,
        name,
        names.component_labels(owner.name, names.GATEWAY),
        roleRef={"apiGroup": kinds.ROLE.group, "kind": kinds.ROLE.kind, "name": name},
        subjects=[{"kind": kinds.SERVICE_ACCOUNT.kind, "name": name, "namespace": owner.namespace}],
    )


def budget(owner: Owner, name: str, labels: dict[str, str], selector: dict[str, str]) -> Json:
    """One Pod at a time may be evicted; a node can always be drained."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    return owner.child(kinds.BUDGET, name, labels, spec=spec)


def network_policy(owner: Owner) -> Json:
    """Into workers: HTTP from gateway and Prometheus, anything from each other (KV listeners take free ports)."""
    here = {"podSelector": {"matchLabels": names.workers_selector(owner.name)}}
    gateway = {"podSelector": {"matchLabels": names.gateway_selector(owner.name)}}
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": PROMETHEUS}}
    http = {"protocol": "TCP", "port": names.WORKER_HTTP_PORT}
    return owner.child(
        kinds.NETWORK_POLICY,
        owner.name,
        names.model_labels(owner.name),
        spec={
            "podSelector": here["podSelector"],
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [here]}, {"from": [gateway, prometheus], "ports": [http]}],
        },
    )


def workers_monitor(owner: Owner) -> Json:
    endpoint = {"port": names.HTTP_PORT_NAME, "path": names.METRICS_PATH}
    return owner.child(
        kinds.POD_MONITOR,
        owner.name,
        names.model_labels(owner.name),
        spec={"selector": {"matchLabels": names.workers_selector(owner.name)}, "podMetricsEndpoints": [endpoint]},
    )


def gateway_monitor(owner: Owner) -> Json:
    endpoint = {"port": names.HTTP_PORT_NAME, "path": names.METRICS_PATH}
    selector = {"matchLabels": names.component_labels(owner.name, names.GATEWAY)}
    return owner.child(
        kinds.SERVICE_MONITOR,
        names.gateway_name(owner.name),
        names.component_labels(owner.name, names.GATEWAY),
        spec={"selector": selector, "endpoints": [endpoint]},
    )


def pool(owner: Owner, role: Role, given: PoolSpec) -> Json:
    """Without replicas: those are set once by `pool_replicas`, and then whoever scales sets them."""
    spec: Json = {"role": role.value, "model": owner.name}
    limits = {"minReplicas": given.min_replicas, "maxReplicas": given.max_replicas}
    spec |= {name: value for name, value in limits.items() if value is not None}
    return owner.child(kinds.POOL, names.pool_name(owner.name, role), names.role_labels(owner.name, role), spec=spec)


def pool_replicas(replicas: int) -> Json:
    """The part of a Pool that says its size, and by which word of the Model."""
    return {"metadata": {"annotations": {MODEL_REPLICAS: str(replicas)}}, "spec": {"replicas": replicas}}


def pool_spec(raw: Json) -> PoolResourceSpec:
    """Of an observed Pool, which the API server has checked."""
    spec = raw["spec"]
    return PoolResourceSpec(
        spec["role"], spec["model"], spec.get("replicas", 1), spec.get("minReplicas"), spec.get("maxReplicas")
    )


def secret_labels(owner: Owner) -> Json:
    """Metadata of a Secret that the operator makes once. What is in it is drawn when it is made."""
    return {
        "labels": names.model_labels(owner.name),
        "annotations": {MADE_HERE: "true"},
        "namespace": owner.namespace,
        "ownerReferences": [owner.reference()],
    }
