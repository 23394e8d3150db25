"""How a refusal shows the value that it refuses: in one short line, whatever was sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

LONGEST_CHARS = 200
MOST_ITEMS = 4
MAX_DEPTH = 2
MAX_BITS = 256  # Python refuses to write integers of more than 4,300 digits


def shown(value: object) -> str:
    """`value` in the words of JSON and YAML, texts quoted as Python does it, with "..." for what is left out."""
    return _cut(_shown(value, MAX_DEPTH))


def _shown(value: object, depth: int) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str() | bytes():
            return repr(value) if len(value) <= LONGEST_CHARS else f"{value[:LONGEST_CHARS]!r}..."
        case int() if value.bit_length() > MAX_BITS:
            return f"an integer of {value.bit_length()} bits"
        case Mapping():
            return f"{{{_joined((_pair(*item, depth - 1) for item in value.items()), len(value), depth)}}}"
        case list() | tuple():
            return f"[{_joined((_shown(item, depth - 1) for item in value), len(value), depth)}]"
        case _:
            return repr(value)


def _pair(name: object, value: object, depth: int) -> str:
    return f"{_shown(name, depth)}: {_shown(value, depth)}"


def _joined(items: Iterable[str], count: int, depth: int) -> str:
    if depth <= 0 and count:
        return "..."
    return ", ".join([*islice(items, MOST_ITEMS), *(["..."] if count > MOST_ITEMS else [])])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_CHARS + 8 else f"{text[:LONGEST_CHARS]}..."
