"""Asks an OpenAI-compatible endpoint: one streamed chat answer, its text as it comes, where the time went."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from baton_api.errors import BatonError, WorkerProtocolError
from baton_api.timing import Span, from_server_timing
from baton_wire.http_client import HttpClient, StreamingResponse
from baton_wire.sse import DONE, SseParser

HEAD_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, as whom, and for which model."""

    url: str
    api_key: str
    model: str

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return ("authorization", f"Bearer {self.api_key}"), ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer. `ttft_s` and `total_s` are this client's own measure, from before the request was sent;
    `ttft_s` None: it had no text. `spans` is the server's split of the time to its first token."""

    text: str
    finish_reason: str | None
    ttft_s: float | None
    total_s: float
    spans: tuple[Span, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class _Reading:
    """What has come of an answer so far."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self.on_text = on_text
        self.pieces: list[str] = []
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] = {}
        self.first_s: float | None = None
        self.done = False

    def take(self, event: bytes) -> None:
        """One event of the stream. Raises BatonError for an error event."""
        if event == DONE:
            self.done = True
            return
        chunk = json.loads(event)
        if "error" in chunk:
            raise WorkerProtocolError(str(chunk["error"].get("message")), code=chunk["error"].get("code"))
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if text := choice["delta"].get("content"):
                self._text(text)

    def _text(self, text: str) -> None:
        if self.first_s is None:
            self.first_s = time.monotonic()
        self.pieces.append(text)
        self.on_text(text)


async def ask(
    http: HttpClient, endpoint: Endpoint, messages: Sequence[Message], on_text: Callable[[str], None], **fields: Any
) -> Answered:
    """One answer; cancelling the task breaks it off at the server too. `fields` go into the request as they are.

    Raises BatonError with the server's message when it refuses or breaks off.
    """
    body = {
        "model": endpoint.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    url = f"{endpoint.url}/v1/chat/completions"
    start_s = time.monotonic()
    stream = await http.stream(
        "POST", url, body=json.dumps(body).encode(), headers=endpoint.headers, head_timeout_s=HEAD_TIMEOUT_S
    )
    async with stream:
        reading = await _read(stream, on_text)
    return _answered(reading, start_s, stream.headers.get("server-timing", ""))


async def _read(stream: StreamingResponse, on_text: Callable[[str], None]) -> _Reading:
    if stream.status != 200:
        raise _refusal(stream.status, b"".join([data async for data in stream]))
    parser, reading = SseParser(), _Reading(on_text)
    try:
        async for data in stream:
            for event in parser.feed(data):
                reading.take(event)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkerProtocolError(f"the answer is not a chat completion stream: {error!r}") from error
    if not reading.done:
        raise WorkerProtocolError("the answer broke off")
    return reading


def _refusal(status: int, body: bytes) -> BatonError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    return WorkerProtocolError(f"HTTP {status}: {message}")


def _answered(reading: _Reading, start_s: float, server_timing: str) -> Answered:
    usage = reading.usage
    return Answered(
        text="".join(reading.pieces),
        finish_reason=reading.finish_reason,
        ttft_s=None if reading.first_s is None else reading.first_s - start_s,
        total_s=time.monotonic() - start_s,
        spans=from_server_timing(server_timing),
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)),
        completion_tokens=int(usage.get("completion_tokens", 0)),
    )
