"""What the operator knows of the cluster: objects by Model, fed by watches and by the answers to its own writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from baton_api.kubernetes import MODEL_LABEL
from baton_wire.kube_api import Event, Listing

from .kinds import MODEL, Kind
from .snapshot import Key, labels_of, name_of

Json = dict[str, Any]
T = TypeVar("T")


class Cache(Generic[T]):
    """Objects of one kind in one namespace (or in all: `namespace` ""). `keep` makes of each what is remembered;
    `changed(key)` is called for the Model that a change belongs to."""

    def __init__(self, kind: Kind, namespace: str, keep: Callable[[Json], T], changed: Callable[[Key], None]) -> None:
        self.kind = kind
        self.namespace = namespace
        self.listed = False
        self._keep = keep
        self._changed = changed
        self._versions: dict[tuple[str, str], tuple[int, Key]] = {}
        self._by_model: dict[Key, dict[str, T]] = {}
        self._gone: dict[tuple[str, str], str] = {}

    def of(self, key: Key) -> dict[str, T]:
        """By name; not to be changed."""
        return self._by_model.get(key, {})

    def version(self, namespace: str, name: str) -> str:
        """The resource version known; "" for what is not there."""
        known = self._versions.get((namespace, name))
        return str(known[0]) if known else ""

    def keys(self) -> Iterable[Key]:
        return tuple(self._by_model)

    def __len__(self) -> int:
        return len(self._versions)

    # What a reflector calls.

    def replace(self, listing: Listing) -> None:
        """What is not listed is gone, whoever missed its end."""
        self._gone.clear()
        listed = {_place(raw) for raw in listing.items}
        for place in [place for place in self._versions if place not in listed]:
            self._drop(place)
        for raw in listing.items:
            self.put(raw)
        self.listed = True

    def apply(self, event: Event) -> None:
        if event.kind == "DELETED":
            self._gone.pop(_place(event.object), None)
            self._drop(_place(event.object))
        elif event.kind in ("ADDED", "MODIFIED"):
            self.put(event.object)

    # What the writer calls.

    def put(self, raw: Json) -> None:
        """Older news than what is known is none: the answer to a write overtakes the watch."""
        place, version = _place(raw), int(raw["metadata"].get("resourceVersion", 0))
        known = self._versions.get(place)
        if (known is not None and known[0] >= version) or self._gone.get(place) == raw["metadata"].get("uid"):
            return
        key = self._model_of(raw)
        if known is not None and known[1] != key:
            self._drop(place)
        self._versions[place] = (version, key)
        self._by_model.setdefault(key, {})[name_of(raw)] = self._keep(raw)
        self._changed(key)

    def forget(self, namespace: str, name: str, uid: str) -> None:
        """Deleted by us: what the watch still says of this `uid` is older."""
        self._gone[namespace, name] = uid
        self._drop((namespace, name))

    def _drop(self, place: tuple[str, str]) -> None:
        known = self._versions.pop(place, None)
        if known is None:
            return
        key = known[1]
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
