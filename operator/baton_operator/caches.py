"""What the operator knows of the cluster: objects by Model, fed by watches and by the answers to its own writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Generic, NamedTuple, TypeVar

from baton_api.kubernetes import COMPONENT_LABEL, GATEWAY, MODEL_LABEL
from baton_wire.kube_api import Event, Listing

from .kinds import MODEL, Kind
from .snapshot import Key, labels_of, name_of

Json = dict[str, Any]
T = TypeVar("T")
BURIED = 4096
"""Uids of deleted objects that are remembered, for answers that the watch has overtaken."""


class Known(NamedTuple):
    version: int
    model: Key
    uid: str


class Cache(Generic[T]):
    """Objects of one kind in one namespace (or in all: `namespace` ""). `keep` makes of each what is remembered;
    `changed(key)` is called for the Model that a change belongs to."""

    def __init__(self, kind: Kind, namespace: str, keep: Callable[[Json], T], changed: Callable[[Key], None]) -> None:
        self.kind = kind
        self.namespace = namespace
        self.listed = False
        self._keep = keep
        self._changed = changed
        self._known: dict[tuple[str, str], Known] = {}
        self._by_model: dict[Key, dict[str, T]] = {}
        self._gone: dict[str, float] = {}

    def of(self, key: Key) -> dict[str, T]:
        """By name; not to be changed."""
        return self._by_model.get(key, {})

    def version(self, namespace: str, name: str) -> str:
        """The resource version known; "" for what is not there."""
        known = self._known.get((namespace, name))
        return str(known.version) if known else ""

    def keys(self) -> Iterable[Key]:
        return tuple(self._by_model)

    def __len__(self) -> int:
        return len(self._known)

    # What a reflector calls.

    def replace(self, listing: Listing) -> None:
        """What is not listed is gone, whoever missed its end."""
        listed = {_place(raw) for raw in listing.items}
        for place in [place for place in self._known if place not in listed]:
            self._drop(place)
        for raw in listing.items:
            self.put(raw)
        self.listed = True

    def apply(self, event: Event) -> None:
        if event.kind == "DELETED":
            metadata = event.object["metadata"]
            self._bury(str(metadata.get("uid", "")), int(metadata["resourceVersion"]))
            self._drop(_place(event.object))
        elif event.kind in ("ADDED", "MODIFIED"):
            self.put(event.object)

    # What the writer calls.

    def put(self, raw: Json, *, tell: bool = True) -> None:
        """Older news than what is known is none: the answer to a write overtakes the watch, or the watch the answer.
        Nobody is told of what makes no difference here, nor with `tell` False: the writer knows its own answers."""
        place, version = _place(raw), int(raw["metadata"].get("resourceVersion", 0))
        uid = str(raw["metadata"].get("uid", ""))
        known = self._known.get(place)
        if (known is not None and known.version >= version) or version <= self._gone.get(uid, -1):
            return
        raw |= {"apiVersion": self.kind.api_version, "kind": self.kind.kind}  # items of a list do not say so
        key = self._model_of(raw)
        if known is not None and known.model != key:
            self._drop(place)
        items, kept = self._by_model.setdefault(key, {}), self._keep(raw)
        before = items.get(name_of(raw))
        self._known[place] = Known(version, key, uid)
        items[name_of(raw)] = kept
        if tell and (before is None or not _is_same(before, kept)):
            self._changed(key)

    def forget(self, namespace: str, name: str, uid: str) -> None:
        """Deleted by us: what the watch still says of this `uid` is older."""
        self._bury(uid, inf)
        known = self._known.get((namespace, name))
        if known is not None and known.uid == uid:
            self._drop((namespace, name))

    def _bury(self, uid: str, version: float) -> None:
        """What is still on its way of this object is older; newer is one that has lost our label and got it back."""
        self._gone[uid] = version
        while len(self._gone) > BURIED:
            del self._gone[next(iter(self._gone))]

    def _drop(self, place: tuple[str, str]) -> None:
        known = self._known.pop(place, None)
        if known is None:
            return
        key = known.model
        items = self._by_model[key]
        del items[place[1]]
        if not items:
            del self._by_model[key]
        self._changed(key)

    def _model_of(self, raw: Json) -> Key:
        namespace = str(raw["metadata"].get("namespace", ""))
        return namespace, name_of(raw) if self.kind is MODEL else labels_of(raw).get(MODEL_LABEL, "")


def _place(raw: Json) -> tuple[str, str]:
    return str(raw["metadata"].get("namespace", "")), name_of(raw)


def whole(raw: Json) -> Json:
    """Everything but the bookkeeping of field managers, which is as large as the rest."""
    raw["metadata"].pop("managedFields", None)
    return raw


def settings_of(raw: Json) -> Json:
    """Without status: of kinds whose status is nothing to the operator, and changes whenever a Pod does."""
    raw.pop("status", None)
    return whole(raw)


def deployment(raw: Json) -> Json:
    """Of the status only what is read: the rest is news about news. How far a rollout is matters of a gateway's only:
    workers of a revision never change."""
    status = raw.get("status") or {}
    conditions = [item for item in status.get("conditions") or () if item["type"] == "ReplicaFailure"]
    is_gateway = labels_of(raw).get(COMPONENT_LABEL) == GATEWAY
    counted = ("replicas", "readyReplicas", *(("updatedReplicas", "observedGeneration") if is_gateway else ()))
    kept = {name: status[name] for name in counted if name in status}
    raw["status"] = kept | ({"conditions": conditions} if conditions else {})
    return whole(raw)


def _is_same(before: Any, after: Any) -> bool:
    """But for the version."""
    if not isinstance(after, dict):
        return bool(before == after)
    fields = {*before, *after} - {"metadata"}
    if any(before.get(name) != after.get(name) for name in fields):
        return False
    names = {*before["metadata"], *after["metadata"]} - {"resourceVersion"}
    return all(before["metadata"].get(name) == after["metadata"].get(name) for name in names)
