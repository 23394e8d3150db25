"""A request body's bytes as one JSON object, within limits. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import BadRequest
from .shown import shown

MAX_DEPTH = 64
MAX_OBJECTS = 4096
_MIN_OBJECT_BYTES = 3  # "{},"
"""Two for each of the messages allowed. Each costs a call of about 1.3 us: 100,000 held the event loop for 0.16 s."""

MAX_ARRAYS = 2 * MAX_OBJECTS
MAX_NAMES = 4 * MAX_OBJECTS
MAX_VALUES = 5 * 2**18
"""What a prompt of a million tokens, as ids, has room for."""
VALUES_BESIDE = 2**16
"""What a request needs at most besides the ids of its prompt."""
_WINDOW_BYTES = 2**15
_BACKSLASHES = re.compile(rb"\\*")


def max_values_for(context: int | None) -> int:
    """That a body may have whose prompt is at most `context` token ids long (None: nobody knows): a million of them
    take a quarter of a second to read, which only a model of that context has to afford."""
    return MAX_VALUES if context is None else min(MAX_VALUES, context + VALUES_BESIDE)


def json_object(data: bytes | bytearray, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Raises BadRequest when `data` is not one JSON object in UTF-8 (RFC 8259) nested at most `max_depth` deep, of at
    most MAX_OBJECTS objects, MAX_ARRAYS arrays, MAX_NAMES names and `max_values` values.

    Stricter than the RFC where two readers could disagree: no duplicate names, no NaN or Infinity, no lone surrogates.
    """
    if len(data) > _MIN_OBJECT_BYTES * MAX_OBJECTS:
        _check_counts(data, max_values)
    try:
        text = data.decode("utf-8")
        # Only where there may be too many objects must they be counted while they come.
        decoder = _PLAIN if len(data) <= _MIN_OBJECT_BYTES * MAX_OBJECTS else _decoder(_Unique())
        value = decoder.decode(text)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise BadRequest(f"the body is nested deeper than {max_depth}") from error
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"the body is {shown(value)}; it must be a JSON object")
    if (_more_than(max_depth // 2, b"{", data) or _more_than(max_depth // 2, b"[", data)) and _deeper_than(
        value, max_depth
    ):
        raise BadRequest(f"the body is nested deeper than {max_depth}")
    if b"\\" in data and (b"\\ud" in data or b"\\uD" in data):
        _check_surrogates(value)
    return value


def _check_counts(data: bytes | bytearray, max_values: int) -> None:
    """Before anything is made of them: 128,000 nests of arrays took 11 s, a million names 0.6 s.

    An object's first name follows its brace at once, or white space does and the reader counts the object itself; a
    quote behind a brace inside a text ends that text. So there are as many objects, but for texts that end in a brace.
    """
    if _counted(b'{"', data, 2 * MAX_OBJECTS) > 2 * MAX_OBJECTS:
        raise BadRequest(f"the body has more than {MAX_OBJECTS} JSON objects")
    for mark, limit, what in ((b"[", MAX_ARRAYS, "arrays"), (b":", MAX_NAMES, "names"), (b",", max_values, "values")):
        if _counted(mark, data, limit) > limit and _outside_texts(mark, data, limit) > limit:
            raise BadRequest(f"the body has more than {limit} JSON {what}")


def _counted(mark: bytes, data: bytes | bytearray, enough: int) -> int:
    """How often `mark` stands in `data`, or some number above `enough`: the rest is not looked at then."""
    count = 0
    for start in range(0, len(data), _WINDOW_BYTES):
        end = start + _WINDOW_BYTES + len(mark) - 1
        if data.find(mark[0], start, end) >= 0:  # thirty times faster than to count what is not there
            count += data.count(mark, start, end)
        if count > enough:
            break
    return count


def _outside_texts(mark: bytes, data: bytes | bytearray, enough: int) -> int:
    """The same, but for what stands inside JSON's texts."""
    count, start, inside = 0, 0, False
    while start < len(data) and count <= enough:
        end = start + _WINDOW_BYTES
        if data[end - 1 : end] == b"\\":  # no cut between a backslash and what it escapes
            end = _BACKSLASHES.match(data, end).end() + 1  # type: ignore[union-attr]
        parts = data[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        count += b"".join(parts[inside::2]).count(mark)
        inside ^= len(parts) % 2 == 0
        start = end
    return count


class _Unique:
    """Makes each object of one body, and counts them while they come: counting braces would count those in texts."""

    __slots__ = ("_objects",)

    def __init__(self) -> None:
        self._objects = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise BadRequest(f"the body has more than {MAX_OBJECTS} JSON objects")
        return _unique(pairs)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadRequest(f"the name {name[:64]!r} stands twice in one object", param=name[:64])
    return value


def _no_constant(name: str) -> NoReturn:
    raise BadRequest(f"{name} is not a JSON number")


def _decoder(make_object: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=make_object, parse_constant=_no_constant)


_PLAIN = _decoder(_unique)


def _more_than(limit: int, opener: bytes, data: bytes | bytearray) -> bool:
    """Of one byte. Not by `count`, which looks at every byte; `find` skips to the next one."""
    at = -1
    for _ in range(limit + 1):
        at = data.find(opener, at + 1)
        if at < 0:
            return False
    return True


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(item: Any) -> Any:
    return item.values() if isinstance(item, dict) else item


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest("the body holds a lone surrogate (\\ud800 to \\udfff)") from error
