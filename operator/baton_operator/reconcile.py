"""One Model brought to what it should be: observe, decide, apply, say. The same story from any state."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from baton_api.crd import Model, parse_model
from baton_api.crd_status import Reason
from baton_api.errors import KubernetesError, SettingError

from . import kinds
from .apply import Writer
from .checks import View
from .compare import Compared
from .desired import Desired, desired
from .events import events_of
from .objects import Owner
from .observe import Observer
from .outcome import Outcome, stamp
from .patience import Patience
from .plan import Plan, plan
from .settings import OperatorSettings
from .snapshot import Key, Snapshot
from .status import deletion_status, lone_pool_status, model_status, pool_status, stalled_status

Json = dict[str, Any]
Saying = Callable[[], Awaitable[float | None]]
log = logging.getLogger("baton.operator")
REMEMBERED = 512
"""Models whose wishes are kept worked out."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look: what went wrong, if trying again may help; when to look again anyway."""

    error: KubernetesError | None = None
    again_s: float | None = None


class Reconciler:
    """`now()` gives the time as RFC 3339, to the second."""

    def __init__(self, observer: Observer, writer: Writer, settings: OperatorSettings, now: Callable[[], str]) -> None:
        self._observer = observer
        self._writer = writer
        self._settings = settings
        self._now = now
        self._patience = Patience(settings.progress_s, settings.progress_per_s, time.monotonic)
        self._worked_out: dict[Key, tuple[Wish, Model, Desired, Compared]] = {}

    async def reconcile(self, key: Key) -> Looked:
        """What Pods wait for is written first; then other Models have their turn before the rest is."""
        snapshot = self._observer.snapshot(key)
        if snapshot is None or "deletionTimestamp" in snapshot.model["metadata"]:
            self._patience.forget(key)
            self._worked_out.pop(key, None)
            return await self._say_what_is_left(key, snapshot)
        try:
            model, wanted, compared = self._work_out(key, snapshot)
        except Unservable as refusal:
            return await self._say_stalled(snapshot, refusal)
        owner = _owner(snapshot.model)
        planned, outcome = plan(model, owner, wanted, snapshot, compared), Outcome(stamp(snapshot.model))
        waited_for, rest = planned.split()
        await self._writer.carry_out(key[0], waited_for, outcome)
        if outcome.wrote and rest and outcome.retry is None:
            return Looked(again_s=0.0)
        if not outcome.halted:
            await self._writer.carry_out(key[0], rest, outcome)
        if outcome.wrote:
            snapshot = self._observer.snapshot(key)
            if snapshot is None:
                return Looked(outcome.retry)
            planned = plan(model, owner, wanted, snapshot, compared)
        again_s = 0.0 if outcome.wrote and planned.actions else None
        try:
            held_s = await self._say(model, wanted, snapshot, planned, outcome)
        except KubernetesError as error:
            return Looked(outcome.retry or error)
        waits_s = [wait_s for wait_s in (again_s, held_s, outcome.again_s) if wait_s is not None]
        return Looked(outcome.retry, min(waits_s, default=None))

    def _work_out(self, key: Key, snapshot: Snapshot) -> tuple[Model, Desired, Compared]:
        """The same for every look until the Model changes. Raises Unservable."""
        metadata = snapshot.model["metadata"]
        wish: Wish = (str(metadata["uid"]), int(metadata.get("generation", 0)), snapshot.optional)
        known = self._worked_out.pop(key, None)
        if known is None or known[0] != wish:
            known = (wish, *_worked_out(snapshot, self._settings), Compared())
        self._worked_out[key] = known
        if len(self._worked_out) > REMEMBERED:
            del self._worked_out[next(iter(self._worked_out))]
        return known[1:]

    async def _say(
        self, model: Model, wanted: Desired, snapshot: Snapshot, planned: Plan, outcome: Outcome
    ) -> float | None:
        """When to look again for what is held back; None: nothing is. One status that cannot be written keeps no other
        from being written. Raises KubernetesError."""
        view = View(
            model, snapshot, wanted.revision, planned,
            *(tuple(sorted(words)) for words in (outcome.refused, outcome.taken, outcome.retrying)),
        )  # fmt: skip
        key, said, failures = (model.metadata.namespace, model.metadata.name), list[Saying](), []
        for role in planned.sizes:
            pool = snapshot.pool(role)
            if pool is not None:
                said.append(partial(self._say_of_pool, key, pool, pool_status(view, role, pool, self._now())))
        said.append(partial(self._say_of_model, snapshot.model, model_status(view, self._now())))
        held: list[float | None] = []
        for saying in said:
            try:
                held.append(await saying())
            except KubernetesError as error:
                failures.append(error)
        if failures:
            raise min(failures, key=lambda error: error.retry_after_s or 0.0)
        return min((left_s for left_s in held if left_s), default=None)

    async def _say_of_pool(self, key: Key, raw: Json, status: Json) -> float | None:
        left_s = self._patience.left(key, kinds.POOL, raw, status)
        if left_s == 0.0:
            await self._writer.write_status(kinds.POOL, raw, status)
        return left_s

    async def _say_of_model(self, raw: Json, status: Json) -> float | None:
        """The status first: an operator killed between the two loses an Event, not the truth."""
        key = (str(raw["metadata"]["namespace"]), str(raw["metadata"]["name"]))
        left_s = self._patience.left(key, kinds.MODEL, raw, status)
        if left_s == 0.0:
            events = events_of(raw, status, self._now())
            await self._writer.write_status(kinds.MODEL, raw, status)
            for event in events:
                await self._writer.emit(event)
        return left_s

    async def _say_what_is_left(self, key: Key, snapshot: Snapshot | None) -> Looked:
        """Children have owner references: the cluster itself takes them away, unless somebody keeps it from that."""
        said: list[tuple[kinds.Kind, Json, Json | None]] = []
        if snapshot is not None:
            said.append((kinds.MODEL, snapshot.model, deletion_status(snapshot.model, self._now())))
        else:
            pools = self._observer.pools(key)
            said += [(kinds.POOL, pool, lone_pool_status(pool, key[1], self._now())) for pool in pools]
        try:
            for kind, raw, status in said:
                if status is not None and status != raw.get("status"):
                    await self._writer.write_status(kind, raw, status)
        except KubernetesError as failure:
            return Looked(None if failure.status == 404 else failure)
        return Looked()

    async def _say_stalled(self, snapshot: Snapshot, refusal: Unservable) -> Looked:
        status = stalled_status(snapshot.model, refusal.reason, refusal.error.message, self._now())
        try:
            await self._say_of_model(snapshot.model, status)
        except KubernetesError as failure:
            return Looked(None if failure.status == 404 else failure)
        return Looked()


Wish = tuple[str, int, frozenset[str]]
"""What a Model's objects depend on: uid and generation, and which CRDs of others there are."""


class Unservable(Exception):
    """A Model that is not served as it stands."""

    def __init__(self, reason: Reason, error: SettingError) -> None:
        super().__init__(error.message)
        self.reason, self.error = reason, error


def _worked_out(snapshot: Snapshot, settings: OperatorSettings) -> tuple[Model, Desired]:
    try:
        model = parse_model(snapshot.model)
    except SettingError as error:
        raise Unservable(Reason.INVALID_SPEC, error) from error
    try:
        return model, desired(model, _owner(snapshot.model), settings, snapshot.optional)
    except SettingError as error:
        raise Unservable(Reason.NOT_SUPPORTED, error) from error


def _owner(raw: Json) -> Owner:
    metadata = raw["metadata"]
    return Owner(str(metadata["name"]), str(metadata["namespace"]), str(metadata["uid"]))
