"""The routing brain, as tables: who is picked, and why."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.routing import Refusal, Route, RouteRequest, View, WorkerView
from baton_api.worker import Role, WorkerInfo, WorkerLoad
from baton_gateway.routing import Policy, may_pair, pick


def worker(worker_id: str, *, load: WorkerLoad | None = None, view: dict[str, Any] | None = None, **info: Any) -> Any:
    role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
    base = WorkerInfo(worker_id, role, "e", "m", "r", "f", "h:1", "tcp", 16, 4096, True, False, load or WorkerLoad())
    return WorkerView(f"http://{worker_id}", replace(base, **info), **(view or {}))


P0, P1, D0, D1 = (worker(name) for name in ("p0", "p1", "d0", "d1"))


def picked(
    *workers: WorkerView,
    tokens: int = 320,
    held: dict[str, int] | None = None,
    excluded: tuple[str, ...] = (),
    apart: tuple[tuple[str, str], ...] = (),
    **policy: Any,
) -> tuple[str | None, str | None, str]:
    """(decode, prefill, reason)"""
    view = View(workers, {f"http://{name}": blocks for name, blocks in (held or {}).items()}, urls(apart))
    request = RouteRequest(tokens, "m", frozenset(f"http://{name}" for name in excluded))
    found = pick(view, request, 100.0, Policy(**policy))
    if isinstance(found, Refusal):
        return None, None, found.reason
    return found.decode.info.worker_id, found.prefill.info.worker_id if found.prefill else None, found.reason


def urls(pairs: tuple[tuple[str, str], ...]) -> frozenset[tuple[str, str]]:
    return frozenset((f"http://{prefill}", f"http://{decode}") for prefill, decode in pairs)


FULL = worker("d0", load=WorkerLoad(kv_usage=0.9))
busy = {"in_flight": 8, "in_flight_tokens": 4000}
suspended = {"suspended_until_s": 101.0}
over = {"suspended_until_s": 99.0}

TABLE: list[tuple[str, tuple[WorkerView, ...], dict[str, Any], tuple[str | None, str | None, str]]] = [
    ("a pair", (P0, D0), {}, ("d0", "p0", "disaggregated")),
    ("a pair with no way between is avoided", (P0, D0, D1), {"apart": (("p0", "d0"),)}, ("d1", "p0", "disaggregated")),
    (
        "another prefill for the same decode",
        (P0, P1, D0),
        {"apart": (("p0", "d0"),)},
        ("d0", "p1", "disaggregated"),
    ),
    ("all pairs apart: decode serves by itself", (P0, D0), {"apart": (("p0", "d0"),)}, ("d0", None, "pairs_apart")),
    (
        "all pairs apart, and decode may not prefill: a doubtful pair beats none",
        (P0, D0),
        {"apart": (("p0", "d0"),), "on_prefill_failure": "fail"},
        ("d0", "p0", "disaggregated"),
    ),
    ("ties go to the smaller id", (P1, P0, D1, D0), {}, ("d0", "p0", "disaggregated")),
    ("an idle decode beats a busy one", (P0, worker("d0", view=busy), D1), {}, ("d1", "p0", "disaggregated")),
    (
        "what a worker says of its load counts as well",
        (P0, worker("d0", load=WorkerLoad(running=4, waiting=9)), D1),
        {},
        ("d1", "p0", "disaggregated"),
    ),
    (
        "a full decode is avoided",
        (worker("d0", load=WorkerLoad(kv_usage=0.9)), D1),
        {},
        ("d1", None, "no_prefill_worker"),
    ),
    ("an idle prefill beats one with a backlog", (worker("p0", view=busy), P1, D0), {}, ("d0", "p1", "disaggregated")),
    (
        "others' queue on a prefill worker counts as backlog",
        (worker("p0", load=WorkerLoad(waiting=3)), P1, D0),
        {},
        ("d0", "p1", "disaggregated"),
    ),
    ("the prefix decides between idle prefills", (P0, P1, D0), {"held": {"p1": 10}}, ("d0", "p1", "disaggregated")),
    (
        "a long backlog outweighs a prefix",
        (P0, worker("p1", view=busy), D0),
        {"held": {"p1": 10}},
        ("d0", "p0", "disaggregated"),
    ),
    ("the prefix decides between idle decodes", (P0, D0, D1), {"held": {"d1": 10}}, ("d1", "p0", "disaggregated")),
    ("a short prompt stays on decode", (P0, D0), {"tokens": 31}, ("d0", None, "short")),
    ("a prompt of the limit does not", (P0, D0), {"tokens": 32}, ("d0", "p0", "disaggregated")),
    ("nor does a cached one travel", (P0, D0), {"held": {"d0": 19}}, ("d0", None, "cached_on_decode")),
    (
        "held blocks beyond the prompt are no more than it",
        (P0, D0),
        {"held": {"d0": 99}},
        ("d0", None, "cached_on_decode"),
    ),
    ("the limit is a setting", (P0, D0), {"tokens": 5, "min_remote_prefill_tokens": 0}, ("d0", "p0", "disaggregated")),
    ("aggregated never uses prefill", (P0, D0), {"mode": "aggregated"}, ("d0", None, "aggregated")),
    ("without prefill decode does both", (D0,), {}, ("d0", None, "no_prefill_worker")),
    ("unless that is forbidden", (D0,), {"on_prefill_failure": "fail"}, (None, None, "no_prefill_worker")),
    (
        "even then a short prompt is served",
        (D0,),
        {"on_prefill_failure": "fail", "tokens": 5},
        ("d0", None, "short"),
    ),
    ("only equal revisions pair", (worker("p0", revision="2"), P1, D0), {}, ("d0", "p1", "disaggregated")),
    (
        "a revision without a partner is left to the one that has one",
        (P0, worker("d0", revision="2"), worker("d1", view=busy)),
        {},
        ("d1", "p0", "disaggregated"),
    ),
    ("no pair across revisions", (worker("p0", revision="2"), D0), {}, ("d0", None, "no_prefill_worker")),
    ("only equal layouts pair", (worker("p0", fingerprint="g"), P1, D0), {}, ("d0", "p1", "disaggregated")),
    (
        "a decode with a partner beats a better one without",
        (P0, worker("d0", fingerprint="g"), worker("d1", view=busy)),
        {},
        ("d1", "p0", "disaggregated"),
    ),
    ("without a partner there is none", (worker("p0", fingerprint="g"), D0), {}, ("d0", None, "no_prefill_worker")),
    ("other models do not serve", (worker("d0", model="x"),), {}, (None, None, "no_decode_worker")),
    ("nor workers that are not ready", (worker("d0", ready=False), D1), {}, ("d1", None, "no_prefill_worker")),
    ("nor draining ones", (worker("p0", draining=True), D0), {}, ("d0", None, "no_prefill_worker")),
    (
        "nor one whose context is too small",
        (worker("d0", max_model_len=320), D1),
        {},
        ("d1", None, "no_prefill_worker"),
    ),
    ("an excluded decode is not tried again", (P0, D0, D1), {"excluded": ("d0",)}, ("d1", "p0", "disaggregated")),
    ("an excluded prefill neither", (P0, P1, D0), {"excluded": ("p0",)}, ("d0", "p1", "disaggregated")),
    ("when all were tried it says so", (P0, D0), {"excluded": ("d0",)}, (None, None, "no_decode_left")),
    ("a suspended worker is passed over", (P0, worker("d0", view=suspended), D1), {}, ("d1", "p0", "disaggregated")),
    ("until its time is over", (P0, worker("d0", view=over), D1), {}, ("d0", "p0", "disaggregated")),
    ("a suspended worker beats none", (P0, worker("d0", view=suspended)), {}, ("d0", "p0", "disaggregated")),
    ("nobody is nobody", (), {}, (None, None, "no_decode_worker")),
    ("prefill alone cannot serve", (P0,), {}, (None, None, "no_decode_worker")),
]


@pytest.mark.parametrize(("workers", "given_", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_route_is_picked(workers: tuple[WorkerView, ...], given_: dict[str, Any], expected: Any) -> None:
    assert picked(*workers, **given_) == expected


def test_every_worker_is_a_candidate_with_its_reasons() -> None:
    workers = (P0, D0, worker("d1", view=suspended), worker("d2", model="x"), worker("d3", max_model_len=10))
    found = pick(View(workers, {"http://p0": 2}), RouteRequest(320, "m", frozenset()), 100.0, Policy())
    assert isinstance(found, Route)
    said = {candidate.url.removeprefix("http://"): candidate for candidate in found.candidates}
    assert said["p0"].reasons == ("backlog 0", "missing 288") and said["d0"].reasons == ("load 0.00", "overlap 0.00")
    assert said["d1"].reasons == ("suspended",) and said["d2"].reasons == ("other model",)
    assert said["d3"].reasons == ("context 10",)
    assert all(0 <= candidate.score <= 1 for candidate in found.candidates)


LOADS = st.builds(
    WorkerLoad, running=st.integers(0, 99), waiting=st.integers(0, 99), kv_usage=st.floats(0, 1, allow_nan=False)
)
WORKERS = st.lists(
    st.tuples(
        st.sampled_from(["p", "d"]),
        LOADS,
        st.sampled_from(["fr", "gr", "fs"]),
        st.booleans(),
        st.integers(0, 50),
        st.floats(0, 200),
    ),
    max_size=6,
)


@given(WORKERS, st.integers(1, 5000), st.data())
def test_whatever_the_fleet_a_route_is_sound_and_does_not_depend_on_the_order(
    fleet: list[Any], tokens: int, data: st.DataObject
) -> None:
    workers = [
        worker(
            f"{role}{number}",
            load=load,
            fingerprint=kind[0],
            revision=kind[1],
            draining=draining,
            view={"in_flight": in_flight, "in_flight_tokens": in_flight * 10, "suspended_until_s": until_s},
        )
        for number, (role, load, kind, draining, in_flight, until_s) in enumerate(fleet)
    ]
    held = {one.url: data.draw(st.integers(0, 300)) for one in workers}
    request = RouteRequest(tokens, "m", frozenset())
    found = pick(View(tuple(workers), held), request, 100.0, Policy())
    shuffled = data.draw(st.permutations(workers))
    again = pick(View(tuple(shuffled), held), request, 100.0, Policy())
    if isinstance(found, Refusal):
        assert isinstance(again, Refusal) and again.reason == found.reason
        return
    assert isinstance(again, Route) and (again.decode, again.prefill, again.reason) == (
        found.decode,
        found.prefill,
        found.reason,
    )
    for one in (found.decode, found.prefill):
        assert one is None or (not one.info.draining and one.info.max_model_len > tokens)
    assert found.prefill is None or may_pair(found.prefill.info, found.decode.info)
    assert {candidate.url for candidate in found.candidates} == {one.url for one in workers}
