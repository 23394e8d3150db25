"""One leg's answer as it arrives: first its head, then its bytes, poured where the flow says."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from baton_api.errors import BatonError, WorkerProtocolError

from .strand import Signal


class Head(NamedTuple):
    """Header names are lower case."""

    status: int
    headers: dict[str, str]


class Answer(Signal):
    """A RelaySink, and the signal of its news. What comes between the head and `pour` is kept: the rest of one read.

    `on_finish` is called once, when the answer has ended or failed.
    """

    __slots__ = ("_kept", "_on_finish", "_take", "ended", "error", "head")

    def __init__(self, on_finish: Callable[[Answer], None] | None = None) -> None:
        self._strand = None
        self._kept: list[bytes] = []
        self._take: Callable[[bytes], object] = self._kept.append
        self._on_finish = on_finish
        self.ended = False
        self.head: Head | None = None
        self.error: BatonError | None = None

    async def finished(self) -> None:
        """Returns at the end of the answer. Raises the BatonError that broke it off."""
        while not self.ended:
            await self
        if self.error is not None:
            raise self.error

    def pour(self, take: Callable[[bytes], object]) -> None:
        """From now on every read goes to `take`; if that raises a BatonError the answer has failed with it."""
        kept, self._kept, self._take = self._kept, [], take
        for data in kept:
            self.on_data(data)

    def collect(self, max_bytes: int) -> list[bytes]:
        """The body, complete when the answer has ended without an error; WorkerProtocolError when it is larger."""
        body: list[bytes] = []
        left = max_bytes

        def take(data: bytes) -> None:
            nonlocal left
            left -= len(data)
            if left < 0:
                raise WorkerProtocolError(f"the answer exceeds {max_bytes} bytes", code="answer_too_large")
            body.append(data)

        self.pour(take)
        return body

    # RelaySink

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        if self.head is None and not self.ended:
            self.head = Head(status, headers)
            self.wake()

    def on_data(self, data: bytes) -> None:
        if self.error is None:
            try:
                self._take(data)
            except BatonError as error:
                self.error = error  # even if the end has come already: it is read late
                self._finish()

    def on_end(self) -> None:
        if self.head is None and self.error is None:
            self.error = WorkerProtocolError("the answer ended before its head", code="bad_answer")
        self._finish()

    def on_error(self, error: BatonError) -> None:
        """Also called by the flow, when it learns by other means that nothing more will come."""
        if not self.ended:
            self.error = error
            self._finish()

    def _finish(self) -> None:
        self.ended = True
        finish, self._on_finish = self._on_finish, None
        if finish is not None:
            finish(self)
        self.wake()
