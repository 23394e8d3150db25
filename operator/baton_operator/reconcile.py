"""One Model brought to what it should be: observe, decide, apply, say. The same story from any state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from baton_api.crd import Model, parse_model
from baton_api.crd_status import Reason
from baton_api.errors import KubernetesError, SettingError

from . import kinds
from .apply import Outcome, Writer
from .desired import Desired, desired
from .events import events_of
from .objects import Owner
from .observe import Observer
from .plan import Plan, plan
from .settings import OperatorSettings
from .snapshot import Key, Snapshot
from .status import View, model_status, pool_status, stalled_status

Json = dict[str, Any]
log = logging.getLogger("baton.operator")


class Reconciler:
    """`now()` gives the time as RFC 3339, to the second."""

    def __init__(self, observer: Observer, writer: Writer, settings: OperatorSettings, now: Callable[[], str]) -> None:
        self._observer = observer
        self._writer = writer
        self._settings = settings
        self._now = now

    async def reconcile(self, key: Key) -> KubernetesError | None:
        """What went wrong, if trying again may help."""
        snapshot = self._observer.snapshot(key)
        if snapshot is None or "deletionTimestamp" in snapshot.model["metadata"]:
            return None  # its children have owner references: the cluster itself takes them away
        try:
            model = parse_model(snapshot.model)
        except SettingError as error:
            return await self._say_stalled(snapshot, Reason.INVALID_SPEC, error)
        owner = Owner(key[1], key[0], snapshot.model["metadata"]["uid"])
        try:
            wanted = desired(model, owner, self._settings, snapshot.optional)
        except SettingError as error:
            return await self._say_stalled(snapshot, Reason.NOT_SUPPORTED, error)
        planned = plan(model, owner, wanted, snapshot)
        outcome = await self._writer.carry_out(key[0], planned.actions)
        if outcome.wrote:
            snapshot = self._observer.snapshot(key)
            if snapshot is None:
                return outcome.retry
            planned = plan(model, owner, wanted, snapshot)
        try:
            await self._say(model, wanted, snapshot, planned, outcome)
        except KubernetesError as error:
            return outcome.retry or error
        return outcome.retry

    async def _say(self, model: Model, wanted: Desired, snapshot: Snapshot, planned: Plan, outcome: Outcome) -> None:
        view = View(model, snapshot, wanted.revision, planned, tuple(outcome.refused))
        for role in planned.sizes:
            pool = snapshot.pool(role)
            if pool is not None:
                await self._writer.write_status(kinds.POOL, pool, pool_status(view, role, pool, self._now()))
        await self._say_of_model(snapshot.model, model_status(view, self._now()))

    async def _say_of_model(self, raw: Json, status: Json) -> None:
        """The status first: an operator killed between the two loses an Event, not the truth."""
        events = events_of(raw, status, self._now())
        if await self._writer.write_status(kinds.MODEL, raw, status):
            for event in events:
                await self._writer.emit(event)

    async def _say_stalled(self, snapshot: Snapshot, reason: Reason, error: SettingError) -> KubernetesError | None:
        try:
            await self._say_of_model(snapshot.model, stalled_status(snapshot.model, reason, error.message, self._now()))
        except KubernetesError as failure:
            return None if failure.status == 404 else failure
        return None
