"""The writes themselves: an action as requests to the API server.

What others made is never touched: what no watch has shown is written only if nothing of that name is there.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

from baton_api import kubernetes as names
from baton_api.errors import KubernetesError
from baton_wire.kube_api import APPLY, MERGE, KubeApi

from . import kinds
from .kinds import Kind
from .outcome import taken
from .plan import MISSING, Action
from .snapshot import is_ours, name_of

Json = dict[str, Any]
MANAGER = {"fieldManager": names.FIELD_MANAGER}
NEVER_A_VERSION = "1"
"""Of no object: etcd's first write has 2. An apply with it creates, or is answered 409 when the name is taken."""


class Calls:
    """Every method raises KubernetesError."""

    def __init__(self, api: KubeApi, timeout_s: float) -> None:
        self._api = api
        self._timeout_s = timeout_s

    async def carry_out(self, namespace: str, action: Action) -> Json | None:
        """The object as it is now; None: it is gone."""
        kind, path = action.kind, action.kind.path(namespace, action.name)
        match action.verb:
            case "apply" | "create" if action.reason == MISSING:
                return await self._make(namespace, action)
            case "apply":
                return await self._call("PATCH", path, action.body, APPLY, force="true")
            case "merge":
                return await self._call("PATCH", path, action.body, MERGE)
            case "secret":
                return await self._make_secret(namespace, action)
            case "delete":
                body = {"preconditions": {"uid": action.uid}, "propagationPolicy": "Background"}
                answer = await self._api.call("DELETE", path, body=body, timeout_s=self._timeout_s)
                return answer if answer.get("kind") == kind.kind and "finalizers" in answer["metadata"] else None
        raise AssertionError(action.verb)

    async def _make(self, namespace: str, action: Action) -> Json:
        """What no watch has shown. One of that name that is ours has lost its labels and gets them back; somebody
        else's is not touched."""
        kind, path = action.kind, action.kind.path(namespace, action.name)
        metadata = action.body["metadata"]
        try:
            if action.verb == "create":
                return await self._call("POST", kind.path(namespace), action.body)
            new = action.body | {"metadata": metadata | {"resourceVersion": NEVER_A_VERSION}}
            return await self._call("PATCH", path, new, APPLY, force="false")
        except KubernetesError as error:
            if error.status != 409:
                raise
            found = await self._find(kind, namespace, action.name)
            if found is not None and not is_ours(found, metadata["ownerReferences"][0]["uid"]):
                raise taken(kind, action.name) from error
        if action.verb == "create":
            return await self._call("PATCH", path, {"metadata": {"labels": metadata["labels"]}}, MERGE)
        return await self._call("PATCH", path, action.body, APPLY, force="false" if found is None else "true")

    async def _find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """By a list, which the operator has the right to anyway."""
        query = {"fieldSelector": f"metadata.name={name}"}
        listing = await self._api.list(kind.path(namespace), query, timeout_s=self._timeout_s)
        return next(iter(listing.items), None)

    async def _make_secret(self, namespace: str, action: Action) -> Json:
        """With fresh content. One that is there without our labels is its owner's: it only gets the labels."""
        content = (
            f"sk-{secrets.token_urlsafe(24)}" if action.name.endswith(names.API_KEY_KEY) else secrets.token_hex(32)
        )
        key = names.API_KEY_KEY if action.name.endswith(names.API_KEY_KEY) else names.SECRET_KEY
        body = {
            "apiVersion": kinds.SECRET.api_version,
            "kind": kinds.SECRET.kind,
            "type": "Opaque",
            "metadata": {**action.body, "name": action.name},
            "data": {key: base64.b64encode(content.encode()).decode()},
        }
        try:
            made = await self._call("POST", kinds.SECRET.path(namespace), body)
        except KubernetesError as error:
            if error.status != 409:
                raise
            labels = {"metadata": {"labels": action.body["labels"]}}
            made = await self._call("PATCH", kinds.SECRET.path(namespace, action.name), labels, MERGE)
        return {name: value for name, value in made.items() if name != "data"}

    async def apply_status(self, kind: Kind, raw: Json, status: Json) -> Json:
        """The object as it is now."""
        namespace, name = raw["metadata"]["namespace"], name_of(raw)
        metadata = {"name": name, "namespace": namespace}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
        return await self._call("PATCH", kind.path(namespace, name, "status"), body, APPLY, force="true")

    async def emit(self, event: Json) -> None:
        await self._call("POST", kinds.EVENT.path(event["metadata"]["namespace"]), event)

    async def _call(
        self, method: str, path: str, body: Json, content_type: str = "application/json", **query: str
    ) -> Json:
        return await self._api.call(
            method, path, query={**MANAGER, **query}, body=body, content_type=content_type, timeout_s=self._timeout_s
        )
