"""One try at answering a request: both legs under way on one route, and what went wrong, if it did."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, NamedTuple

from baton_api.errors import BatonError, DeadlineExceeded, WorkerProtocolError
from baton_api.routing import Route, WorkerView
from baton_wire.http_client import HttpClient, RelayHandle

from .events import StreamTail
from .registry import Booking, Registry
from .relay import Answer, Head

# A prefill worker that says so took nothing on. Any other failure of it reaches decode through the KV session, which
# then recomputes or fails as the policy says.
LINGER_S = 1.0
_NOT_TAKEN = frozenset({429, 503})
_GOING = frozenset({"draining", "engine_failing"})
_DEATHS = frozenset({"connect_failed", "connection_lost", "worker_lost", *_GOING})
_WORTH_ANOTHER = frozenset({429, 500, 502, 503})


class LegRequest(NamedTuple):
    """`tokens` is the load it books on its worker."""

    url: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A leg failed in a way that another worker may not."""

    leg: Literal["prefill", "decode"]
    worker: WorkerView
    reason: str
    error: BatonError

    @property
    def url(self) -> str:
        return self.worker.url

    @property
    def died(self) -> bool:
        """The worker is gone or going: nothing that this request did."""
        return self.reason in _DEATHS


class Attempt:
    """Sends both legs at once on construction. In the end `finish`, or `abort`, which breaks off what still runs."""

    __slots__ = (
        "_load", "_prefill", "_prefill_failure", "_prefill_load", "_prefill_running", "answer", "decode", "route"
    )  # fmt: skip

    def __init__(
        self, client: HttpClient, registry: Registry, route: Route, decode: LegRequest, prefill: LegRequest | None
    ) -> None:
        self.route = route
        self.answer = Answer()
        self._prefill_failure: Failure | None = None
        self._prefill_running = prefill is not None
        self._prefill: RelayHandle | None = None
        self._prefill_load: Booking | None = None
        if prefill is not None:
            self._prefill_load = registry.load(prefill.url, prefill.tokens)
            self._prefill = _send(client, prefill, Answer(self._prefill_ended))
        self._load = registry.load(decode.url, decode.tokens)
        self.decode = _send(client, decode, self.answer)

    @property
    def head(self) -> Head:
        """The decode leg's; only after `failure` returned."""
        if self.answer.head is None:
            raise self.answer.error or WorkerProtocolError("no answer came", code="bad_answer")
        return self.answer.head

    async def failure(self) -> Failure | None:
        """Waits for the decode leg's head; None when there is an answer to pass on.

        Raises DeadlineExceeded when `expire` was called before. Aborts when cancelled.
        """
        answer = self.answer
        try:
            while answer.head is None and answer.error is None:
                await answer
        except BaseException:
            self.abort()
            raise
        if answer.head is not None:
            return self._refusal(answer.head) if answer.head.status != 200 else None
        assert answer.error is not None
        if isinstance(answer.error, DeadlineExceeded):
            self.abort()
            raise answer.error
        return self._prefill_failure or self.decode_failure(answer.error)

    @property
    def late(self) -> str:
        """The worker that no first token came from: decode's has nothing to go on from while prefill computes."""
        prefill = self.route.prefill
        return prefill.url if prefill is not None and self._prefill_running else self.route.decode.url

    def pour(self, tail: StreamTail) -> None:
        """The decode leg's bytes go to `tail` from now on, without a detour: every chunk comes this way."""
        tail.failed = self.answer.on_error
        self.decode.on_data = tail.pour
        self.answer.pour(tail.pour)

    def expire(self, after_s: float) -> None:
        """No head came in time."""
        if self.answer.head is None:
            error = DeadlineExceeded(f"no first token in {after_s:g} s", code="first_byte_timeout")
            self.answer.on_error(error)

    def _refusal(self, head: Head) -> Failure | None:
        if head.status in (401, 403):
            error = WorkerProtocolError("a worker refused this gateway's key", code="worker_key_refused")
            self.answer.head, self.answer.error = None, error
            return self.decode_failure(error)
        if head.status not in _WORTH_ANOTHER:
            return None
        return self.decode_failure(WorkerProtocolError(f"the worker answered {head.status}", code=refusal(head)))

    def decode_failure(self, error: BatonError) -> Failure:
        return Failure("decode", self.route.decode, error.code or error.reason, error)

    def _prefill_ended(self, prefill: Answer) -> None:
        """Frees its booked load, and stops the decode leg's wait when prefill never took the request on."""
        self._prefill_running = False
        self._free_prefill()
        if prefill.head is not None and prefill.head.status in _NOT_TAKEN:
            answered = f"prefill answered {prefill.head.status}"
            self._prefill_failed(WorkerProtocolError(answered, code=refusal(prefill.head)))
        elif prefill.error is not None and prefill.error.code == "connect_failed":
            self._prefill_failed(prefill.error)

    def _prefill_failed(self, error: BatonError) -> None:
        assert self.route.prefill is not None
        if self.answer.head is None and self.answer.error is None:
            self._prefill_failure = Failure("prefill", self.route.prefill, error.code or error.reason, error)
            self.answer.on_error(error)

    def worker_lost(self, url: str) -> None:
        """Its heartbeats stopped, or say that its engine is stuck: its sockets stay open, so no leg would ever hear of
        it."""
        error = WorkerProtocolError("the worker was lost", code="worker_lost")
        if url == self.route.decode.url:
            self.answer.on_error(error)
        elif self.route.prefill is not None and url == self.route.prefill.url and self._prefill_running:
            self._prefill_failed(error)

    def finish(self) -> None:
        """The answer is complete. A prefill leg still saying that it ended may do so: its connection stays in use."""
        self._load.close()
        if self._prefill_running:
            asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        self.decode.abort()
        self._load.close()
        self.abort_prefill()

    def abort_prefill(self) -> None:
        if self._prefill is not None:
            self._prefill.abort()
        self._free_prefill()

    def _free_prefill(self) -> None:
        if self._prefill_load is not None:
            self._prefill_load.close()


def refusal(head: Head) -> str:
    """Why a worker did not take a request on. One that is going, or whose device fails, says so: that is nothing that
    the request did, and costs no retry."""
    reason = head.headers.get("x-request-dropped-reason", "")
    return reason if head.status == 503 and reason in _GOING else f"status_{head.status}"


def _send(client: HttpClient, leg: LegRequest, sink: Answer) -> RelayHandle:
    return client.relay("POST", leg.url + leg.path, body=leg.body, headers=leg.headers, sink=sink)
