"""Where the fleet is read from: the seam `Source`, and the fleet file behind it (docs/fleet.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from baton_api.errors import SettingError
from baton_api.fleet import Fleet
from baton_wire.http_request import split_url

from .settings import GatewaySettings

log = logging.getLogger("baton.gateway.source")

Take = Callable[[Fleet], None]


class Source(Protocol):
    """Says which workers there are; who and how each is, it says itself (`discovery`)."""

    async def run(self, take: Take) -> None:
        """Until cancelled: `take` is called with the whole fleet, first as soon as it is known, then at every change.

        What the source is asked from being away is no change: it is reported, and the last fleet stays."""


def source_of(settings: GatewaySettings, environment: Mapping[str, str], on_error: Callable[[str], None]) -> Source:
    """The one that the settings name. What only a cluster needs is loaded only there. Raises SettingError."""
    if settings.discovery == "file":
        return FileSource(settings.fleet_file, settings.fleet_poll_s)
    from baton_wire.kube_access import in_cluster

    from .kube_source import KubernetesSource, ModelPlace

    access = in_cluster(environment, settings.service_account_dir)
    model = ModelPlace(settings.model_name, settings.served_name or settings.model_name, settings.namespace)
    return KubernetesSource(access, model, on_error=on_error)


class FileSource:
    """The fleet file, looked at every `poll_s`."""

    def __init__(self, path: str, poll_s: float) -> None:
        self._path = Path(path)
        self._poll_s = poll_s
        self._content: bytes | None = None

    async def run(self, take: Take) -> None:
        while True:
            self._look(take)
            await asyncio.sleep(self._poll_s)

    def _look(self, take: Take) -> None:
        """A file that cannot be read or is no fleet changes nothing: the last good one stays."""
        try:
            content = self._path.read_bytes()
        except OSError as error:
            content = b""
            if self._content != content:
                log.warning("fleet file: %s; keeping the last fleet", error)
        if content == self._content:
            return
        self._content = content
        if content:
            try:
                take(checked(Fleet.from_json(content)))
            except SettingError as error:
                log.error("%s; keeping the last fleet", error.message)


def checked(fleet: Fleet) -> Fleet:
    """With bare urls. Raises SettingError for one this gateway cannot call."""
    bare = replace(fleet, workers=tuple(replace(worker, url=worker.url.rstrip("/")) for worker in fleet.workers))
    for worker in bare.workers:
        try:
            split_url(worker.url + "/")
        except ValueError as error:
            raise SettingError("fleet file", worker.url, "is not an http URL", "write http://HOST:PORT") from error
    return bare
