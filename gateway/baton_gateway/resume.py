"""Which attempt leads: when its decode worker dies in the middle of an answer, another worker's takes its place."""

from __future__ import annotations

import logging

from baton_api.errors import BatonError

from .attempt import Attempt, Failure
from .dispatch import find_route, give_up, note_failure, try_routes, worth_another
from .job import Job, Parts
from .telemetry import label

log = logging.getLogger("baton.gateway")
# What breaks an answer off and need not happen on another worker, beside a worker's death.
_ELSEWHERE = frozenset({"stream_truncated", "bad_answer", "internal"})


class Leader:
    """The attempt that the client hears, and its successors. In the end `finish` or `give_up`."""

    def __init__(self, parts: Parts, job: Job, attempt: Attempt) -> None:
        self._parts = parts
        self._job = job
        self.attempt = attempt

    async def complete(self) -> bool:
        """Waits for the end of a whole answer; False when its worker died and another attempt has begun in its place.
        Raises what broke it off when nobody can."""
        answer = self.attempt.answer
        while not answer.ended:
            await answer
        if answer.error is None:
            return True
        await self.replace(answer.error, "")
        return False

    async def replace(self, error: BatonError, emitted: str | None) -> None:
        """Another worker goes on after `emitted`, what the client has already (None: not known). Raises `error` when
        that cannot be: nothing is left to try, or another worker would not help."""
        since_s = self._parts.now()
        failure = self.attempt.decode_failure(error)
        outcome = "given_up"  # by the client or the deadline
        try:
            outcome = await self._replace(failure, emitted)
        except BatonError as later:
            outcome = "nobody_left"
            log.info("request %s: could not go on elsewhere: %s", self._job.id, later.message)
        finally:
            self._parts.telemetry.count("baton_gateway_resumes_total", label(failure.reason), outcome)
        if outcome != "resumed":
            raise error
        gap_s = self._parts.now() - since_s
        self._parts.telemetry.observe("baton_gateway_resume_seconds", gap_s)
        log.info("request %s: %s failed (%s); goes on elsewhere", self._job.id, failure.url, failure.reason)

    async def _replace(self, failure: Failure, emitted: str | None) -> str:
        parts, job = self._parts, self._job
        helps = failure.died or failure.reason in _ELSEWHERE
        if emitted is None or not helps or not parts.settings.max_resumes:
            return "not_resumable"
        note_failure(parts, failure)
        if not worth_another(parts, job, failure):
            return "out_of_budget"
        give_up(parts, self.attempt)
        job.emitted, job.revision = emitted, self.attempt.route.decode.info.revision
        attempt = await try_routes(parts, job, await find_route(parts, job))
        if attempt.head.status != 200:
            give_up(parts, attempt)
            return "refused"
        self.attempt = attempt
        return "resumed"

    def finish(self) -> None:
        """The answer is complete."""
        self._parts.attempts.discard(self.attempt)
        self.attempt.finish()

    def give_up(self) -> None:
        give_up(self._parts, self.attempt)
