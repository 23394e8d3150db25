"""The only writer: carries a plan out, says what came of it, and never repeats what cannot change anything."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
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
from .plan import Action
from .snapshot import Key, name_of
from .telemetry import Telemetry

Json = dict[str, Any]
log = logging.getLogger("baton.operator")
MANAGER = {"fieldManager": names.FIELD_MANAGER}
PERMANENT = (400, 403, 405, 413, 415, 422)
"""What the API server will say again to the same words."""
AT_ONCE, AT_ONCE_LATER = 8, 2
"""Writes on their way together: of what Pods wait for, of the rest. The controllers that make the Pods ask one request
after the other, so whoever floods the API server makes every Pod late, its own first."""


def is_permanent(error: KubernetesError) -> bool:
    """The API server answers 500 to an apply with a field that its schema does not have."""
    untyped = error.status == 500 and "failed to create typed patch object" in error.message
    return error.status in PERMANENT or untyped


@dataclass
class Outcome:
    """`refused` in words; `retry` when trying again may help, not before `retry_after_s`."""

    wrote: int = 0
    refused: list[str] = field(default_factory=list)
    retry: KubernetesError | None = None

    def add_error(self, action: Action, error: KubernetesError) -> None:
        if is_permanent(error):
            self.refused.append(f"{action.kind.kind} {action.name}: {error.message}")
        elif self.retry is None or (error.retry_after_s or 0) > (self.retry.retry_after_s or 0):
            self.retry = error


class Writer:
    """Remembers, for each object, the write that changed nothing or was refused: it is not sent again until the object
    or the wish changes, or `forgive` is called (at every resync)."""

    def __init__(self, api: KubeApi, observer: Observer, telemetry: Telemetry, timeout_s: float) -> None:
        self._api = api
        self._observer = observer
        self._telemetry = telemetry
        self._timeout_s = timeout_s
        self._futile: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._refused: dict[tuple[str, str, str], tuple[str, KubernetesError]] = {}
        self._doors = {True: asyncio.Semaphore(AT_ONCE), False: asyncio.Semaphore(AT_ONCE_LATER)}

    def forgive(self, key: Key) -> None:
        """What was refused may be tried once more."""
        for place in [place for place in self._refused if place[1] == key[0]]:
            del self._refused[place]

    async def carry_out(self, namespace: str, actions: Iterable[Action], outcome: Outcome) -> None:
        """Stage by stage; within a stage all at once. What fails does not keep others from being tried; what came of it
        is added to `outcome`."""
        for _, stage in groupby(actions, key=lambda action: action.stage):
            together = [self._attempt(namespace, action, outcome) for action in stage]
            await asyncio.gather(*together)
            if outcome.retry is not None:
                break

    async def _attempt(self, namespace: str, action: Action, outcome: Outcome) -> None:
        place, wish = (action.kind.kind, namespace, action.name), digest([action.verb, action.body, action.uid], 32)
        said = self._refused.get(place)
        if said is not None and said[0] == wish:
            outcome.add_error(action, said[1])
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
            if is_permanent(error):
                self._refused[place] = (wish, error)
            log.warning("%s %s/%s %s: %s", action.verb, namespace, action.name, action.kind.kind, error.message)
            outcome.add_error(action, error)
            return
        self._refused.pop(place, None)
        outcome.wrote += 1
        self._telemetry.wrote(action.verb, action.kind.kind, action.label)
        log.info("%s %s %s/%s (%s)", action.verb, action.kind.kind, namespace, action.name, action.reason)
        self._remember(place, wish, before, answer, action)

    def _remember(
        self, place: tuple[str, str, str], wish: str, before: str, answer: Json | None, action: Action
    ) -> None:
        if answer is None:
            self._observer.forget(action.kind, place[1], action.name, action.uid)
            return
        self._observer.put(action.kind, answer)
        if before and before == str(answer["metadata"]["resourceVersion"]):
            log.warning("%s %s/%s stays as it is (%s): not tried again", *place, action.reason)
            self._futile[place] = (wish, before)

    def _version(self, place: tuple[str, str, str]) -> str:
        return self._observer.version(kinds.BY_KIND[place[0]], place[1], place[2])

    async def _write(self, namespace: str, action: Action) -> Json | None:
        """The object as it is now; None: it is gone."""
        kind, path = action.kind, action.kind.path(namespace, action.name)
        match action.verb:
            case "apply":
                return await self._call("PATCH", path, action.body, APPLY, force="true")
            case "merge":
                return await self._call("PATCH", path, action.body, MERGE)
            case "create":
                return await self._call("POST", kind.path(namespace), action.body)
            case "secret":
                return await self._make_secret(namespace, action)
            case "delete":
                body = {"preconditions": {"uid": action.uid}, "propagationPolicy": "Background"}
                answer = await self._api.call("DELETE", path, body=body, timeout_s=self._timeout_s)
                return answer if answer.get("kind") == kind.kind and "finalizers" in answer["metadata"] else None
        raise AssertionError(action.verb)

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
        """Raises KubernetesError."""
        namespace, name = raw["metadata"]["namespace"], name_of(raw)
        metadata = {"name": name, "namespace": namespace}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
        async with self._doors[False]:
            answer = await self._call("PATCH", kind.path(namespace, name, "status"), body, APPLY, force="true")
        self._observer.put(kind, answer)
        self._telemetry.wrote("status", kind.kind, "changed")

    async def emit(self, event: Json) -> None:
        """An Event object. Raises KubernetesError."""
        async with self._doors[False]:
            await self._call("POST", kinds.EVENT.path(event["metadata"]["namespace"]), event)
        self._telemetry.wrote("create", kinds.EVENT.kind, event["reason"])

    async def _call(
        self, method: str, path: str, body: Json, content_type: str = "application/json", **query: str
    ) -> Json:
        return await self._api.call(
            method, path, query={**MANAGER, **query}, body=body, content_type=content_type, timeout_s=self._timeout_s
        )
