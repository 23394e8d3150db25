"""The routing brain: filter, score in [0, 1], pick. Pure.

Decode is chosen by free room and by the prefix it already holds; prefill by how many tokens it would have to compute
before this prompt's first one (its backlog here plus what it does not hold), the estimate of time to first token that
needs no calibration. Ties go to the smaller worker id, so that a decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from baton_api.handoff import OnPrefillFailure
from baton_api.routing import Candidate, Refusal, Route, RouteRequest, View, WorkerView
from baton_api.worker import Role, WorkerInfo

Mode = Literal["auto", "disaggregated", "aggregated"]

WAITING_TOKENS = 512
"""A request that waits on a prefill worker and is not ours counts as so many tokens of backlog."""
BUSY_REQUESTS = 16
"""With so many requests a decode worker counts as half loaded."""
OVERLAP_WEIGHT = 0.3
"""Of a decode worker's score. Low: with a remote prefill an overlap there saves transfer, not compute."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`auto` uses a prefill worker when there is one; `disaggregated` is not ready without. With
    `on_prefill_failure` "fail" decode never prefills a long prompt. A prompt of which a decode worker lacks fewer
    than `min_remote_prefill_tokens` is prefilled there: the round trip would cost more."""

    mode: Mode = "auto"
    on_prefill_failure: OnPrefillFailure = "recompute"
    min_remote_prefill_tokens: int = 32


Scored = tuple[float, str, str, WorkerView, Candidate]
"""Sorts by itself: the best score first, ties by worker id, then url (no two alike)."""


def pick(view: View, request: RouteRequest, now_s: float, policy: Policy) -> Route | Refusal:
    """The pair for `request`, or why there is none. `now_s` is on the clock of `suspended_until_s`."""
    decodes, out = _usable(view, Role.DECODE, request, now_s)
    if not decodes:
        return _no_decode(view, request)
    ranked = sorted([_score_decode(view, request, worker) for worker in decodes])
    best = ranked[0][3]
    if policy.mode == "aggregated":
        return Route(best, None, "aggregated", (*[scored[-1] for scored in ranked], *out))
    prefills, prefills_out = _usable(view, Role.PREFILL, request, now_s)
    sources = sorted([_score_prefill(view, request, worker) for worker in prefills]) if prefills else []
    candidates = (*[scored[-1] for scored in ranked + sources], *out, *prefills_out)
    if request.num_tokens - _held_tokens(view, request, best) < policy.min_remote_prefill_tokens:
        reason = "short" if request.num_tokens < policy.min_remote_prefill_tokens else "cached_on_decode"
        return Route(best, None, reason, candidates)
    pair = _best_pair(ranked, sources, view.apart)
    if pair is not None:
        return Route(pair[0], pair[1], "disaggregated", candidates)
    doubtful = _best_pair(ranked, sources, frozenset())
    if policy.on_prefill_failure == "recompute":
        return Route(best, None, "no_prefill_worker" if doubtful is None else "pairs_apart", candidates)
    if doubtful is not None:
        return Route(doubtful[0], doubtful[1], "disaggregated", candidates)
    return Refusal("no_prefill_worker", "no prefill worker that fits a decode worker is ready", 1.0)


def _usable(view: View, role: Role, request: RouteRequest, now_s: float) -> tuple[list[WorkerView], list[Candidate]]:
    """Workers of a role that may serve, and why the others may not. When all that are left are suspended they are
    used all the same: a doubtful worker beats none (Envoy's panic mode)."""
    usable: list[WorkerView] = []
    suspended: list[WorkerView] = []
    out: list[Candidate] = []
    for worker in view.workers:
        if worker.info.role is not role:
            continue
        why = _unfit(worker, request)
        if why is not None:
            out.append(Candidate(worker.url, 0.0, (), why))
        elif worker.suspended_until_s > now_s:
            suspended.append(worker)
        else:
            usable.append(worker)
    if not usable:
        return suspended, out
    if suspended:
        out += [Candidate(worker.url, 0.0, (), "suspended") for worker in suspended]
    return usable, out


def _unfit(worker: WorkerView, request: RouteRequest) -> str | None:
    info = worker.info
    if worker.url in request.excluded:
        return "tried already"
    if info.model != request.model:
        return "other model"
    if request.revision is not None and info.revision != request.revision:
        return "other revision"
    if not info.ready or info.draining:
        return "not ready"
    if request.num_tokens >= info.max_model_len:
        return f"context {info.max_model_len}"
    return None


def _no_decode(view: View, request: RouteRequest) -> Refusal:
    if any(worker.url in request.excluded for worker in view.of(Role.DECODE)):
        return Refusal("no_decode_left", "every ready decode worker was tried", 1.0)
    return Refusal("no_decode_worker", "no decode worker is ready", 1.0)


def _held_tokens(view: View, request: RouteRequest, worker: WorkerView) -> int:
    blocks = view.held_blocks.get(worker.url)
    return min(blocks * worker.info.block_tokens, request.num_tokens) if blocks else 0


def _score_decode(view: View, request: RouteRequest, worker: WorkerView) -> Scored:
    reported = worker.info.load
    requests = max(worker.in_flight, reported.running + reported.waiting)
    load = max(reported.kv_usage, requests / (requests + BUSY_REQUESTS))
    overlap = _held_tokens(view, request, worker) / request.num_tokens
    score = (1 - OVERLAP_WEIGHT) * (1 - load) + OVERLAP_WEIGHT * overlap
    candidate = Candidate(worker.url, score, (("load", load), ("overlap", overlap)))
    return -score, worker.info.worker_id, worker.url, worker, candidate


def _score_prefill(view: View, request: RouteRequest, worker: WorkerView) -> Scored:
    backlog = max(worker.in_flight_tokens, worker.info.load.waiting * WAITING_TOKENS)
    missing = request.num_tokens - _held_tokens(view, request, worker)
    score = request.num_tokens / (request.num_tokens + backlog + missing)
    candidate = Candidate(worker.url, score, (("backlog", backlog), ("missing", missing)))
    return -score, worker.info.worker_id, worker.url, worker, candidate


def _best_pair(
    decodes: Iterable[Scored], prefills: list[Scored], apart: frozenset[tuple[str, str]]
) -> tuple[WorkerView, WorkerView] | None:
    """The best decode worker that has a partner which is not `apart` from it, with the best of its partners."""
    for *_, decode, _ in decodes:
        for *_, prefill, _ in prefills:
            if may_pair(prefill.info, decode.info) and (prefill.url, decode.url) not in apart:
                return decode, prefill
    return None


def may_pair(prefill: WorkerInfo, decode: WorkerInfo) -> bool:
    """Of one layout (invariant I4) and of one revision: in a rollout old and new never share a request."""
    return (prefill.fingerprint, prefill.revision) == (decode.fingerprint, decode.revision)
