"""Event streams as tests compare them: parsed, by choice, log probabilities nearly equal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

TOLERANCE = 1e-3


def split_events(raw: bytes) -> list[tuple[str, bytes]]:
    """(the comment lines before it, its data) of each event."""
    events = []
    for event in raw.split(b"\n\n")[:-1]:
        lines, _, data = event.rpartition(b"data: ")
        events.append((lines.decode(), data))
    return events


def by_choice(events: Iterable[bytes]) -> list[Any]:
    """The events of each choice in their order, then those without a choice; "[DONE]" is left out."""
    parsed = [json.loads(event) for event in events if event != b"[DONE]"]
    return sorted(parsed, key=lambda event: event["choices"][0]["index"] if event.get("choices") else 99)


def alike(one: Any, other: Any) -> bool:
    """Equal, log probabilities nearly: their last digits depend on who else was in the batch."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < TOLERANCE
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other
