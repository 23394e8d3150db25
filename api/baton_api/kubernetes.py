"""What operator, images, chart and gateway agree on: names, labels, ports, files and variables (note 0005). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from .crd import API_VERSION, GROUP, VERSION
from .worker import Role

__all__ = ["API_VERSION", "GROUP", "VERSION"]

POOL_KIND = "Pool"
MODEL_PLURAL, POOL_PLURAL = "models", "pools"
FIELD_MANAGER = "baton-operator"

Component = Literal["prefill", "decode", "gateway"]
GATEWAY: Component = "gateway"

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MODEL_LABEL = f"{GROUP}/model"
ROLE_LABEL = f"{GROUP}/role"
REVISION_LABEL = f"{GROUP}/revision"
WORKER_LABEL = f"{GROUP}/worker"
APP_NAME = "baton"

WORKER_HTTP_PORT, WORKER_CONTROL_PORT = 9000, 9001
GATEWAY_HTTP_PORT = 8000
GATEWAY_SERVICE_PORT = 80
OPERATOR_HTTP_PORT = 8080
HTTP_PORT_NAME, CONTROL_PORT_NAME = "http", "control"
LISTEN_HOST = "0.0.0.0"
HEALTH_PATH, READY_PATH, METRICS_PATH = "/health", "/ready", "/metrics"

SETTINGS_DIR, SETTINGS_KEY = "/etc/baton", "settings.json"
SETTINGS_FILE = f"{SETTINGS_DIR}/{SETTINGS_KEY}"
SECRET_DIR, SECRET_KEY = "/var/run/baton/secret", "secret"
SECRET_FILE = f"{SECRET_DIR}/{SECRET_KEY}"
API_KEYS_DIR, API_KEY_KEY = "/var/run/baton/api-keys", "api-key"
API_KEY_FILE = f"{API_KEYS_DIR}/{API_KEY_KEY}"
SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
MODELS_DIR = "/models"
DEMO_MODEL_DIR = f"{MODELS_DIR}/demo_model/model"

WORKER_ID_VARIABLE = "BATON_WORKER_ID"
ADVERTISE_HOST_VARIABLE = "BATON_ADVERTISE_HOST"

USER_ID = 65532
"""Non-root user and group of every container (the distroless "nonroot")."""
PRE_STOP_SLEEP_S = 3
"""A gateway leaves the Service's endpoints before it refuses."""
GRACE_BEYOND_DRAIN_S = 15
REVISION_DIGITS = 10

MODULES: Mapping[Component, str] = {"prefill": "baton_prefill", "decode": "baton_decode", "gateway": "baton_gateway"}


def command(component: Component) -> tuple[str, ...]:
    return ("python", "-m", MODULES[component], "--settings", SETTINGS_FILE)


def component_of(role: Role) -> Component:
    return "prefill" if role is Role.PREFILL else "decode"


def pool_name(model: str, role: Role) -> str:
    """Of the Pool and of the role's PodDisruptionBudget."""
    return f"{model}-{role.value}"


def worker_name(model: str, role: Role, revision: str) -> str:
    """Of the Deployment and of its settings' ConfigMap."""
    return f"{model}-{role.value}-{revision}"


def gateway_name(model: str) -> str:
    """Of the gateway's Deployment, Service, PodDisruptionBudget, ConfigMap, ServiceAccount, Role and RoleBinding."""
    return f"{model}-gateway"


def workers_service_name(model: str) -> str:
    """Of the headless Service that the EndpointSlices follow."""
    return f"{model}-workers"


def secret_name(model: str) -> str:
    return f"{model}-secret"


def api_key_name(model: str) -> str:
    return f"{model}-api-key"


CHILD = re.compile(rf"(-(gateway|workers|secret|api-key|(prefill|decode)(-[0-9a-f]{{{REVISION_DIGITS}}})?))?")


def is_childs_name(model: str, name: str) -> bool:
    """Whether an object that an operator makes for the Model may be called so."""
    return name.startswith(model) and CHILD.fullmatch(name, len(model)) is not None


def endpoint(model: str, namespace: str) -> str:
    """Where clients in the cluster reach the Model."""
    return f"http://{gateway_name(model)}.{namespace}.svc"


def model_labels(model: str) -> dict[str, str]:
    """What every object of the Model carries."""
    return {NAME_LABEL: APP_NAME, INSTANCE_LABEL: model, MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: model}


def component_labels(model: str, component: Component) -> dict[str, str]:
    return model_labels(model) | {COMPONENT_LABEL: component}


def role_labels(model: str, role: Role) -> dict[str, str]:
    """Of what belongs to a role whatever its revision: Pool, PodDisruptionBudget."""
    return component_labels(model, component_of(role)) | {ROLE_LABEL: role.value}


def worker_labels(model: str, role: Role, revision: str) -> dict[str, str]:
    """Of a role's Deployment and ConfigMap of one revision."""
    return role_labels(model, role) | {REVISION_LABEL: revision}


def worker_pod_labels(model: str, role: Role, revision: str) -> dict[str, str]:
    return worker_labels(model, role, revision) | {WORKER_LABEL: "true"}


def workers_selector(model: str) -> dict[str, str]:
    """Selects the worker Pods of all roles and revisions."""
    return {MODEL_LABEL: model, WORKER_LABEL: "true"}


def role_selector(model: str, role: Role) -> dict[str, str]:
    return workers_selector(model) | {ROLE_LABEL: role.value}


def revision_selector(model: str, role: Role, revision: str) -> dict[str, str]:
    """Selects the Pods of one Deployment."""
    return role_selector(model, role) | {REVISION_LABEL: revision}


def gateway_selector(model: str) -> dict[str, str]:
    return {MODEL_LABEL: model, COMPONENT_LABEL: GATEWAY}


def selector_text(selector: Mapping[str, str]) -> str:
    """A label selector as a query, and /scale, write it."""
    return ",".join(f"{name}={value}" for name, value in sorted(selector.items()))
