"""From a job to two legs under way: route, send both at once, go elsewhere when a leg fails before its first byte."""

from __future__ import annotations

import logging
import time
from operator import attrgetter

from baton_api.errors import DeadlineExceeded, NoCapacity
from baton_api.routing import Refusal, Route, RouteRequest, View, WorkerView

from .attempt import Attempt, Failure, LegRequest
from .job import Job, Parts, check_context
from .legs import AnyPrompt, Handing, decode_body, prefill_body, ticket_for
from .pairs import bad_way
from .routing import pick
from .telemetry import label

log = logging.getLogger("baton.gateway")


async def first_answer(parts: Parts, job: Job) -> Attempt:
    """An attempt whose decode leg's head is there. Raises what the last route failed with."""
    parts.retries.earn()
    parts.resumes.earn()
    found = decide(parts, job)
    route = found if isinstance(found, Route) else await find_route(parts, job)
    job.timeline.lap("route", parts.now())
    return await try_routes(parts, job, route)


async def try_routes(parts: Parts, job: Job, route: Route) -> Attempt:
    """Begins with `route`; where a leg fails before its first byte, another one."""
    while True:
        attempt = send(parts, job, route)
        try:
            failure = await attempt.failure()
            if failure is None:
                # Not before: a leg that failed left nothing there, and a wrong guess would skip prefill.
                parts.index.record(job.prompt.keys(route.decode.info.block_tokens), route.decode.url)
                note_transfer(parts, route, attempt.head.headers.get("server-timing", ""))
                return attempt
            # Lest the other leg works for nobody while another route is waited for; a head may have to be passed on.
            if attempt.answer.head is None:
                give_up(parts, attempt)
            else:
                attempt.abort_prefill()
            again = await repick(parts, job, failure)
            if again is None:
                _ = attempt.head  # raises unless the worker's own answer can be passed on
                return attempt
        except BaseException as error:
            if isinstance(error, DeadlineExceeded):
                parts.registry.suspend(attempt.late, parts.now() + parts.settings.suspend_s)
            give_up(parts, attempt)
            raise
        finally:
            if job.asked.stream:
                parts.first_bytes.disarm(attempt)
        give_up(parts, attempt)
        job.timeline.lap("retry", parts.now())
        route = again


def give_up(parts: Parts, attempt: Attempt) -> None:
    parts.attempts.discard(attempt)
    attempt.abort()


async def find_route(parts: Parts, job: Job) -> Route:
    """Waits for a worker if need be, for at most the queue's time. Raises NoCapacity with the reason."""
    give_up_s = parts.now() + parts.settings.queue_ttl_s
    while True:
        found = decide(parts, job)
        if isinstance(found, Route):
            return found
        if parts.now() >= give_up_s:
            raise NoCapacity(found.message, code="rejected-no-endpoints", retry_after_s=found.retry_after_s)
        await parts.changes.wait(give_up_s - parts.now())
        check_context(parts.registry, job.asked, job.prompt)


def decide(parts: Parts, job: Job) -> Route | Refusal:
    """One decision of the routing brain on what is known now, counted, and logged with its candidates."""
    workers = parts.registry.routable()
    excluded = _failed_here(workers, job) if job.failures else _NOBODY
    request = RouteRequest(routed_tokens(workers, job.prompt), job.asked.model, excluded, job.revision)
    view = View(workers, held_blocks(parts, workers, job.prompt), parts.pairs.apart(parts.now()))
    found = pick(view, request, parts.now(), parts.policy)
    name = "baton_gateway_routes_total" if isinstance(found, Route) else "baton_gateway_refusals_total"
    parts.telemetry.count(name, found.reason)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("request %s: %s", job.id, said(found))
    return found


_NOBODY: frozenset[str] = frozenset()


def _failed_here(workers: tuple[WorkerView, ...], job: Job) -> frozenset[str]:
    """Workers that failed this request; one that has restarted since may be used, and one that was taken for lost: it
    would not be in sight if it had not answered since."""
    epochs = {worker.url: worker.info.epoch for worker in workers}
    failed = [failure.worker for failure in job.failures if failure.reason != "worker_lost"]
    return frozenset(worker.url for worker in failed if epochs.get(worker.url) == worker.info.epoch)


def said(found: Route | Refusal) -> str:
    """A decision in words: what was chosen, and every candidate with its score and reasons."""
    if isinstance(found, Refusal):
        return f"{found.reason}: {found.message}"
    chosen = [worker.url for worker in (found.decode, found.prefill) if worker is not None]
    candidates = [f"{c.url} {c.score:.3f} ({', '.join(c.reasons)})" for c in found.candidates]
    return f"{found.reason} -> {' + '.join(chosen)}; {'; '.join(candidates)}"


_CONTEXT = attrgetter("info.max_model_len")


def routed_tokens(workers: tuple[WorkerView, ...], prompt: AnyPrompt) -> int:
    """An estimated length never makes a prompt too long: only the worker knows."""
    if prompt.exact:
        return len(prompt)
    longest = min(map(_CONTEXT, workers), default=2) - 1
    return max(1, min(len(prompt), longest))


def held_blocks(parts: Parts, workers: tuple[WorkerView, ...], prompt: AnyPrompt) -> dict[str, int]:
    held: dict[str, int] = {}
    for block_tokens in parts.registry.block_sizes:
        urls = [worker.url for worker in workers if worker.info.block_tokens == block_tokens]
        for url, keys in parts.index.held(prompt.keys(block_tokens), urls).items():
            held[url] = prompt.blocks_of(keys, block_tokens)
    return held


async def repick(parts: Parts, job: Job, failure: Failure) -> Route | None:
    """Another route after a failure before the first byte. After a worker's death, or when the answer has begun, it is
    waited for, as the first one was."""
    note_failure(parts, failure)
    if not worth_another(parts, job, failure):
        return None
    try:
        found = await find_route(parts, job) if job.emitted or failure.died else decide(parts, job)
    except NoCapacity:
        return None  # what went wrong is the answer
    if isinstance(found, Refusal):
        return None
    parts.telemetry.count("baton_gateway_retries_total", failure.leg, label(failure.reason))
    log.info("request %s: %s leg on %s failed (%s); sent again", job.id, failure.leg, failure.url, failure.reason)
    return found


def worth_another(parts: Parts, job: Job, failure: Failure) -> bool:
    """Remembers the failure, and says whether the request may go elsewhere: a few times after workers that died, once
    per leg after any other failure, which the request may have caused; each within its budget."""
    alike = sum(earlier.leg == failure.leg and earlier.died == failure.died for earlier in job.failures)
    job.failures.append(failure)
    if failure.died:
        return alike < max(1, parts.settings.max_resumes) and parts.resumes.spend()
    return alike < 1 and parts.retries.spend()


def note_transfer(parts: Parts, route: Route, server_timing: str) -> None:
    """Decode has answered; what it says of the way that the KV came, or did not come."""
    bad = bad_way(server_timing, parts.settings.slow_transfer_s) if route.prefill is not None else None
    if route.prefill is not None and bad is not None:
        pair = (route.prefill.url, route.decode.url)
        if parts.pairs.told(pair, bad=bad, now_s=parts.now()):
            log.warning("KV from %s to %s: %s", *pair, "does not get through, other pairs first" if bad else "again")


def note_failure(parts: Parts, failure: Failure) -> None:
    if failure.reason == "connect_failed":
        parts.registry.refused_connection(failure.url)
    elif failure.reason == "draining":
        parts.registry.said_draining(failure.url)
    elif failure.reason not in ("status_429", "status_503", "worker_lost", "pool_full"):
        parts.registry.suspend(failure.url, parts.now() + parts.settings.suspend_s)


def send(parts: Parts, job: Job, route: Route) -> Attempt:
    """Both legs at once, under a transfer id of their own."""
    left_s = job.deadline_s - parts.now()
    transfer_id = parts.draw(16).hex()
    ticket = ticket_for(route, job.prompt, transfer_id, time.time() + left_s, parts.ticket_key)
    handing = Handing(transfer_id, left_s, parts.policy.on_prefill_failure, ticket)
    emitted = job.emitted if parts.settings.max_resumes else None
    to_decode = decode_body(job.fields, job.prompt, handing, emitted)
    decode = LegRequest(route.decode.url, job.path, to_decode, job.headers, len(job.prompt))
    prefill = None
    if route.prefill is not None:
        url, keys = route.prefill.url, job.prompt.keys(route.prefill.info.block_tokens)
        held_tokens = parts.index.held(keys, (url,)).get(url, 0) * route.prefill.info.block_tokens
        body = prefill_body(job.fields, job.prompt, handing)
        prefill = LegRequest(url, job.path, body, job.headers, len(job.prompt) - held_tokens)
        parts.index.record(keys, url)
        parts.pairs.tried((url, route.decode.url), parts.now())
    attempt = Attempt(parts.client, parts.registry, route, decode, prefill)
    parts.attempts.add(attempt)
    if job.asked.stream:
        # A stream's head comes with its first token, so it has a time of its own; that of a whole answer comes with its
        # last, when only the request's own deadline counts.
        parts.first_bytes.arm(attempt)
    return attempt
