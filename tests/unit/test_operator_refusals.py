"""When a refused write is tried again, and whose an object is."""

from __future__ import annotations

from typing import Any

import pytest

from baton_api.errors import KubernetesError
from baton_operator.outcome import is_of_old_crds, is_permanent, stamp
from baton_operator.refusals import Refusals, Repeats
from baton_operator.snapshot import is_ours

PLACE = ("Service", "ns", "m")
NO = KubernetesError("HTTP 403: exceeded quota", status=403, code="Forbidden")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_same_wish_waits_longer_each_time_up_to_five_minutes() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    waits = []
    for _ in range(6):
        assert refusals.standing(PLACE, "a") is None
        waits.append(refusals.add(PLACE, "a", NO))
        clock.now_s += waits[-1] - 1
        assert refusals.standing(PLACE, "a") == (NO, 1.0)
        clock.now_s += 1
    assert waits == [30, 60, 120, 240, 300, 300]


def test_another_wish_is_tried_at_once_and_begins_anew() -> None:
    refusals = Refusals(Clock())
    refusals.add(PLACE, "a", NO)
    refusals.add(PLACE, "a", NO)
    assert refusals.standing(PLACE, "b") is None
    assert refusals.add(PLACE, "b", NO) == 30
    refusals.forget(PLACE)
    assert refusals.standing(PLACE, "b") is None


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    refusals.add(PLACE, "a", NO)
    clock.now_s = 1000.0
    refusals.add(("Service", "ns", "other"), "a", NO)
    assert len(refusals) == 1


def test_a_model_is_another_when_spec_or_annotations_change_not_when_its_status_is_written() -> None:
    metadata = {"generation": 1, "resourceVersion": "5", "annotations": {"a": "b"}}
    before = stamp({"metadata": metadata})
    assert stamp({"metadata": metadata | {"resourceVersion": "6"}}) == before
    assert stamp({"metadata": metadata | {"generation": 2}}) != before
    assert stamp({"metadata": metadata | {"annotations": {}}}) != before


LABEL = {"app.kubernetes.io/managed-by": "baton-operator"}


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({}, False),
        ({"ownerReferences": [{"uid": "u1"}]}, True),
        ({"ownerReferences": [{"uid": "u2"}]}, False),
        ({"labels": LABEL}, False),
        ({"managedFields": [{"manager": "baton-operator"}]}, False),
        ({"labels": LABEL, "managedFields": [{"manager": "helm"}]}, False),
        ({"labels": LABEL, "managedFields": [{"manager": "helm"}, {"manager": "baton-operator"}]}, True),
    ],
)
def test_whose_an_object_is(metadata: dict[str, Any], ours: bool) -> None:
    assert is_ours({"metadata": metadata}, "u1") == ours


@pytest.mark.parametrize(
    ("status", "message", "permanent", "old_crds"),
    [
        (500, "failed to create typed patch object: .status.x: field not declared in schema", True, True),
        (422, 'status.reason: Unsupported value: "NameTaken"', True, True),
        (403, "is forbidden", True, False),
        (500, "failed calling webhook", False, False),
        (409, "the object has been modified", False, False),
    ],
)
def test_what_a_refusal_means(status: int, message: str, permanent: bool, old_crds: bool) -> None:
    error = KubernetesError(message, status=status)
    assert (is_permanent(error), is_of_old_crds(error)) == (permanent, old_crds)


def test_a_write_that_is_repeated_too_often_is_noticed_and_forgiven() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0], most=3, within_s=60.0)
    for _ in range(3):
        assert not repeats.too_many(PLACE, "wish")
        repeats.add(PLACE, "wish")
        now[0] += 10.0
    assert repeats.too_many(PLACE, "wish")
    assert not repeats.too_many(PLACE, "another wish") and not repeats.too_many(("Pod", "ns", "b"), "wish")
    now[0] = 61.0
    assert not repeats.too_many(PLACE, "wish")
