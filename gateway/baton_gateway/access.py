"""Who asks: API keys, tenants, request ids. Pure.

Nothing a client sends as a header reaches a worker but a checked request id and traceparent, so no control header can
be spoofed; control fields in a body are refused by the parser.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from baton_api.blocks import NO_TENANT
from baton_api.errors import Unauthorized

MAX_KEY_CHARS = 512
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class KeyRing:
    """The API keys, kept as hashes. An empty ring lets everybody in as the one nameless tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = tuple(dict.fromkeys(_hash(key) for key in keys))

    def __len__(self) -> int:
        return len(self._hashes)

    def tenant(self, headers: Mapping[str, str]) -> str:
        """The tenant behind the bearer token: the hash of its key. Raises Unauthorized.

        Every key is compared, each in constant time, so that the time taken says nothing about them.
        """
        if not self._hashes:
            return NO_TENANT
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(given) <= MAX_KEY_CHARS:
            raise Unauthorized("give the API key as `Authorization: Bearer KEY`")
        given_hash = _hash(given.strip())
        if not any([hmac.compare_digest(given_hash, known) for known in self._hashes]):  # noqa: C419 - no early exit
            raise Unauthorized("this API key is not known")
        return given_hash.hex()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def request_id(headers: Mapping[str, str], fresh: str) -> str:
    """The client's x-request-id if it is one (1 to 128 of A-Z a-z 0-9 . _ : -), else `fresh`."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else fresh


def worker_headers(headers: Mapping[str, str], request_id: str, worker_key: str) -> tuple[tuple[str, str], ...]:
    """All headers a leg carries."""
    traceparent = headers.get("traceparent", "")
    trace = (("traceparent", traceparent),) if _TRACEPARENT.fullmatch(traceparent) else ()
    return (
        ("authorization", f"Bearer {worker_key}"),
        ("content-type", "application/json"),
        ("x-request-id", request_id),
        *trace,
    )
