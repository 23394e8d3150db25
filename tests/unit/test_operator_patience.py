"""Which news of a Model waits for more."""

from __future__ import annotations

from typing import Any

import pytest

from baton_operator import kinds
from baton_operator.patience import Patience, is_urgent

KEY = ("ns", "m")
Json = dict[str, Any]


def status(**conditions: bool) -> Json:
    return {"conditions": [{"type": kind, "status": "True" if so else "False"} for kind, so in conditions.items()]}


MOVING = status(Ready=True, Degraded=False, Reconciling=True)


@pytest.mark.parametrize(
    ("before", "after", "urgent"),
    [
        ({}, status(Ready=False, Reconciling=True), False),
        ({}, status(Ready=True, Reconciling=True), True),
        (MOVING, status(Ready=True, Degraded=False), True),
        (status(Ready=True, Degraded=False), MOVING, False),
        (MOVING, status(Ready=False, Degraded=False, Reconciling=True), True),
        (MOVING, status(Ready=True, Degraded=True, Reconciling=True), True),
        (MOVING, status(Ready=True, Degraded=False, Reconciling=True, Stalled=True), True),
        (MOVING, {**MOVING, "prefill": {"ready": 2}}, False),
        (status(Ready=True), {**status(Ready=True), "replicas": 2}, False),
    ],
)
def test_rest_and_turns_are_told_at_once(before: Json, after: Json, urgent: bool) -> None:
    assert is_urgent({"status": before}, after) is urgent


@pytest.mark.parametrize(("reason", "urgent"), [("Scaling", False), ("RollingOut", False), ("WorkersCrashing", True)])
def test_a_pool_that_is_not_ready_for_being_scaled_is_progress(reason: str, urgent: bool) -> None:
    before, after = status(Ready=True), status(Ready=False, Reconciling=True)
    after["conditions"][0]["reason"] = reason
    assert is_urgent({"status": before}, after) is urgent


def test_progress_is_held_back_once_and_then_told_as_it_is_by_then() -> None:
    now = [100.0]
    patience = Patience(5.0, 10.0, lambda: now[0])
    raw: Json = {"metadata": {"namespace": "ns", "name": "m"}, "status": MOVING}

    def left(ready: int) -> float | None:
        return patience.left(KEY, kinds.MODEL, raw, {**MOVING, "ready": ready})

    assert patience.left(KEY, kinds.MODEL, raw, MOVING) is None
    assert left(1) == 5.0
    now[0] = 103.0
    assert left(2) == 2.0
    now[0] = 105.0
    assert left(3) == 0.0
    assert left(4) == 5.0  # the next wait begins
    assert patience.left(KEY, kinds.MODEL, raw, MOVING) is None
    now[0] = 109.0
    assert left(5) == 5.0  # what was held back had become untrue
    assert patience.left(KEY, kinds.MODEL, raw, status(Ready=False)) == 0.0


def test_a_model_that_is_gone_is_waited_for_no_longer() -> None:
    now = [0.0]
    patience = Patience(5.0, 10.0, lambda: now[0])
    raw: Json = {"metadata": {"namespace": "ns", "name": "m"}}
    assert patience.left(KEY, kinds.MODEL, raw, MOVING) == 0.0
    calm = status(Ready=False, Reconciling=True)
    assert patience.left(KEY, kinds.MODEL, raw, calm) == 5.0
    patience.forget(KEY)
    now[0] = 4.0
    assert patience.left(KEY, kinds.MODEL, raw, calm) == 5.0


def test_progress_of_many_is_told_so_often_and_rest_at_once() -> None:
    """Fifty Models move for a minute: all of them have been told of, none of them often."""
    now, told = [0.0], dict.fromkeys(range(50), 0)
    patience = Patience(5.0, 2.0, lambda: now[0])
    due = dict.fromkeys(told, 0.0)
    while now[0] < 60.0:
        for model, due_s in due.items():
            if due_s > now[0]:
                continue
            raw: Json = {"metadata": {"namespace": "ns", "name": str(model)}, "status": MOVING}
            left_s = patience.left(("ns", str(model)), kinds.MODEL, raw, {**MOVING, "at": now[0]})
            assert left_s is not None
            told[model] += left_s == 0.0
            due[model] = now[0] + (left_s or 0.1)
            at_rest = patience.left(("ns", f"rest-{model}"), kinds.MODEL, raw, status(Ready=True, Degraded=False))
            assert at_rest == 0.0
        now[0] += 0.1
    assert sum(told.values()) <= 2 * 60
    assert min(told.values()) >= 1 and max(told.values()) <= 5
