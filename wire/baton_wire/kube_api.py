"""Asks a Kubernetes API server: one call, a whole list, a watch. No library: three verbs on the HTTP client we have.

What goes wrong becomes a KubernetesError here and only here. Design note 0014 says why no client library.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from baton_api.errors import BatonError, KubernetesError
from baton_wire.http_client import HttpClient, StreamingResponse
from baton_wire.kube_access import KubeAccess

Json = dict[str, Any]
Query = Mapping[str, str]
JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
PAGE_ITEMS = 500
MAX_EVENT_BYTES = 16 * 1024 * 1024
"""etcd refuses objects above 1.5 MiB."""
LIST_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
WATCH_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Accept headers for labels and owners without specs and status."""


@dataclass(frozen=True, slots=True)
class Listing:
    items: tuple[Json, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: Json

    @property
    def version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


class KubeApi:
    """One cluster; close it with `close`. Every method raises KubernetesError."""

    def __init__(self, access: KubeAccess) -> None:
        self.access = access
        self._http = HttpClient(tls=access.tls)
        host = f"[{access.host}]" if ":" in access.host else access.host
        self._origin = f"http://{host}:{access.port}{access.prefix}"

    async def call(
        self, method: str, path: str, *, query: Query | None = None, body: Json | None = None,
        accept: str = JSON, content_type: str = JSON, timeout_s: float = 10.0,
    ) -> Json:  # fmt: skip
        """The answer's object. `content_type` is the kind of patch (APPLY, MERGE); any may be sent twice."""
        content = b"" if body is None else json.dumps(body).encode()
        url, headers = self._url(path, query or {}), self._headers(accept, content_type)
        try:
            answer = await self._http.request(method, url, body=content, headers=headers, timeout_s=timeout_s)
        except BatonError as error:
            raise _unreachable(error) from error
        if answer.status >= 400:
            raise refused(answer.status, answer.headers, answer.body)
        return _object(answer.body)

    async def list(
        self, path: str, query: Query | None = None, *, accept: str = JSON, timeout_s: float = 10.0
    ) -> Listing:
        """Every page; a version that expires between two pages raises status 410."""
        items: list[Json] = []
        asked = {**(query or {}), "limit": str(PAGE_ITEMS)}
        while True:
            page = await self.call("GET", path, query=asked, accept=accept, timeout_s=timeout_s)
            try:
                items += page.get("items") or []
                metadata = page["metadata"]
                if not metadata.get("continue"):
                    return Listing(tuple(items), str(metadata["resourceVersion"]))
                asked["continue"] = metadata["continue"]
            except (KeyError, TypeError, AttributeError) as error:
                raise KubernetesError(f"GET {path}: no list ({error!r})", code="bad_answer") from error

    @asynccontextmanager
    async def watch(
        self, path: str, version: str, query: Query | None = None, *, accept: str = JSON,
        server_s: float = 240.0, silence_s: float = 90.0, timeout_s: float = 10.0,
    ) -> AsyncIterator[AsyncIterator[Event]]:  # fmt: skip
        """The changes after `version`, until the server ends it (`server_s`). One without event or bookmark for
        `silence_s` is dead (code "silent"); one whose version is too old raises status 410."""
        asked = {
            **(query or {}), "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version,
            "timeoutSeconds": str(max(1, int(server_s))),
        }  # fmt: skip
        url, headers = self._url(path, asked), self._headers(accept)
        try:
            answer = await self._http.stream("GET", url, headers=headers, head_timeout_s=timeout_s)
        except BatonError as error:
            raise _unreachable(error) from error
        async with answer:
            if answer.status >= 400:
                body = b"".join([line async for line in _lines(answer, timeout_s)])
                raise refused(answer.status, answer.headers, body)
            yield _events(answer, silence_s)

    async def close(self) -> None:
        await self._http.close()

    def _headers(self, accept: str, content_type: str = JSON) -> Sequence[tuple[str, str]]:
        """The token is read each time: a rotated one is used at the next request."""
        try:
            bearer = self.access.bearer()
        except OSError as error:
            raise KubernetesError(f"the token cannot be read ({error})", code="no_token") from error
        known = (("accept", accept), ("content-type", content_type), ("user-agent", "baton"))
        return known if bearer is None else (*known, ("authorization", f"Bearer {bearer}"))

    def _url(self, path: str, query: Query) -> str:
        return self._origin + path + (f"?{urlencode(query)}" if query else "")


async def _events(answer: StreamingResponse, silence_s: float) -> AsyncIterator[Event]:
    async for line in _lines(answer, silence_s):
        raw = _object(line)
        kind, body = raw.get("type"), raw.get("object")
        if kind == "ERROR" and isinstance(body, dict):
            raise _from_status(int(body.get("code") or 500), body)
        if not isinstance(kind, str) or not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
            raise KubernetesError(f"not a watch event: {line[:80]!r}", code="bad_answer")
        yield Event(kind, body)


async def _lines(answer: StreamingResponse, silence_s: float) -> AsyncIterator[bytes]:
    """Whole lines, and what comes after the last one."""
    rest = b""
    while (data := await _next(answer, silence_s)) is not None:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_EVENT_BYTES:
            raise KubernetesError(f"a watch event exceeds {MAX_EVENT_BYTES} bytes", code="bad_answer")
    if rest:
        yield rest


async def _next(answer: StreamingResponse, silence_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(silence_s):
            return await anext(answer, None)
    except TimeoutError:
        raise KubernetesError(f"nothing was heard for {silence_s:g} s", code="silent") from None
    except BatonError as error:
        raise _unreachable(error) from error


def refused(status: int, headers: Mapping[str, str], body: bytes) -> KubernetesError:
    """A Status object, or whatever a proxy in between said."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        said = {"message": body[:200].decode(errors="replace")}
    after = headers.get("retry-after", "")
    return _from_status(status, said, float(after) if after.isascii() and after.isdigit() else None)


def _from_status(status: int, said: Json, retry_after_s: float | None = None) -> KubernetesError:
    message, code = said.get("message") or "no message", said.get("reason") or f"HTTP{status}"
    return KubernetesError(f"HTTP {status}: {message}", status=status, code=str(code), retry_after_s=retry_after_s)


def _unreachable(error: BatonError) -> KubernetesError:
    return KubernetesError(f"the Kubernetes API: {error.message}", code="unreachable")


def _object(data: bytes) -> Json:
    try:
        said = json.loads(data)
    except ValueError as error:
        raise KubernetesError(f"not JSON: {data[:80]!r}", code="bad_answer") from error
    if not isinstance(said, dict):
        raise KubernetesError(f"not an object: {data[:80]!r}", code="bad_answer")
    return said
