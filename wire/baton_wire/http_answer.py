"""Renders the heads and error bodies of HTTP/1.1 answers. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from http import HTTPStatus

from baton_api.errors import (
    BatonError,
    DeadlineExceeded,
    MethodNotAllowed,
    NoCapacity,
    Overloaded,
    Unauthorized,
    UnsupportedEncoding,
)

Headers = Sequence[tuple[str, str]]

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus if status >= 200}
# The server alone says what decides framing and connection life; so a relay may pass an upstream's headers whole.
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def render_head(status: int, headers: Headers, framing: str) -> bytes:
    """Status line, headers less hop-by-hop ones, `framing` (whole lines). Raises ValueError for CR, LF or NUL."""
    lines = [f"{name}: {value}\r\n" for name, value in headers if name.lower() not in _OURS]
    section = "".join(lines)
    if section.count("\n") != len(lines) or section.count("\r") != len(lines) or "\0" in section:
        raise ValueError("a header holds a line break or NUL")
    return f"{_STATUS_LINES.get(status) or _unknown_status(status)}{section}{framing}\r\n".encode("latin-1")


def _unknown_status(status: int) -> str:
    if not 200 <= status <= 999:
        raise ValueError(f"status {status} is not a final one")
    return f"HTTP/1.1 {status} \r\n"


def declared_length(headers: Headers) -> int | None:
    """The value of a content-length among `headers`. Raises ValueError when it is no number."""
    for name, value in headers:
        if name.lower() == "content-length":
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"content-length {value!r} is no number")
            return int(value)
    return None


def has_no_body(status: int) -> bool:
    return status in (204, 304)


def error_body(error: BatonError) -> bytes:
    return json.dumps(error.body(), separators=(",", ":")).encode()


def error_headers(error: BatonError) -> list[tuple[str, str]]:
    """`Retry-After` in whole seconds, rounded up; `x-should-retry: false` where a retry by OpenAI's client is vain;
    `Allow` with 405, `WWW-Authenticate` with 401, `Accept-Encoding` with 415; why a request was not taken on, as llm-d
    says it."""
    headers = []
    if isinstance(error, NoCapacity | Overloaded) and error.code is not None:
        headers.append(("x-request-dropped-reason", error.code))
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(max(0, math.ceil(error.retry_after_s)))))
    if isinstance(error, MethodNotAllowed):
        headers.append(("allow", error.allow))
    if isinstance(error, Unauthorized):
        headers.append(("www-authenticate", "Bearer"))
    if isinstance(error, UnsupportedEncoding):
        headers.append(("accept-encoding", "identity"))  # RFC 9110 section 15.5.16
    if isinstance(error, DeadlineExceeded):
        headers.append(("x-should-retry", "false"))
    return headers
