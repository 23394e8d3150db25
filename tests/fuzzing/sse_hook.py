"""Loaded by schemathesis: an event's data is JSON, so that the schema of a chunk is held against every chunk."""

from __future__ import annotations

import json
from typing import Any

import schemathesis

from baton_wire.sse import DONE, SseParser


@schemathesis.deserializer("text/event-stream")
def events(_context: object, response: Any) -> list[dict[str, Any]]:
    """Each event, [DONE] as it stands. ValueError, which is a failure, for data that is no JSON."""
    seen = SseParser().feed(response.content)
    return [{"data": DONE.decode() if data == DONE else json.loads(data)} for data in seen]
