"""Server-side apply to the degree that one operator's objects need: who owns which field. Pure.

A field is a path of names and, in lists that are maps, of keys; other lists are owned whole.
Source: Kubernetes, "Server-Side Apply": conflicts, giving up fields, merge keys.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

Json = dict[str, Any]
Path = tuple[Any, ...]
KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ownerReferences": "uid",
    "conditions": "type",
}


class Conflict(Exception):
    """Another manager owns the field with another value."""


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Every owned path with its value; an empty mapping is a leaf of its own."""
    if isinstance(value, dict) and value:
        return {inner: leaf for name, item in value.items() for inner, leaf in leaves(item, (*path, name)).items()}
    key = KEYS.get(path[-1]) if path and isinstance(path[-1], str) else None
    if isinstance(value, list) and value and key is not None:
        return {inner: leaf for item in value for inner, leaf in leaves(item, (*path, (key, item[key]))).items()}
    return {path: value}


def _enter(at: Any, part: Any) -> Any:
    if isinstance(part, tuple):
        key, value = part
        found = next((item for item in at if item[key] == value), None)
        if found is None:
            found = {key: value}
            at.append(found)
        return found
    return at.get(part)


def put(target: Json, path: Path, value: Any) -> None:
    at: Any = target
    for part, following in pairwise(path):
        if isinstance(part, str) and not isinstance(at.get(part), dict | list):
            at[part] = [] if isinstance(following, tuple) else {}
        at = _enter(at, part)
    if isinstance(path[-1], tuple):
        _enter(at, path[-1])
    else:
        at[path[-1]] = copy.deepcopy(value)


def remove(target: Json, path: Path) -> None:
    """A list item whose key goes, goes itself: keys are removed last (`_is_key`)."""
    at: Any = target
    for part in path[:-1]:
        if isinstance(part, tuple):
            found = next((item for item in at if item.get(part[0]) == part[1]), None)
            if found is not None and part is path[-2] and _is_key(path):
                at.remove(found)
                return
            at = found
        else:
            at = at.get(part)
        if at is None:
            return
    if isinstance(at, dict):
        at.pop(path[-1], None)


def _is_key(path: Path) -> bool:
    return len(path) > 1 and isinstance(path[-2], tuple) and path[-2][0] == path[-1]


def apply(target: Json, wanted: Json, manager: str, owners: dict[Path, set[str]], *, force: bool) -> None:
    """Changes `target` and `owners` as a server-side apply of `wanted` does. Raises Conflict."""
    new, now = leaves(wanted), leaves(target)
    for path, value in new.items():
        others = owners.get(path, set()) - {manager}
        if others and path in now and now[path] != value:
            if not force:
                raise Conflict(".".join(map(str, path)))
            owners[path] = set()
    given_up = [path for path, held in owners.items() if manager in held and path not in new]
    for path in sorted(given_up, key=_is_key):
        owners[path].discard(manager)
        if not owners[path]:
            del owners[path]
            remove(target, path)
    for path, value in new.items():
        put(target, path, value)
        owners.setdefault(path, set()).add(manager)


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def update(before: Json, after: Json, manager: str, owners: dict[Path, set[str]]) -> None:
    """`owners` after another kind of write: what it changed belongs to `manager`."""
    old, new = leaves(before), leaves(after)
    for path, value in new.items():
        if path not in old or old[path] != value:
            owners[path] = {manager}
    for path in [path for path in owners if path not in new]:
        del owners[path]
