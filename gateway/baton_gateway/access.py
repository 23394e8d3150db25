"""Who asks: API keys, tenants, request ids. Pure.

Nothing a client sends as a header reaches a worker but a checked request id and traceparent, so no control header can
be spoofed; control fields in a body are refused by the parser.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping

from baton_api.blocks import NO_TENANT
from baton_api.errors import Unauthorized

MAX_KEY_CHARS = 512
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class KeyRing:
    """The API keys, kept as hashes. An empty ring lets everybody in as the one nameless tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._tenants = {_hash(key): _hash(key).hex() for key in keys}

    def __len__(self) -> int:
        return len(self._tenants)

    def tenant(self, headers: Mapping[str, str]) -> str:
        """The tenant behind the bearer token: the hash of its key. Raises Unauthorized.

        However long the lookup of a hash takes, it says something of the hash of what was given, not of a key: nobody
        can make up a token whose hash begins as that of an unknown key does.
        """
        if not self._tenants:
            return NO_TENANT
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(given) <= MAX_KEY_CHARS:
            raise Unauthorized("give the API key as `Authorization: Bearer KEY`")
        given_hash = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()  # as _hash does
        tenant = self._tenants.get(given_hash)
        if tenant is None:
            raise Unauthorized("this API key is not known")
        return tenant


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def request_id(headers: Mapping[str, str], draw: Callable[[int], bytes]) -> str:
    """The client's x-request-id if it is one (1 to 128 of A-Z a-z 0-9 . _ : -), else a fresh one."""
    given = headers.get("x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else draw(12).hex()


def worker_headers(headers: Mapping[str, str], request_id: str, worker_key: str) -> tuple[tuple[str, str], ...]:
    """All headers a leg carries."""
    ours = (
        ("authorization", f"Bearer {worker_key}"),
        ("content-type", "application/json"),
        ("x-request-id", request_id),
    )
    traceparent = headers.get("traceparent")
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        return (*ours, ("traceparent", traceparent))
    return ours
