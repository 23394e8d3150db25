"""The benchmarks' arithmetic: order of rounds, medians, paired ratios, rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
from bench import rows  # noqa: E402
from bench.cpu import tree, tree_cpu_s  # noqa: E402
from bench.rounds import paired, spread, turned  # noqa: E402
from bench.rows import Measure, compare  # noqa: E402


def test_a_ratio_is_taken_within_each_round_so_that_a_slow_round_does_not_count_twice() -> None:
    found = paired([10, 30, 12], [20, 60, 20])
    assert (found.median, found.low, found.high, found.rounds) == (0.5, 0.5, 0.6, 3)


@pytest.mark.parametrize(("ours", "peer"), [([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_rounds_that_do_not_match_or_say_nothing_are_refused(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sample|argument"):
        paired(ours, peer)


def test_a_spread_keeps_the_extremes() -> None:
    assert (spread([3, 1, 2, 9]).median, spread([3, 1, 2, 9]).low, spread([3, 1, 2, 9]).high) == (2.5, 1, 9)


def test_over_as_many_rounds_as_contenders_each_is_at_every_place_once() -> None:
    orders = [turned("abc", number) for number in range(3)]
    for place in range(3):
        assert Counter(order[place] for order in orders) == Counter("abc")


@pytest.mark.parametrize(
    ("better", "bar", "ours", "met"),
    [("lower", 0.8, 8.0, True), ("lower", 0.8, 8.1, False), ("higher", 0.8, 8.0, True), ("higher", 0.8, 7.9, False),
     ("higher", None, 1.0, None)],
)  # fmt: skip
def test_the_bar_is_on_the_ratio_and_counts_as_met_when_reached(
    better: str, bar: float | None, ours: float, met: bool | None
) -> None:
    row = compare("case", Measure("m", "us", better, bar), [ours], "peer", [10.0])  # type: ignore[arg-type]
    assert row.met is met and row.ratio == pytest.approx(ours / 10)


def test_cpu_time_of_a_tree_holds_the_childrens() -> None:
    before_s = tree_cpu_s(os.getpid())
    spin = "import time\nwhile time.process_time() < 0.1: pass\ntime.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", spin])
    child = process.pid
    try:
        give_up_s = time.monotonic() + 20
        while tree_cpu_s(child) < 0.05 and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert child in tree(os.getpid())
        assert tree_cpu_s(os.getpid()) - before_s >= tree_cpu_s(child) >= 0.05
    finally:
        process.kill()
        process.wait()
    assert tree_cpu_s(child) == 0.0


def test_a_run_of_some_cases_leaves_the_rows_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    cpu = Measure("cpu", "us", "lower")
    for case, ours in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        path = rows.write("x", [compare(case, cpu, [ours], "peer", [1.0])], keep_other_cases=True)
    assert [(row["case"], row["ours"]) for row in json.loads(path.read_text())] == [("b", 2.0), ("a", 3.0)]


@pytest.mark.parametrize(("better", "met"), [("lower", False), ("higher", True)])
def test_a_single_measurement_may_be_asked_to_be_high(better: Literal["lower", "higher"], met: bool) -> None:
    assert rows.single("case", "sockets", 3.0, ("wanted", 2.0), bar=1.0, better=better).met is met
