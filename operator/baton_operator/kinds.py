"""The kinds of objects that the operator reads or writes, and their paths in the API. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.kubernetes import GROUP, MODEL_PLURAL, POOL_KIND, POOL_PLURAL, VERSION


@dataclass(frozen=True, slots=True)
class Kind:
    """`group` "" is the core group. `stage` is when it is written: what Pods need to start comes first."""

    group: str
    version: str
    kind: str
    plural: str
    stage: int = 0
    metadata_only: bool = False
    optional: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Of one object, of a namespace's, of all; a namespace may stand without a name but not the other way round."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if namespace else ""
        return "/".join([f"{root}{inside}", self.plural, *(part for part in (name, subresource) if part)])


MODEL = Kind(GROUP, VERSION, "Model", MODEL_PLURAL)
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
ROLE = Kind("rbac.authorization.k8s.io", "v1", "Role", "roles", stage=2)
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", stage=3)
SECRET = Kind("", "v1", "Secret", "secrets", metadata_only=True)
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
SERVICE = Kind("", "v1", "Service", "services", stage=2)
POOL = Kind(GROUP, VERSION, POOL_KIND, POOL_PLURAL, stage=2)
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments", stage=1)
BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", stage=3)
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", stage=3)
POD_MONITOR = Kind("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors", stage=3, optional=True)
SERVICE_MONITOR = Kind("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors", stage=3, optional=True)
STARTS = DEPLOYMENT.stage
"""Up to this stage Pods wait for what is written; a RoleBinding comes after its Role, which the API server reads."""
POD = Kind("", "v1", "Pod", "pods")
EVENT = Kind("", "v1", "Event", "events")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")

CHILDREN = (
    SERVICE_ACCOUNT, ROLE, ROLE_BINDING, SECRET, CONFIG_MAP, SERVICE, POOL, DEPLOYMENT, BUDGET, NETWORK_POLICY,
)  # fmt: skip
OPTIONAL = (POD_MONITOR, SERVICE_MONITOR)
BY_KIND = {kind.kind: kind for kind in (MODEL, *CHILDREN, *OPTIONAL, POD, EVENT, LEASE)}
