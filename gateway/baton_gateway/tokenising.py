"""Text to token ids and block keys, once per request, on threads beside the event loop, with a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, TypeVarTuple

from baton_api.errors import BadRequest, Overloaded
from baton_api.openai import ChatRequest, CompletionRequest

from .legs import Prompt

Asked = ChatRequest | CompletionRequest
T = TypeVar("T")
Given = TypeVarTuple("Given")


class Reader(Protocol):
    """What turns a request into token ids."""

    def read(self, request: Asked, owner: bytes = b"") -> Sequence[int]:
        """`owner`: what is remembered of this text helps nobody else. Raises BadRequest."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Raises BadRequest for an id that is none."""


class Tokeniser:
    """`read` at most `max_waiting` prompts at a time on `threads` threads."""

    def __init__(self, reader: Reader, threads: int, max_waiting: int) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(threads, "tokenise")
        self._max_waiting = max_waiting
        self._waiting = 0

    def read_now(self, request: Asked, salt: bytes, block_sizes: Collection[int]) -> Prompt:
        """On this thread, for what takes less time than the way to another. Raises BadRequest."""
        return self._read(request, salt, block_sizes)

    async def read(self, request: Asked, salt: bytes, block_sizes: Collection[int]) -> Prompt:
        """Raises BadRequest, Overloaded."""
        return await self.elsewhere(self._read, request, salt, block_sizes)

    async def text(self, token_ids: Sequence[int]) -> str:
        """Raises BadRequest, Overloaded."""
        return await self.elsewhere(self._reader.text, token_ids)

    async def elsewhere(self, work: Callable[[*Given], T], *given: *Given) -> T:
        """`work(*given)` on one of the threads, in its turn. Raises Overloaded, and what `work` raises."""
        if self._waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._waiting} prompts wait for the tokeniser", code="rejected-saturated", retry_after_s=1.0
            )
        self._waiting += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
        running.add_done_callback(self._done)
        try:
            return await running
        finally:
            del running  # it has the error, the error this frame: a body of megabytes would wait for the collector

    def _read(self, request: Asked, salt: bytes, block_sizes: Collection[int]) -> Prompt:
        token_ids = self._reader.read(request, salt)
        if not token_ids:
            param = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise BadRequest("the prompt has no tokens; it needs at least one", param=param)
        prompt = Prompt(token_ids, salt)
        for block_tokens in block_sizes:
            prompt.digest(block_tokens)
        return prompt

    def _done(self, _: object) -> None:
        self._waiting -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
