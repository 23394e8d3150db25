"""`make faults`: every row so many times, a table, and a one-line repro for whatever went wrong."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from support import network
from support.tiny_models import TinyModel, make_model

from . import ucx_faults
from .probes import PROBES, Probe
from .rows import rows
from .story import Figure, Round, Story
from .theatre import theatre


def main(argv: Sequence[str]) -> int:
    asked = _arguments(argv)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="baton-faults-") as folder:
        model = make_model(Path(folder) / "model", TinyModel("llama", max_position=2048))
        for row, title, perform in plays(asked):
            found = perform(model, Path(folder) / f"row-{row}")
            print(table(found, title), flush=True)
            figures += found
            if asked.json:
                write(Path(asked.json), [as_bench_row(figure) for figure in found])
    missed = [figure for figure in figures if figure.met is False]
    print(f"{len(figures)} figures, {len(missed)} not met")
    return 1 if missed else 0


def plays(asked: argparse.Namespace) -> Iterable[tuple[str, str, Callable[[Path, Path], list[Figure]]]]:
    """(row, title, what performs it) of every row that is wanted and possible here."""
    for story in rows(resume=asked.resume):
        if wanted(asked, story.row) and (why := impossible(story)) is not None:
            print(f"row {story.row}: SKIPPED, {why}", flush=True)
        elif wanted(asked, story.row):
            story = replace(story, load=replace(story.load, streams=asked.streams or story.load.streams))
            yield story.row, story.title, partial(run, story, seed=asked.seed, times=asked.times)
    for row, (title, probe) in PROBES.items():
        if wanted(asked, row):
            yield row, title, partial(_probe, probe, asked)


def _probe(probe: Probe, asked: argparse.Namespace, model: Path, folder: Path) -> list[Figure]:
    return probe(model, folder, asked.seed, asked.times)


def wanted(asked: argparse.Namespace, row: str) -> bool:
    return not asked.rows or row in asked.rows


def impossible(story: Story) -> str | None:
    """Why this machine cannot perform it."""
    if story.network and (why := network.available()):
        return why
    return ucx_faults.unavailable() if story.shimmed else None


def run(story: Story, model: Path, directory: Path, *, seed: int, times: int) -> list[Figure]:
    """Plays a story so many times on one fleet; the seed of a round is all that it takes to play it again."""
    rounds: list[Round] = []
    with theatre(story, model, directory) as stage:
        for number in range(times):
            rounds.append(stage.play(seed + number))
            for line in complaints(story, rounds[-1]):
                print(line, flush=True)
    return [measure.figure(story.row, rounds) for measure in story.measures]


def complaints(story: Story, round_: Round, most: int = 8) -> Iterable[str]:
    if round_.violations:
        yield f"FAILED, again with: python -m faults --rows {story.row} --times 1 --seed {round_.seed}"
        yield from (f"  {told}" for told in round_.violations[:most])
        if len(round_.violations) > most:
            yield f"  and {len(round_.violations) - most} more"


def table(figures: Sequence[Figure], title: str) -> str:
    lines = [f"row {figures[0].row}: {title} ({figures[0].times} times)"]
    for figure in figures:
        sign = "<=" if figure.better == "lower" else ">="
        bar = "" if figure.bar is None else f"{sign} {figure.bar:g} {figure.unit}"
        met = {None: "", True: "met", False: "NOT MET"}[figure.met]
        lines.append(f"  {figure.name:<52} {figure.value:>10.3f} {figure.unit:<10} {bar:<18} {met}".rstrip())
    return "\n".join(lines)


def write(path: Path, found: Sequence[dict[str, object]]) -> None:
    """What was found replaces what the file says of these rows; the other rows stay."""
    before = json.loads(path.read_text()) if path.exists() else []
    cases = {row["case"] for row in found}
    rows = [row for row in before if row["case"] not in cases] + list(found)
    path.write_text(json.dumps(sorted(rows, key=lambda row: order(str(row["case"]))), indent=1) + "\n")


def order(case: str) -> tuple[int, str]:
    """Rows by their number in the table; those without one last."""
    name = case.removeprefix("row ")
    digits = "".join(itertools.takewhile(str.isdigit, name))
    return (int(digits) if digits else 10_000, name)


def as_bench_row(figure: Figure) -> dict[str, object]:
    """The form of bench/results: there is no peer here."""
    return {
        "case": f"row {figure.row}",
        "metric": figure.name,
        "unit": figure.unit,
        "ours": figure.value,
        "peer_name": None,
        "peer": None,
        "ratio": None,
        "bar": figure.bar,
        "goal": figure.bar,
        "better": figure.better,
        "times": figure.times,
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--rows", type=lambda text: text.split(","), default=[], help="such as 1,2,10d; default all")
    parser.add_argument("--times", type=int, default=10, help="rounds of each story")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=0, help="requests under way at any time; default the row's own")
    parser.add_argument("--json", default="", help="file for the figures")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
