"""The `Pool` resource: one role of one Model; what `kubectl scale`, an HPA, KEDA and the planner share. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from .crd_workers import MAX_REPLICAS
from .settings import setting
from .worker import Role


@dataclass(frozen=True, slots=True)
class PoolResourceSpec:
    """How many workers of which role."""

    role: str = setting(description="what these workers do", choices=tuple(role.value for role in Role))
    model: str = setting(description="the Model they belong to", pattern=r"[a-z]([-a-z0-9]{0,53}[a-z0-9])?")
    replicas: int = setting(
        1,
        "workers wanted; yours to set (kubectl scale, an HPA): the operator does when the Model's replicas change",
        low=0,
        high=MAX_REPLICAS,
    )
    min_replicas: int | None = setting(None, "replicas below this count as this", low=0, high=MAX_REPLICAS)
    max_replicas: int | None = setting(None, "replicas above this count as this", low=1, high=MAX_REPLICAS)

    @property
    def size(self) -> int:
        """Workers wanted within the limits (invariant I8)."""
        low = self.min_replicas or 0
        high = MAX_REPLICAS if self.max_replicas is None else self.max_replicas
        return max(low, min(self.replicas, high))
