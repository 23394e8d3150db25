"""Judges the head of an HTTP/1.x request: one reading, or a refusal. Pure.

Stricter than RFC 9112 wherever two readers could disagree (request smuggling): no bare CR or LF, no obs-fold, no
whitespace before the colon, no control characters, one Content-Length of digits or one `Transfer-Encoding: chunked` but
never both, one Host, names of token characters without underscore (a CGI-like peer reads `_` as `-`), only origin-form
targets, no upgrades.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from baton_api.errors import BadRequest, ExpectationFailed, HeadersTooLarge, UnsupportedEncoding
from baton_wire.http_limits import ServerLimits

# RFC 9112 section 3; `#` is excluded from targets: a fragment is never sent.
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) (/[\x21\x22\x24-\x7e]*+) HTTP/1\.([01])\r\n")
# RFC 9110 section 5.6.2 less `_`; values of section 5.5 with obs-text.
_FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
_FORBIDDEN_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)|\r\n[ \t]")
_HOST = re.compile(r"(?:[A-Za-z0-9._\-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(r"[0-9]{1,15}")
_SINGLE = ("host", "content-length", "transfer-encoding", "expect")


@dataclass(slots=True)
class RequestHead:
    """One accepted head. Not frozen only because a frozen one costs 1 us more to build, on every request."""

    method: str
    target: str
    headers: dict[str, str]
    http11: bool
    keep_alive: bool
    content_length: int
    chunked: bool
    expect_continue: bool


def parse_request_head(head: bytes, limits: ServerLimits) -> RequestHead:
    """`head` ends with its blank line. Raises BadRequest, HeadersTooLarge, UnsupportedEncoding or ExpectationFailed."""
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise BadRequest(_why_not_request_line(head), code="malformed_request_line")
    method, target, minor = line.groups()
    if method == b"CONNECT":  # in other readers its body is a tunnel
        raise BadRequest("tunnels are not supported", code="malformed_request_line")
    if len(target) > limits.max_target_bytes:
        raise BadRequest(f"request target exceeds {limits.max_target_bytes} bytes", code="target_too_long")
    if _FIELDS.fullmatch(head, line.end()) is None:
        raise BadRequest(_why_not_fields(head[line.end() :]), code="malformed_header")
    headers, repeated = _collect(head[line.end() : -4].decode("latin-1"), limits.max_headers)
    for name in repeated:
        if name in _SINGLE:
            raise BadRequest(f"header {name} is repeated", code="repeated_header")
    return _framed(method.decode("ascii"), target.decode("ascii"), minor == b"1", headers)


def _collect(section: str, max_headers: int) -> tuple[dict[str, str], tuple[str, ...]]:
    """Fields by lower-case name, and the names that came more than once."""
    headers: dict[str, str] = {}
    repeated: tuple[str, ...] = ()
    if not section:
        return headers, repeated
    lines = section.split("\r\n")
    if len(lines) > max_headers:
        raise HeadersTooLarge(f"more than {max_headers} header fields")
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers:
            repeated += (name,)
            headers[name] += ", " + value.strip(" \t")
        else:
            headers[name] = value.strip(" \t")
    return headers, repeated


def _framed(method: str, target: str, http11: bool, headers: dict[str, str]) -> RequestHead:
    _check_host(headers.get("host"), http11)
    if "upgrade" in headers:
        raise BadRequest("protocol upgrades are not supported", code="upgrade_refused")
    chunked = "transfer-encoding" in headers
    if chunked:
        _check_chunked(headers, http11)
    length = _content_length(headers.get("content-length"))
    if "content-encoding" in headers and (chunked or length):
        _check_content_encoding(headers["content-encoding"])
    expect = headers.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise ExpectationFailed(f"header expect is {expect[:64]!r}; only 100-continue is understood: leave it out")
    connection = headers.get("connection")
    keep_alive = http11 and (connection is None or "close" not in connection.lower())
    return RequestHead(method, target, headers, http11, keep_alive, length, chunked, expect is not None and http11)


def _check_host(host: str | None, http11: bool) -> None:
    if host is None:
        if http11:
            raise BadRequest("header host is missing", code="missing_host")
    elif not _is_host(host):
        raise BadRequest(f"header host is {host[:64]!r}; it must be a name or address and port", code="malformed_host")


@functools.lru_cache(maxsize=256)
def _is_host(value: str) -> bool:
    return _HOST.fullmatch(value) is not None


def _check_chunked(headers: dict[str, str], http11: bool) -> None:
    if "content-length" in headers:
        raise BadRequest("content-length together with transfer-encoding", code="ambiguous_length")
    if not http11 or headers["transfer-encoding"].lower() != "chunked":
        raise BadRequest("the only transfer coding is chunked, in HTTP/1.1", code="bad_transfer_encoding")


def _check_content_encoding(value: str) -> None:
    if any(coding.strip().lower() not in ("", "identity") for coding in value.split(",")):
        raise UnsupportedEncoding(
            f"header content-encoding is {value[:64]!r}; the only one is identity: send the body uncompressed",
            param="content-encoding",
        )


def _content_length(value: str | None) -> int:
    if value is None:
        return 0
    if _LENGTH.fullmatch(value) is None:
        told = f"header content-length is {value[:64]!r}; it must be 1 to 15 digits"
        raise BadRequest(told, code="bad_content_length")
    return int(value)


def check_partial_head(partial: bytes, checked_bytes: int) -> None:
    """Raises BadRequest for what cannot become a head (a TLS hello, bare LF), so that nobody waits for its end.

    `checked_bytes` of it have been seen before: a head that dribbles in must not be read over and over.
    """
    if _FORBIDDEN_BYTE.search(partial, max(0, checked_bytes - 2)) is not None or not (b"A"[0] <= partial[0] <= b"Z"[0]):
        raise BadRequest("not an HTTP/1.1 request head", code="malformed_head")


def _why_not_request_line(head: bytes) -> str:
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    if len(parts) != 3:
        return "malformed request line"
    if parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return "only HTTP/1.1 and HTTP/1.0 are spoken here"
    if not parts[1].startswith(b"/"):
        return "the request target must be a path (no absolute, authority or asterisk form)"
    return "malformed request line"


def _why_not_fields(section: bytes) -> str:
    lines = section.split(b"\r\n")
    number, line = next((n, line) for n, line in enumerate(lines, 1) if _FIELDS.fullmatch(line + b"\r\n\r\n") is None)
    underscore = b"_" in line.partition(b":")[0]
    return f"malformed header field in line {number}" + (": underscores are refused in names" if underscore else "")
