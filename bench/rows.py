"""One row of a benchmark's result, the JSON file that holds them and the table on the screen."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .rounds import paired, spread

RESULTS = Path(__file__).parent / "results"
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds. `bar` and `goal` are on `ratio` (ours / peer); None where none is set."""

    case: str
    metric: str
    unit: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    bar: float | None
    goal: float | None
    better: Better
    ours_spread: tuple[float, float]
    peer_spread: tuple[float, float]
    ratio_spread: tuple[float, float]
    rounds: int
    load: float

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.ratio <= self.bar if self.better == "lower" else self.ratio >= self.bar


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured, and what is asked of the ratio."""

    name: str
    unit: str
    better: Better
    bar: float | None = None
    goal: float | None = None


def compare(case: str, measure: Measure, ours: Sequence[float], peer_name: str, peer: Sequence[float]) -> Row:
    """One row from the rounds' samples."""
    mine, theirs, ratio = spread(ours), spread(peer), paired(ours, peer)
    return Row(
        case, measure.name, measure.unit, _short(mine.median), peer_name, _short(theirs.median), _short(ratio.median),
        measure.bar, measure.goal, measure.better, (_short(mine.low), _short(mine.high)),
        (_short(theirs.low), _short(theirs.high)), (_short(ratio.low), _short(ratio.high)), ratio.rounds,
        round(os.getloadavg()[0], 2),
    )  # fmt: skip


def single(
    case: str, unit: str, ours: float, other: tuple[str, float], *,
    bar: float | None, metric: str = "", better: Better = "lower",
) -> Row:  # fmt: skip
    """A row of one measurement beside another one, which is named."""
    (name, peer), ratio = other, ours / other[1]
    mine, theirs, share = _short(ours), _short(peer), float(f"{ratio:.5g}")
    return Row(
        case, metric or unit, unit, mine, name, theirs, share, bar, None, better,
        (mine, mine), (theirs, theirs), (share, share), 1, round(os.getloadavg()[0], 2),
    )  # fmt: skip


def _short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def write(name: str, rows: Sequence[Row], *, keep_other_cases: bool = False) -> Path:
    """bench/results/NAME.json. `keep_other_cases`: rows of cases that this run did not have stay."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    cases = {row.case for row in rows}
    before = json.loads(path.read_text()) if keep_other_cases and path.exists() else []
    kept = [row for row in before if row["case"] not in cases]
    path.write_text(json.dumps([*kept, *(asdict(row) for row in rows)], indent=1) + "\n")
    return path


def show(rows: Sequence[Row]) -> None:
    for row in rows:
        verdict = {True: "met", False: "NOT met", None: ""}[row.met]
        low, high = row.ratio_spread
        print(
            f"{row.case:44} {row.metric:18} {row.ours:>9.4g} {row.peer_name:26} {row.peer:>9.4g} {row.unit:10}"
            f" ratio {row.ratio:6.3f} [{low:.3f}, {high:.3f}] {verdict}",
            flush=True,
        )
