"""The Pods of workers and gateways: what runs, with which rights, probes and mounts. Pure.

Every Pod passes Pod Security "restricted", but for a worker that asks for an RDMA device: only such a worker is root,
with one capability, to lock memory.
"""

from __future__ import annotations

import dataclasses
from math import ceil
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import Model, PoolSpec, ResourcesSpec
from baton_api.settings import camel_case
from baton_api.worker import Role

from .model_source import VOLUME, ModelSource, model_source
from .settings import OperatorSettings

Json = dict[str, Any]
RDMA_PREFIX = "rdma/"
STARTUP_FAILURES = 3600
"""Times a period of one second: how long a model may take to load."""
OWN_VARIABLES = (names.WORKER_ID_VARIABLE, names.ADVERTISE_HOST_VARIABLE)


def worker_template(model: Model, role: Role, pool: PoolSpec, revision: str, settings: OperatorSettings) -> Json:
    """The Pod template of a role's Deployment of one revision."""
    name = model.metadata.name
    image = model.spec.engine.image or (
        settings.prefill_image if role is Role.PREFILL else settings.decode_image
    )  # the release's own
    source = model_source(model.spec.source)
    component = names.component_of(role)
    container = _container(component, image, settings, names.WORKER_HTTP_PORT)
    container["ports"].append({"name": names.CONTROL_PORT_NAME, "containerPort": names.WORKER_CONTROL_PORT})
    container["env"] = _worker_environment(model)
    container["resources"] = _resources(_with_defaults(pool.resources, settings))
    container["volumeMounts"] += _mounts(source)
    volumes = [
        *_volumes(names.worker_name(name, role, revision), names.secret_name(name)),
        *([source.volume] if source.volume else []),
    ]
    if model.spec.kv.transport == "ucx":
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    if any(resource.startswith(RDMA_PREFIX) for resource in pool.resources.limits):
        container["securityContext"] = _locking_memory()
    labels = {**pool.labels, **names.worker_pod_labels(name, role, revision)}
    spec: Json = {
        **_pod(settings, model),
        "automountServiceAccountToken": False,
        "containers": [container],
        "initContainers": _fetch(source, image, settings, container["env"], with_weights=True),
        "volumes": volumes,
        "topologySpreadConstraints": [_spread(names.revision_selector(name, role, revision))],
        "nodeSelector": dict(pool.node_selector),
        "tolerations": [_camel(toleration) for toleration in pool.tolerations],
        "affinity": dict(pool.affinity),
        "priorityClassName": pool.priority_class_name,
        "runtimeClassName": pool.runtime_class_name,
        "serviceAccountName": pool.service_account_name,
    }
    return {"metadata": _metadata(labels, pool.annotations), "spec": _given(spec)}


def gateway_template(model: Model, settings: OperatorSettings, settings_hash: str) -> Json:
    """`settings_hash` makes a new file a new Pod: the process reads it once."""
    name = model.metadata.name
    source = model_source(model.spec.source)
    container = _container(names.GATEWAY, settings.gateway_image, settings, names.GATEWAY_HTTP_PORT)
    container["resources"] = _resources(settings.gateway_resources)
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": names.PRE_STOP_SLEEP_S}}}
    container["volumeMounts"] += [
        *_mounts(source),
        {"name": "api-keys", "mountPath": names.API_KEYS_DIR, "readOnly": True},
    ]
    volumes = [
        *_volumes(names.gateway_name(name), names.secret_name(name)),
        {"name": "api-keys", "secret": {"secretName": names.api_key_name(name), "defaultMode": 0o440}},
        *([source.volume] if source.volume else []),
    ]
    environment = [{"name": key, "value": value} for key, value in sorted(model.spec.engine.env.items())]
    spec: Json = {
        **_pod(settings, model),
        "serviceAccountName": names.gateway_name(name),
        "automountServiceAccountToken": True,
        "containers": [container],
        "initContainers": _fetch(source, settings.gateway_image, settings, environment, with_weights=False),
        "volumes": volumes,
        "topologySpreadConstraints": [_spread(names.gateway_selector(name))],
    }
    labels = names.component_labels(name, names.GATEWAY)
    return {"metadata": _metadata(labels, {f"{names.GROUP}/settings": settings_hash}), "spec": _given(spec)}


def _pod(settings: OperatorSettings, model: Model) -> Json:
    grace_s = ceil(model.spec.failure_policy.drain_seconds) + names.GRACE_BEYOND_DRAIN_S
    return {
        "terminationGracePeriodSeconds": grace_s,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": names.USER_ID,
            "runAsGroup": names.USER_ID,
            "fsGroup": names.USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _container(component: names.Component, image: str, settings: OperatorSettings, port: int) -> Json:
    def probe(path: str, **times: int) -> Json:
        return {"httpGet": {"path": path, "port": names.HTTP_PORT_NAME}, **times}

    return {
        "name": component,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(names.command(component)),
        "ports": [{"name": names.HTTP_PORT_NAME, "containerPort": port}],
        "startupProbe": probe(names.HEALTH_PATH, periodSeconds=1, timeoutSeconds=5, failureThreshold=STARTUP_FAILURES),
        "readinessProbe": probe(names.READY_PATH, periodSeconds=1, timeoutSeconds=5, failureThreshold=3),
        "livenessProbe": probe(names.HEALTH_PATH, periodSeconds=10, timeoutSeconds=10, failureThreshold=6),
        "securityContext": _restricted(),
        "volumeMounts": [
            {"name": "settings", "mountPath": names.SETTINGS_DIR, "readOnly": True},
            {"name": "secret", "mountPath": names.SECRET_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _restricted() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _locking_memory() -> Json:
    """Of root, for a process of any other user starts without the capability: Kubernetes gives no ambient ones."""
    return {
        **_restricted(),
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        "runAsNonRoot": False,
        "runAsUser": 0,
    }


def _volumes(config_map: str, secret: str) -> list[Json]:
    return [
        {"name": "settings", "configMap": {"name": config_map}},
        {"name": "secret", "secret": {"secretName": secret, "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _mounts(source: ModelSource) -> list[Json]:
    if source.volume is None:
        return []
    return [{"name": VOLUME, "mountPath": names.MODELS_DIR, "readOnly": True}]


def _fetch(
    source: ModelSource, image: str, settings: OperatorSettings, environment: list[Json], *, with_weights: bool
) -> list[Json]:
    if source.fetch is None:
        return []
    return [
        {
            "name": "fetch",
            "image": image,
            "imagePullPolicy": settings.image_pull_policy,
            "command": source.fetch.command(with_weights=with_weights),
            "env": [
                *(variable for variable in environment if variable["name"] not in (*OWN_VARIABLES, "HF_HOME")),
                {"name": "HF_HOME", "value": "/tmp/hf"},
            ],
            "securityContext": _restricted(),
            "volumeMounts": [{"name": VOLUME, "mountPath": names.MODELS_DIR}, {"name": "tmp", "mountPath": "/tmp"}],
        }
    ]


def _worker_environment(model: Model) -> list[Json]:
    """What the Model gives, but for the variables that say who this worker is and where."""
    given = {name: value for name, value in model.spec.engine.env.items() if name not in OWN_VARIABLES}
    own = {names.WORKER_ID_VARIABLE: "metadata.name", names.ADVERTISE_HOST_VARIABLE: "status.podIP"}
    return [
        *({"name": name, "value": value} for name, value in sorted(given.items())),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in own.items()),
    ]


def _with_defaults(given: ResourcesSpec, settings: OperatorSettings) -> ResourcesSpec:
    """A Pod without requests starves first, and is the first to be evicted. A limit alone is a request already."""
    defaults, said = settings.worker_resources, {*given.requests, *given.limits}
    requests, limits = (
        {name: amount for name, amount in some.items() if name not in said}
        for some in (defaults.requests, defaults.limits)
    )
    return ResourcesSpec({**requests, **given.requests}, {**limits, **given.limits})


def _resources(resources: ResourcesSpec) -> Json:
    """Quantities as text: a number and its text are the same to the API server, and text is what it answers."""
    kinds = (("requests", resources.requests), ("limits", resources.limits))
    return {kind: {name: str(amount) for name, amount in given.items()} for kind, given in kinds if given}


def _spread(selector: dict[str, str]) -> Json:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }


def _metadata(labels: dict[str, str], annotations: Any) -> Json:
    return _given({"labels": dict(labels), "annotations": dict(annotations)})


def _camel(item: Any) -> Json:
    return {camel_case(name): value for name, value in dataclasses.asdict(item).items() if value is not None}


def _given(fields: Json) -> Json:
    """Without what says nothing."""
    return {name: value for name, value in fields.items() if value is not None and value != {} and value != []}
