"""The only writer: carries a plan out, says what came of it, and never repeats what cannot change anything.

What others made is never touched: what no watch has shown is written only if nothing of that name is there.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from baton_api import kubernetes as names
from baton_api.errors import KubernetesError
from baton_wire.kube_api import APPLY, MERGE, KubeApi

from . import kinds
from .kinds import Kind
from .objects import digest
from .observe import Observer
from .plan import MISSING, Action
from .refusals import Place, Refusals
from .snapshot import annotations_of, is_ours, name_of
from .telemetry import Telemetry

Json = dict[str, Any]
log = logging.getLogger("baton.operator")
MANAGER = {"fieldManager": names.FIELD_MANAGER}
PERMANENT = (400, 403, 405, 413, 415, 422)
"""What the API server will say again to the same words, unless a quota, a right or a webhook changes."""
HALTING = (0, 429, 503, 504)
"""The whole API server is troubled: nothing else is tried either."""
NAME_TAKEN = "NameTaken"
NEVER_A_VERSION = "1"
"""Of no object: etcd's first write has 2. An apply with it creates, or is answered 409 when the name is taken."""
NEEDS = {
    kinds.DEPLOYMENT: (kinds.SERVICE_ACCOUNT, kinds.CONFIG_MAP),
    kinds.ROLE_BINDING: (kinds.ROLE, kinds.SERVICE_ACCOUNT),
}
"""What has to be ours first, under the same name: Pods run as it and with it, rights go from one to the other."""
OLD_CRDS = "the CRDs are of an older release: apply deploy/crds"
AT_ONCE, AT_ONCE_LATER = 8, 2
"""Writes on their way together: of what Pods wait for, of the rest. The controllers that make the Pods ask one request
after the other, so whoever floods the API server makes every Pod late, its own first."""


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


class Writer:
    """Remembers, for each object, the write that changed nothing or was refused: the one is not sent again until the
    object or the wish changes, the other waits, longer each time, or until the Model is changed."""

    def __init__(self, api: KubeApi, observer: Observer, telemetry: Telemetry, timeout_s: float) -> None:
        self._api = api
        self._observer = observer
        self._telemetry = telemetry
        self._timeout_s = timeout_s
        self._futile: dict[Place, tuple[str, str]] = {}
        self._refused = Refusals(time.monotonic)
        self._complaints: dict[Place, str] = {}
        self._doors = {True: asyncio.Semaphore(AT_ONCE), False: asyncio.Semaphore(AT_ONCE_LATER)}

    async def carry_out(self, namespace: str, actions: Iterable[Action], outcome: Outcome) -> None:
        """Stage by stage; within a stage all at once. What fails keeps only what needs it from being tried, unless the
        API server itself is in trouble; what came of it is added to `outcome`."""
        for _, stage in groupby(actions, key=lambda action: action.stage):
            together = [self._attempt(namespace, action, outcome) for action in stage if not outcome.holds_back(action)]
            await asyncio.gather(*together)
            if outcome.halted:
                break

    async def _attempt(self, namespace: str, action: Action, outcome: Outcome) -> None:
        place, wish = (action.kind.kind, namespace, action.name), digest([action.verb, action.body, action.uid], 32)
        said = self._refused.standing(place, wish + outcome.stamp)
        if said is not None:
            outcome.add_refusal(action, *said)
            return
        if self._futile.get(place) == (wish, self._version(place)):
            return
        try:
            async with self._doors[action.kind.stage <= kinds.STARTS]:
                before = self._version(place)
                answer = await self._write(namespace, action)
        except KubernetesError as error:
            self._telemetry.error(action.kind.plural, error)
            if action.verb == "delete" and error.status in (404, 409):
                self._observer.forget(action.kind, namespace, action.name, action.uid)
                return
            log.warning("%s %s/%s %s: %s", action.verb, namespace, action.name, action.kind.kind, error.message)
            if is_permanent(error):
                outcome.add_refusal(action, error, self._refused.add(place, wish + outcome.stamp, error))
            else:
                outcome.add_failure(action, error)
            return
        self._refused.forget(place)
        outcome.wrote += 1
        self._telemetry.wrote(action.verb, action.kind.kind, action.label)
        log.info("%s %s %s/%s (%s)", action.verb, action.kind.kind, namespace, action.name, action.reason)
        self._remember(place, wish, before, answer, action)

    def _remember(self, place: Place, wish: str, before: str, answer: Json | None, action: Action) -> None:
        if answer is None:
            self._observer.forget(action.kind, place[1], action.name, action.uid)
            return
        self._observer.put(action.kind, answer)
        if before and before == str(answer["metadata"]["resourceVersion"]):
            log.warning("%s %s/%s stays as it is (%s): not tried again", *place, action.reason)
            self._futile[place] = (wish, before)

    def _version(self, place: Place) -> str:
        return self._observer.version(kinds.BY_KIND[place[0]], place[1], place[2])

    async def _write(self, namespace: str, action: Action) -> Json | None:
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

    async def write_status(self, kind: Kind, raw: Json, status: Json) -> None:
        """Raises KubernetesError; of one that was refused `retry_after_s` says when it may be tried again."""
        namespace, name = raw["metadata"]["namespace"], name_of(raw)
        place, wish = (f"{kind.plural}/status", namespace, name), digest([stamp(raw), _without_times(status)], 32)
        if (said := self._refused.standing(place, wish)) is not None:
            raise _again(said[0], said[1])
        metadata = {"name": name, "namespace": namespace}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
        try:
            async with self._doors[False]:
                answer = await self._call("PATCH", kind.path(namespace, name, "status"), body, APPLY, force="true")
        except KubernetesError as error:
            self._complain(place, error)
            if is_permanent(error):
                raise _again(error, self._refused.add(place, wish, error)) from error
            raise
        self._refused.forget(place)
        self._complaints.pop(place, None)
        self._observer.put(kind, answer)
        self._telemetry.wrote("status", kind.kind, "changed")

    def _complain(self, place: Place, error: KubernetesError) -> None:
        """Once for each thing that is said: a status is tried again and again."""
        if self._complaints.get(place) == error.message or error.status == 404:
            return
        self._complaints[place] = error.message
        self._telemetry.error(place[0], error)
        hint = f"; {OLD_CRDS}" if is_of_old_crds(error) else ""
        log.error("%s %s/%s is not written: %s%s", *place, error.message, hint)

    async def emit(self, event: Json) -> None:
        """An Event object. Raises KubernetesError."""
        namespace = event["metadata"]["namespace"]
        try:
            async with self._doors[False]:
                await self._call("POST", kinds.EVENT.path(namespace), event)
        except KubernetesError as error:
            self._complain((kinds.EVENT.plural, namespace, event["involvedObject"]["name"]), error)
            raise
        self._telemetry.wrote("create", kinds.EVENT.kind, event["reason"])

    async def _call(
        self, method: str, path: str, body: Json, content_type: str = "application/json", **query: str
    ) -> Json:
        return await self._api.call(
            method, path, query={**MANAGER, **query}, body=body, content_type=content_type, timeout_s=self._timeout_s
        )


def taken(kind: Kind, name: str) -> KubernetesError:
    message = f"{kind.kind} {name} exists and is not Baton's: delete it or rename the Model"
    return KubernetesError(message, status=409, code=NAME_TAKEN)


def is_of_old_crds(error: KubernetesError) -> bool:
    """A field or a value of a status that the CRD there does not know."""
    return "not declared in schema" in error.message or "Unsupported value" in error.message


def _again(error: KubernetesError, wait_s: float) -> KubernetesError:
    return KubernetesError(error.message, status=error.status, code=error.code, retry_after_s=wait_s)


def _without_times(status: Json) -> Json:
    conditions = [{**item, "lastTransitionTime": ""} for item in status.get("conditions") or ()]
    return status | {"conditions": conditions}
