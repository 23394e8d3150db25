"""An API server and its controllers in the test's own process, to the degree that the operator asks of them.

Lists, watches and refusals are `fake_watch`'s; here are the writes (create, server-side apply with field owners, merge
patches, /status, /scale, delete with preconditions), defaults, garbage collection by owner, and Deployments whose Pods
come and go at once and are ready as `kubelet` says.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from baton_api.crd_schema import json_schema
from baton_operator import kinds
from baton_wire.http_server import Exchange
from support import field_owners
from support.fake_watch import Asked, FakeApi, matches

Json = dict[str, Any]
NAMESPACE = "ns"
WRITES = ("POST", "PATCH", "PUT", "DELETE")


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class FakeCluster(FakeApi):
    """`writes` are those that were carried out. `kubelet(pod)` says whether a Pod is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, str]] = []
        self.kubelet: Callable[[Json], bool] = lambda pod: True
        self.before_write: Callable[[Asked], None] = lambda asked: None
        self._owners: dict[str, dict[field_owners.Path, set[str]]] = {}
        self._uids = 0
        for kind in (kinds.MODEL, *kinds.CHILDREN, kinds.POD, kinds.EVENT, kinds.LEASE):
            self.objects[kind.path(NAMESPACE)] = {}

    def copy(self) -> FakeCluster:
        """Another one that holds the same; not started."""
        other = FakeCluster()
        other.objects, other._owners = copy.deepcopy(self.objects), copy.deepcopy(self._owners)
        other._uids, other._version = self._uids, self._version
        return other

    def of(self, kind: kinds.Kind) -> dict[str, Json]:
        return self.objects[kind.path(NAMESPACE)]

    def create(self, kind: kinds.Kind, item: Json) -> Json:
        """As a user does."""
        return self._create(kind.path(NAMESPACE), item, "user")

    def change(self, kind: kinds.Kind, name: str, patch: Json) -> None:
        self._merge(kind.path(NAMESPACE), name, patch, "user", "")
        self.settle()

    def remove(self, kind: kinds.Kind, name: str) -> None:
        self.delete(kind.path(NAMESPACE), name)
        self.settle()

    @classmethod
    @asynccontextmanager
    async def up(cls) -> AsyncIterator[FakeCluster]:
        fake = await cls().start()
        try:
            yield fake
        finally:
            await fake.stop()

    async def start(self) -> FakeCluster:
        await super().start()
        return self

    async def _handle(self, exchange: Exchange) -> None:
        if exchange.method not in WRITES:
            await super()._handle(exchange)
            return
        query = dict(part.partition("=")[::2] for part in exchange.query.split("&") if part)
        asked = Asked(exchange.method, exchange.path, query, "", 0.0)
        self.asked.append(asked)
        refusal = self.refuse(asked)
        if refusal is not None:
            _say(exchange, refusal[0], _status(refusal[0], "Refused", "no"), refusal[1])
            return
        self.before_write(asked)
        try:
            content_type = exchange.headers.get("content-type", "")
            answer = self._write(asked, json.loads(exchange.body or b"{}"), content_type)
        except Refused as refused:
            _say(exchange, refused.status, _status(refused.status, refused.reason, str(refused)))
            return
        self.writes.append((asked.method, asked.path))
        self.settle()
        _say(exchange, 201 if asked.method == "POST" else 200, answer)

    def _write(self, asked: Asked, body: Json, content_type: str) -> Json:
        manager = asked.query.get("fieldManager", "unknown")
        if asked.method == "POST":
            return self._create(asked.path, body, manager)
        collection, name, subresource = self._place(asked.path)
        if asked.method == "DELETE":
            found = self._existing(collection, name)
            if (body.get("preconditions") or {}).get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
                raise Refused(409, "Conflict", "the UID differs")
            self.delete(collection, name)
            return {"kind": "Status", "status": "Success", "metadata": {}}
        if asked.method == "PUT":
            found = self._existing(collection, name)
            if body["metadata"].get("resourceVersion", "") != found["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", "the object has been modified")
            return self._store(collection, body, manager)
        if "apply-patch" in content_type:
            return self._apply(collection, name, body, manager, subresource, force=asked.query.get("force") == "true")
        return self._merge(collection, name, body, manager, subresource)

    def _place(self, path: str) -> tuple[str, str, str]:
        for collection in self.objects:
            if path.startswith(f"{collection}/"):
                name, _, subresource = path.removeprefix(f"{collection}/").partition("/")
                return collection, name, subresource
        raise Refused(404, "NotFound", f"no such path: {path}")

    def _existing(self, collection: str, name: str) -> Json:
        if name not in self.objects[collection]:
            raise Refused(404, "NotFound", f"{name} not found")
        return self.objects[collection][name]

    def _create(self, collection: str, item: Json, manager: str) -> Json:
        if collection not in self.objects:
            raise Refused(404, "NotFound", f"no such path: {collection}")
        name = item["metadata"]["name"]
        if name in self.objects[collection]:
            raise Refused(409, "AlreadyExists", f"{name} already exists")
        self._check_owners(item)
        made = copy.deepcopy(item)
        made.pop("status", None)
        self._owners[f"{collection}/{name}"] = {path: {f"{manager}/update"} for path in field_owners.leaves(made)}
        return self._store(collection, made, "")

    def _apply(self, collection: str, name: str, wanted: Json, manager: str, subresource: str, *, force: bool) -> Json:
        place = f"{collection}/{name}" + (f"/{subresource}" if subresource else "")
        target = copy.deepcopy(self.objects[collection].get(name))
        version = wanted["metadata"].get("resourceVersion", "")
        if target is not None and version not in ("", target["metadata"]["resourceVersion"]):
            raise Refused(409, "Conflict", "the object has been modified")
        if target is None:
            if subresource:
                raise Refused(404, "NotFound", f"{name} not found")
            target = {"metadata": {"name": name, "namespace": NAMESPACE}}
        part = {"status": wanted.get("status", {})} if subresource else copy.deepcopy(wanted)
        if not subresource:
            part.pop("status", None)
            part["metadata"].pop("resourceVersion", None)
            self._check_owners(part)
        try:
            owners = self._owners.setdefault(place, {})
            field_owners.apply(target, part, f"{manager}/apply", owners, force=force)
        except field_owners.Conflict as conflict:
            raise Refused(409, "Conflict", f"conflict at {conflict}") from conflict
        return self._store(collection, target, "")

    def _merge(self, collection: str, name: str, patch: Json, manager: str, subresource: str) -> Json:
        before = self._existing(collection, name)
        if subresource == "scale":
            patch = {"spec": {"replicas": patch["spec"]["replicas"]}}
        after = field_owners.merge(before, patch)
        field_owners.update(before, after, f"{manager}/update", self._owners.setdefault(f"{collection}/{name}", {}))
        return self._store(collection, after, "")

    def _check_owners(self, item: Json) -> None:
        """The API server takes one controller only."""
        if sum(bool(owner.get("controller")) for owner in item["metadata"].get("ownerReferences") or []) > 1:
            raise Refused(422, "Invalid", "metadata.ownerReferences: only one reference can have controller set")

    def _store(self, collection: str, item: Json, manager: str) -> Json:
        """With what the API server adds; an unchanged object keeps its version, and nobody is told."""
        before = self.objects[collection].get(item["metadata"]["name"])
        item = _with_defaults(copy.deepcopy(item))
        metadata = item["metadata"]
        metadata.setdefault("namespace", NAMESPACE)
        if before is None:
            self._uids += 1
            metadata |= {"uid": f"uid-{self._uids}", "generation": 1, "creationTimestamp": f"{self._uids:08d}"}
        else:
            changed = item.get("spec") != before.get("spec")
            metadata["generation"] = before["metadata"].get("generation", 1) + (1 if changed else 0)
            if item == before:
                return copy.deepcopy(before)
        self.put(collection, item)
        return copy.deepcopy(item)

    def _happen(self, collection: str, kind: str, item: Json) -> None:
        """Who watches by a label that went away is told of a deletion."""
        before = self.objects[collection].get(item["metadata"]["name"])
        super()._happen(collection, kind, item)
        for watch in self.watching:
            seen = bool(before) and watch.collection == collection and matches(before, watch.selector)
            if seen and not matches(item, watch.selector) and not self.mute:
                watch.say("DELETED", item)

    # Controllers.

    def settle(self) -> None:
        """Until Deployments, Pods and owners add up."""
        for _ in range(50):
            if not (self._collect() or self._run_deployments()):
                return
        raise AssertionError("the fake controllers do not settle")

    def _collect(self) -> bool:
        alive = {item["metadata"]["uid"] for known in self.objects.values() for item in known.values()}
        for collection, known in self.objects.items():
            for name, item in tuple(known.items()):
                owners = item["metadata"].get("ownerReferences") or []
                if owners and not any(owner["uid"] in alive for owner in owners):
                    self.delete(collection, name)
                    return True
        return False

    def _run_deployments(self) -> bool:
        changes = [self._run_deployment(item) for item in tuple(self.of(kinds.DEPLOYMENT).values())]
        return any(changes)

    def _run_deployment(self, deployment: Json) -> bool:
        uid, name = deployment["metadata"]["uid"], deployment["metadata"]["name"]
        pods = [pod for pod in self.of(kinds.POD).values() if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        wanted, changed = deployment["spec"]["replicas"], False
        digest = json.dumps(deployment["spec"]["template"], sort_keys=True)
        for pod in pods:
            if pod["template"] != digest:
                self.delete(kinds.POD.path(NAMESPACE), pod["metadata"]["name"])
                return True
        for pod in sorted(pods, key=_is_ready)[: max(0, len(pods) - wanted)]:
            self.delete(kinds.POD.path(NAMESPACE), pod["metadata"]["name"])
            changed = True
        for _ in range(wanted - len(pods)):
            self._uids += 1
            metadata = {
                "name": f"{name}-{self._uids}",
                "namespace": NAMESPACE,
                "uid": f"uid-{self._uids}",
                "labels": deployment["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{"uid": uid, "kind": "Deployment", "name": name}],
            }
            self.put(kinds.POD.path(NAMESPACE), {"metadata": metadata, "template": digest, "status": {}})
            changed = True
        mine = [pod for pod in self.of(kinds.POD).values() if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        for pod in mine:
            verdict = "True" if self.kubelet(pod) else "False"
            if _is_ready(pod) != (verdict == "True") or not pod["status"]:
                status = {"conditions": [{"type": "Ready", "status": verdict}]}
                self.put(kinds.POD.path(NAMESPACE), pod | {"status": status})
                changed = True
        mine = [pod for pod in self.of(kinds.POD).values() if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        counts = {"replicas": len(mine), "updatedReplicas": len(mine), "readyReplicas": sum(map(_is_ready, mine))}
        status = {name: count for name, count in counts.items() if count}
        status["observedGeneration"] = deployment["metadata"]["generation"]
        if deployment.get("status") != status:
            self.put(kinds.DEPLOYMENT.path(NAMESPACE), copy.deepcopy(deployment) | {"status": status})
            changed = True
        return changed


def _is_ready(pod: Json) -> bool:
    return any(item["status"] == "True" for item in pod["status"].get("conditions") or [])


def _with_defaults(item: Json) -> Json:
    if item.get("kind") == kinds.MODEL.kind:
        _fill(item["spec"], SPEC)
    elif item.get("kind") in (kinds.POOL.kind, kinds.DEPLOYMENT.kind):
        item["spec"].setdefault("replicas", 1)
    return item


def _fill(value: Json, schema: Json) -> None:
    for name, inner in schema.get("properties", {}).items():
        if name not in value and "default" in inner:
            value[name] = copy.deepcopy(inner["default"])
        if isinstance(value.get(name), dict):
            _fill(value[name], inner)


SPEC = json_schema()["properties"]["spec"]


def _status(code: int, reason: str, message: str) -> Json:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


def _say(exchange: Exchange, status: int, body: Json, headers: list[tuple[str, str]] | None = None) -> None:
    exchange.respond(status, json.dumps(body).encode(), headers or [])
