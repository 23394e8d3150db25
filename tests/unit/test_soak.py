"""The soak's arithmetic: lines that outliers do not bend, incarnations told apart, leaks that cannot hide."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from soak.rows import rows_of, steady
from soak.soak import Plan, Result
from soak.trend import trend
from soak.vitals import Vitals

AT_REST = Vitals(pid=1, rss_mib=100.0, fds=20, threads=8, tasks=5)


def test_a_trend_is_the_slope_that_most_pairs_have() -> None:
    points = [(float(second), 100.0 + second / 3600.0) for second in range(0, 600, 10)]
    points[7] = (70.0, 500.0)  # one outlier
    found = trend(points)
    assert found.per_hour == pytest.approx(1.0) and found.start == pytest.approx(100.0) and found.peak == 500.0


def test_a_trend_needs_two_moments() -> None:
    with pytest.raises(ValueError, match="two moments"):
        trend([(1.0, 2.0), (1.0, 3.0)])


def grown(by_mib_s: float, pid: int = 1, since_s: int = 0) -> list[tuple[float, Vitals]]:
    return [
        (float(at_s), replace(AT_REST, pid=pid, rss_mib=100.0 + by_mib_s * at_s)) for at_s in range(since_s, 1800, 5)
    ]


def test_only_a_process_that_lived_through_the_run_has_a_slope() -> None:
    assert steady(grown(0.0)) is not None
    young = [(at_s, one) for at_s, one in grown(0.0) if at_s < 900] + grown(0.0, pid=2, since_s=900)
    assert steady(young) is None


def result(after: Vitals, by_mib_s: float = 0.0) -> Result:
    return Result(Plan(), {"gateway": grown(by_mib_s)}, {"gateway": AT_REST}, {"gateway": after})


def test_a_fleet_that_came_back_to_rest_meets_every_bar() -> None:
    assert all(row.met is not False for row in rows_of(result(AT_REST)))


@pytest.mark.parametrize("change", [{"fds": 22}, {"tasks": 7}, {"threads": 10}, {"blocks": 1}, {"leases": 1}])
def test_whatever_is_left_behind_misses_its_bar(change: dict[str, int]) -> None:
    missed = [row for row in rows_of(result(replace(AT_REST, **change))) if row.met is False]
    assert len(missed) == 1


def test_memory_that_grows_by_more_than_a_hundredth_an_hour_misses_its_bar() -> None:
    assert [row.metric for row in rows_of(result(AT_REST, 0.0005)) if row.met is False] == [
        "one hour later, at the slope seen"
    ]


def test_wrong_answers_and_hangs_are_faults() -> None:
    wrong = ["asks: 500 internal_error", "asks: CUT OFF", "asks: WRONG TOKENS", "chats: 500", "x: HUNG"]
    told = Result(
        Plan(), outcomes=Counter({"asks: complete": 90, "asks: 503 no_capacity": 1, **dict.fromkeys(wrong, 1)})
    )
    assert sorted(told.faults) == wrong


def test_a_process_that_is_gone_and_a_fleet_that_answers_little_are_faults() -> None:
    told = Result(Plan(), before={"gateway": AT_REST, "decode-0": AT_REST}, after={"gateway": AT_REST})
    assert told.faults == ["decode-0: does not answer any more"]
    told = Result(Plan(), outcomes=Counter({"asks: complete": 9, "asks: 503 no_capacity": 1}))
    assert told.faults == ["only 9 of 10 asks were complete"]
