"""What came of carrying a plan out, and what its failures mean. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baton_api.errors import KubernetesError

from . import kinds
from .kinds import Kind
from .objects import digest
from .plan import Action
from .snapshot import annotations_of

Json = dict[str, Any]
PERMANENT = (400, 403, 405, 413, 415, 422)
"""What the API server will say again to the same words, unless a quota, a right or a webhook changes."""
HALTING = (0, 429, 503, 504)
"""The whole API server is troubled: nothing else is tried either."""
NAME_TAKEN = "NameTaken"
NEEDS = {
    kinds.DEPLOYMENT: (kinds.SERVICE_ACCOUNT, kinds.CONFIG_MAP),
    kinds.ROLE_BINDING: (kinds.ROLE, kinds.SERVICE_ACCOUNT),
}
"""What has to be ours first, under the same name: Pods run as it and with it, rights go from one to the other."""


def is_permanent(error: KubernetesError) -> bool:
    """The API server answers 500 to an apply with a field that its schema does not have."""
    untyped = error.status == 500 and "failed to create typed patch object" in error.message
    return error.status in PERMANENT or untyped or error.code == NAME_TAKEN


@dataclass
class Outcome:
    """`refused`, `taken` (names that are somebody else's) and `retrying` in words; `retry` when trying again may help,
    not before `retry_after_s`; `again_s` until a refused write may be tried once more. `stamp` is what of the Model
    makes a refusal old."""

    stamp: str = ""
    wrote: int = 0
    refused: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    retrying: list[str] = field(default_factory=list)
    retry: KubernetesError | None = None
    again_s: float | None = None
    failed: set[tuple[Kind, str]] = field(default_factory=set)

    @property
    def halted(self) -> bool:
        return self.retry is not None and self.retry.status in HALTING

    def add_refusal(self, action: Action, error: KubernetesError, wait_s: float) -> None:
        self.failed.add((action.kind, action.name))
        self.again_s = wait_s if self.again_s is None else min(self.again_s, wait_s)
        if error.code == NAME_TAKEN:
            self.taken.append(error.message)
        else:
            self.refused.append(f"{action.kind.kind} {action.name}: {error.message}")

    def add_failure(self, action: Action, error: KubernetesError) -> None:
        self.failed.add((action.kind, action.name))
        self.retrying.append(f"{action.kind.kind} {action.name}: {error.message}")
        worse = self.retry is None or (error.retry_after_s or 0) > (self.retry.retry_after_s or 0)
        if worse or error.status in HALTING:
            self.retry = error

    def holds_back(self, action: Action) -> bool:
        """What needs something that failed waits for it; deletions wait for everything that may still be made."""
        if action.verb == "delete":
            return self.retry is not None
        if action.verb != "apply":
            return False
        if action.kind is kinds.DEPLOYMENT and any(kind is kinds.SECRET for kind, _ in self.failed):
            return True
        return any((kind, action.name) in self.failed for kind in NEEDS.get(action.kind, ()))


def stamp(raw: Json) -> str:
    """Of a Model (or Pool): changes when somebody has changed it, not when its status is written."""
    return digest([raw["metadata"].get("generation", 0), dict(annotations_of(raw))])


def taken(kind: Kind, name: str) -> KubernetesError:
    message = f"{kind.kind} {name} exists and is not Baton's: delete it or rename the Model"
    return KubernetesError(message, status=409, code=NAME_TAKEN)


def undone(action: Action) -> KubernetesError:
    """Of what somebody else changes back as often as it is written: a second operator, a controller, a webhook."""
    message = (
        f"somebody undoes every write of it ({action.reason}), another Baton operator perhaps: "
        f"kubectl get {action.kind.plural} {action.name} -o yaml --show-managed-fields says who"
    )
    return KubernetesError(message, status=409, code="Undone")


def is_of_old_crds(error: KubernetesError) -> bool:
    """A field or a value of a status that the CRD there does not know."""
    return "not declared in schema" in error.message or "Unsupported value" in error.message
