"""Keeps a mirror of some of a cluster's objects: list, watch, and what to do when either fails.

    list -> watch from its version -> ... -> the server ends it: watch on from the last version
    410: list again · 401: the next request reads the token anew · 429: wait as long as asked
    silent for too long, cut, refused, unreachable: wait (jittered, doubling) and watch on from the last version

Whatever happens the mirror keeps what it last held: an API server that is away is no news about the objects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from baton_api.errors import KubernetesError
from baton_wire.kube_api import JSON, LIST_METADATA, WATCH_METADATA, Event, Json, KubeApi, Listing, Query

log = logging.getLogger("baton.kubernetes")
T = TypeVar("T")
GONE, TOO_MANY = 410, 429


@dataclass(frozen=True, slots=True)
class WatchTimes:
    """Two mirrors that find nobody wait at least `wait_base_s / 2` each between requests: 5 a second in all."""

    request_s: float = 10.0
    server_s: float = 240.0
    silence_s: float = 90.0
    wait_base_s: float = 0.8
    wait_max_s: float = 5.0


class Mirror(Generic[T]):
    """What `keep` makes of each object, by name; None: of no interest. `changed` is called after every list and every
    event that changes what is kept: most of a Pod's events are about what nobody here asks for."""

    def __init__(self, keep: Callable[[Json], T | None], changed: Callable[[], None]) -> None:
        self._keep = keep
        self._changed = changed
        self.items: dict[str, T] = {}
        self.listed = False

    def replace(self, listing: Listing) -> None:
        kept = {str(item["metadata"]["name"]): self._keep(item) for item in listing.items}
        self.items = {name: item for name, item in kept.items() if item is not None}
        self.listed = True
        self._changed()

    def apply(self, event: Event) -> None:
        if event.kind == "BOOKMARK":
            return
        name = str(event.object["metadata"]["name"])
        item = None if event.kind == "DELETED" else self._keep(event.object)
        if self.items.get(name) == item:
            return
        if item is None:
            self.items.pop(name, None)
        else:
            self.items[name] = item
        self._changed()


class Holder(Protocol):
    """What a reflector keeps true: a Mirror, or another memory of its own."""

    def replace(self, listing: Listing) -> None: ...

    def apply(self, event: Event) -> None: ...


class Backoff:
    """Jittered and doubling; `draw()` is in [0, 1)."""

    def __init__(self, base_s: float, max_s: float, draw: Callable[[], float]) -> None:
        self._base_s, self._max_s, self._draw = base_s, max_s, draw
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> float:
        """How long to wait now."""
        ceiling_s = min(self._max_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return ceiling_s * (0.5 + 0.5 * self._draw())


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects: `what` names them in logs; `metadata_only` leaves spec and status out."""

    what: str
    path: str
    query: Query
    metadata_only: bool = False

    @property
    def accepts(self) -> tuple[str, str]:
        """For list and watch."""
        return (LIST_METADATA, WATCH_METADATA) if self.metadata_only else (JSON, JSON)


class Reflector:
    """`run` until cancelled. `on_error(reason)` at each failure."""

    def __init__(
        self, api: KubeApi, wanted: Wanted, mirror: Holder, times: WatchTimes, draw: Callable[[], float],
        on_error: Callable[[str], None] = lambda reason: None,
    ) -> None:  # fmt: skip
        self._api = api
        self._wanted = wanted
        self._mirror = mirror
        self._times = times
        self._draw = draw
        self._on_error = on_error
        self._backoff = Backoff(times.wait_base_s, times.wait_max_s, draw)
        self._version: str | None = None
        self._trouble = ""

    async def run(self) -> None:
        while True:
            try:
                await self._list_and_watch()
                wait_s = self._backoff.failed()  # the server ended it, as it may; one that always does is not pressed
            except KubernetesError as error:
                wait_s = self._failed(error)
            except Exception:
                log.exception("%s: listing again", self._wanted.what)
                self._version = None
                wait_s = self._backoff.failed()
                self._on_error("internal")
            await asyncio.sleep(wait_s)

    async def _list_and_watch(self) -> None:
        wanted, times = self._wanted, self._times
        for_list, for_watch = wanted.accepts
        if self._version is None:
            listing = await self._api.list(wanted.path, wanted.query, accept=for_list, timeout_s=times.request_s)
            self._mirror.replace(listing)
            self._version = listing.version
            log.info("%s: %d listed", wanted.what, len(listing.items))
        async with self._api.watch(
            wanted.path, self._version, wanted.query, accept=for_watch, timeout_s=times.request_s,
            server_s=times.server_s * (0.8 + 0.2 * self._draw()), silence_s=times.silence_s,
        ) as events:  # fmt: skip
            async for event in events:
                self._mirror.apply(event)
                self._version = event.version
                self._heard()

    def _heard(self) -> None:
        self._backoff.succeeded()
        if self._trouble:
            log.info("%s: heard of again", self._wanted.what)
            self._trouble = ""

    def _failed(self, error: KubernetesError) -> float:
        """How long to wait. Logged once per trouble: a long outage must not fill the log."""
        wait_s = self._backoff.failed()
        if error.status == GONE:
            self._version = None
        elif error.status == TOO_MANY:
            wait_s = max(wait_s, error.retry_after_s or 0.0)
        trouble = error.code or error.reason
        self._on_error(trouble)
        level = logging.DEBUG if trouble == self._trouble else logging.WARNING
        log.log(level, "%s: %s; keeping what is known, trying again", self._wanted.what, error.message)
        self._trouble = trouble
        return wait_s
