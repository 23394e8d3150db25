"""Renders HTTP/1.1 requests. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

_URL = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::([0-9]{1,5}))?(/[\x21\x22\x24-\x7e]*)?")
_METHOD = re.compile(r"[A-Z]{1,20}")

RequestHeaders = Sequence[tuple[str, str]]


@functools.lru_cache(maxsize=4096)
def split_url(url: str) -> tuple[str, int, str]:
    """Host, port and target of an http URL. Raises ValueError."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"not an http URL: {url!r}")
    host, port, target = match.groups()
    return host.strip("[]"), int(port or 80), target or "/"


@functools.lru_cache(maxsize=4096)
def _opening(method: str, host: str, port: int, target: str) -> str:
    """Request line and Host."""
    if _METHOD.fullmatch(method) is None:
        raise ValueError(f"not a method: {method!r}")
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{method} {target} HTTP/1.1\r\nhost: {authority}\r\n"


def render_request(method: str, address: tuple[str, int, str], headers: RequestHeaders, body: bytes) -> bytes:
    """The bytes of a request to `split_url`'s address. ValueError for a bad method or a line break in a header."""
    section = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if section.count("\n") != len(headers) or section.count("\r") != len(headers) or "\0" in section:
        raise ValueError("a header holds a line break or NUL")
    length = f"content-length: {len(body)}\r\n" if body or method not in ("GET", "HEAD") else ""
    return f"{_opening(method, *address)}{section}{length}\r\n".encode("latin-1") + body
