"""Whether an object already is as wanted: every wanted field is there with that value. Pure.

What others added (defaults of the API server, other managers' fields, extra list items with keys of their own) is no
difference; a field that we wanted once and no longer do is seen by the `applied` annotation. The API server rewrites
quantities ("1000m" is "1") and leaves empty values out.
"""

from __future__ import annotations

from typing import Any

from baton_api.errors import SettingError
from baton_api.quantities import quantity

KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
}
"""Lists that are maps by these fields for server-side apply."""
QUANTITIES = ("requests", "limits")
EMPTY: tuple[Any, ...] = (None, "", [], {}, False, 0)


class Compared:
    """Objects that were found as wanted, by kind and name, at which version: at that one they still are. To be thrown
    away with what was wanted."""

    def __init__(self) -> None:
        self._same: dict[tuple[str, str], str] = {}

    def difference(self, wanted: dict[str, Any], found: dict[str, Any]) -> str | None:
        place = (wanted["kind"], wanted["metadata"]["name"])
        version = str(found["metadata"].get("resourceVersion", ""))
        if version and self._same.get(place) == version:
            return None
        different = difference(wanted, found)
        if different is None:
            self._same[place] = version
        return different


def difference(wanted: Any, found: Any, path: str = "") -> str | None:
    """Where `found` first is not as wanted; None: nowhere."""
    if found is None:
        return None if wanted in EMPTY else path
    if isinstance(wanted, dict):
        return _of_mapping(wanted, found, path)
    if isinstance(wanted, list):
        return _of_list(wanted, found, path)
    return None if wanted == found and isinstance(wanted, bool) == isinstance(found, bool) else path


def _of_mapping(wanted: dict[str, Any], found: Any, path: str) -> str | None:
    if not isinstance(found, dict):
        return path
    by_value = path.rpartition(".")[2] in QUANTITIES
    for name, value in wanted.items():
        where = f"{path}.{name}" if path else name
        if by_value and _same_quantity(value, found.get(name)):
            continue
        different = difference(value, found.get(name), where)
        if different is not None:
            return different
    return None


def _of_list(wanted: list[Any], found: Any, path: str) -> str | None:
    if not isinstance(found, list):
        return path
    keys = KEYS.get(path.rpartition(".")[2])
    if keys is None:
        if len(wanted) != len(found):
            return path
        pairs = list(zip(wanted, found, strict=True))
    else:
        by_key = {_key(item, keys): item for item in found}
        pairs = [(item, by_key.get(_key(item, keys))) for item in wanted]
    for index, (item, there) in enumerate(pairs):
        different = difference(item, there, f"{path}[{index}]")
        if different is not None:
            return different
    return None


def _key(item: Any, keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key) for key in keys) if isinstance(item, dict) else (item,)


def _same_quantity(wanted: Any, found: Any) -> bool:
    try:
        return found is not None and quantity(wanted) == quantity(found)
    except SettingError:
        return False
