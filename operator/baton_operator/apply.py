"""The only writer: carries a plan out, says what came of it, and never repeats what cannot change anything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from baton_api.errors import KubernetesError
from baton_wire.kube_api import KubeApi

from . import kinds
from .calls import Calls
from .kinds import Kind
from .objects import digest
from .observe import Observer
from .outcome import Outcome, is_of_old_crds, is_permanent, stamp, undone
from .plan import Action
from .refusals import Place, Refusals, Repeats
from .snapshot import name_of
from .telemetry import Telemetry

Json = dict[str, Any]
log = logging.getLogger("baton.operator")
OLD_CRDS = "the CRDs are of an older release: apply deploy/crds"
AT_ONCE, AT_ONCE_LATER = 8, 2
"""Writes on their way together: of what Pods wait for, of the rest. The controllers that make the Pods ask one request
after the other, so whoever floods the API server makes every Pod late, its own first."""


class Writer:
    """Remembers, for each object, the write that changed nothing or was refused: the one is not sent again until the
    object or the wish changes, the other waits, longer each time, or until the Model is changed."""

    def __init__(self, api: KubeApi, observer: Observer, telemetry: Telemetry, timeout_s: float) -> None:
        self._calls = Calls(api, timeout_s)
        self._observer = observer
        self._telemetry = telemetry
        self._futile: dict[Place, tuple[str, str]] = {}
        self._refused = Refusals(time.monotonic)
        self._repeats = Repeats(time.monotonic)
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
        if self._repeats.too_many(place, wish):
            error = undone(action)
            log.error("%s", error.message)
            outcome.add_refusal(action, error, self._refused.add(place, wish + outcome.stamp, error))
            return
        try:
            async with self._doors[action.kind.stage <= kinds.STARTS]:
                before = self._version(place)
                answer = await self._calls.carry_out(namespace, action)
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
        if action.verb != "merge":  # sizes come and go
            self._repeats.add(place, wish)
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

    async def write_status(self, kind: Kind, raw: Json, status: Json) -> None:
        """Raises KubernetesError; of one that was refused `retry_after_s` says when it may be tried again."""
        namespace, name = raw["metadata"]["namespace"], name_of(raw)
        place, wish = (f"{kind.plural}/status", namespace, name), digest([stamp(raw), _without_times(status)], 32)
        if (said := self._refused.standing(place, wish)) is not None:
            raise _again(said[0], said[1])
        if self._repeats.too_many(place, wish):
            error = KubernetesError("somebody else says otherwise, again and again", status=409, code="Undone")
            self._complain(place, error)
            raise _again(error, self._refused.add(place, wish, error))
        try:
            async with self._doors[False]:
                answer = await self._calls.apply_status(kind, raw, status)
        except KubernetesError as error:
            self._complain(place, error)
            if is_permanent(error):
                raise _again(error, self._refused.add(place, wish, error)) from error
            raise
        self._refused.forget(place)
        self._repeats.add(place, wish)
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
                await self._calls.emit(event)
        except KubernetesError as error:
            if error.status == 409:
                return  # it is there: this was said in the same second before
            self._complain((kinds.EVENT.plural, namespace, event["involvedObject"]["name"]), error)
            raise
        self._telemetry.wrote("create", kinds.EVENT.kind, event["reason"])


def _again(error: KubernetesError, wait_s: float) -> KubernetesError:
    return KubernetesError(error.message, status=error.status, code=error.code, retry_after_s=wait_s)


def _without_times(status: Json) -> Json:
    conditions = [{**item, "lastTransitionTime": ""} for item in status.get("conditions") or ()]
    return status | {"conditions": conditions}
