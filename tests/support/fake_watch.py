"""A small outside API server: lists, watches, and every way they fail. Plain HTTP, in the test's loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from baton_wire.http_server import Exchange, HttpServer, serve
from baton_wire.kube_access import KubeAccess

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    accept: str
    at_s: float

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


@dataclass
class Watching:
    """One open watch; `cut` breaks it in the middle, `end` ends it in order."""

    exchange: Exchange
    collection: str
    selector: dict[str, str]

    def say(self, kind: str, item: Json) -> None:
        if not self.exchange.gone:
            self.exchange.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")


class FakeApi:
    """`refuse` answers the requests for which it returns (status, headers); `mute`: watches are opened and nothing is
    sent; `answers` are objects for other paths, by "METHOD path"."""

    def __init__(self) -> None:
        self.token = "first"
        self.client_token: Callable[[], str | None] = lambda: "first"
        self.objects: dict[str, dict[str, Json]] = {}
        self.answers: dict[str, Json | Callable[[Json], Json]] = {}
        self.asked: list[Asked] = []
        self.watching: list[Watching] = []
        self.refuse: Callable[[Asked], tuple[int, list[tuple[str, str]]] | None] = lambda asked: None
        self.mute = False
        self.page_items = 500
        self.port = 0
        self._version = 100
        self._oldest = 0
        self._history: list[tuple[int, str, str, Json]] = []
        self._server: HttpServer | None = None

    @property
    def access(self) -> KubeAccess:
        return KubeAccess("127.0.0.1", self.port, bearer=self._bearer, namespace="ns")

    def _bearer(self) -> str | None:
        return self.client_token()

    async def start(self) -> FakeApi:
        self._server = await serve(self._handle, "127.0.0.1", self.port)
        self.port = self._server.port
        return self

    async def stop(self) -> None:
        """As if killed: connections break, nobody listens."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.close()
        self.watching.clear()

    def put(self, collection: str, item: Json) -> None:
        """Creates or changes an object."""
        known = self.objects.setdefault(collection, {})
        name = item["metadata"]["name"]
        kind = "MODIFIED" if name in known else "ADDED"
        self._happen(collection, kind, item)
        known[name] = item

    def delete(self, collection: str, name: str) -> None:
        self._happen(collection, "DELETED", self.objects[collection].pop(name))

    def bookmark(self) -> None:
        self._version += 1
        for watch in self.watching:
            watch.say("BOOKMARK", {"kind": "X", "metadata": {"resourceVersion": str(self._version)}})

    def compact(self) -> None:
        """Versions up to now are forgotten: who watches from one of them gets 410."""
        self._version += 1
        self._oldest = self._version

    def error_event(self, code: int) -> None:
        """On every open watch, as the server says that a version is gone after the head."""
        for watch in self.watching:
            watch.say("ERROR", {"kind": "Status", "code": code, "reason": "Expired", "message": "too old"})

    def end_watches(self, how: Callable[[Exchange], None] = Exchange.end) -> None:
        watching, self.watching = self.watching, []
        for watch in watching:
            how(watch.exchange)

    def _happen(self, collection: str, kind: str, item: Json) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, collection, kind, item))
        for watch in self.watching:
            if watch.collection == collection and matches(item, watch.selector) and not self.mute:
                watch.say(kind, item)

    async def _handle(self, exchange: Exchange) -> None:
        query = {name: values[0] for name, values in parse_qs(exchange.query).items()}
        accept = exchange.headers.get("accept", "")
        asked = Asked(exchange.method, exchange.path, query, accept, asyncio.get_running_loop().time())
        self.asked.append(asked)
        refusal = self.refuse(asked)
        if exchange.headers.get("authorization") != f"Bearer {self.token}":
            _refuse(exchange, 401, "Unauthorized", [])
        elif refusal is not None:
            _refuse(exchange, refusal[0], "Refused", refusal[1])
        elif f"{asked.method} {asked.path}" in self.answers:
            self._answer(exchange, self.answers[f"{asked.method} {asked.path}"])
        elif asked.is_watch:
            await self._watch(exchange, asked)
        elif asked.path in self.objects:
            self._list(exchange, asked)
        elif (item := self._find(asked.path)) is not None:
            exchange.respond(200, json.dumps(item).encode())
        else:
            _refuse(exchange, 404, "NotFound", [])

    def _answer(self, exchange: Exchange, answer: Json | Callable[[Json], Json]) -> None:
        said = answer if isinstance(answer, dict) else answer(json.loads(exchange.body or b"{}"))
        exchange.respond(int(said.get("code", 200)) if said.get("kind") == "Status" else 200, json.dumps(said).encode())

    def _find(self, path: str) -> Json | None:
        """One object by the path of its collection and its name."""
        collection, _, name = path.rpartition("/")
        return self.objects.get(collection, {}).get(name)

    def _list(self, exchange: Exchange, asked: Asked) -> None:
        selector = _selector(asked.query)
        _, _, name = asked.query.get("fieldSelector", "").partition("metadata.name=")
        known = sorted(self.objects[asked.path].items())
        found = [item for key, item in known if matches(item, selector) and name in ("", key)]
        start = int(asked.query.get("continue", "0"))
        end = start + min(self.page_items, int(asked.query.get("limit", "500")))
        metadata = {"resourceVersion": str(self._version), "continue": str(end) if end < len(found) else ""}
        exchange.respond(200, json.dumps({"kind": "List", "metadata": metadata, "items": found[start:end]}).encode())

    async def _watch(self, exchange: Exchange, asked: Asked) -> None:
        since = int(asked.query["resourceVersion"])
        if since < self._oldest:
            _refuse(exchange, 410, "Expired", [])
            return
        exchange.start(200, [("content-type", "application/json")])
        watch = Watching(exchange, asked.path, _selector(asked.query))
        self.watching.append(watch)
        for version, collection, kind, item in self._history:
            if version > since and collection == asked.path and matches(item, watch.selector) and not self.mute:
                watch.say(kind, item)
        gone = asyncio.Event()
        exchange.on_gone(gone.set)
        while watch in self.watching and not gone.is_set():
            await asyncio.sleep(0.01)
        if watch in self.watching:
            self.watching.remove(watch)


def _refuse(exchange: Exchange, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
    said = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": f"no: {reason}"}
    exchange.respond(status, json.dumps(said).encode(), headers)


def _selector(query: dict[str, str]) -> dict[str, str]:
    pairs = (part.partition("=") for part in query.get("labelSelector", "").split(",") if part)
    return {name: value for name, _, value in pairs}


def matches(item: Json, selector: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in selector.items())
