"""`make soak`: half an hour of light load on a real fleet; slope and peak of everybody's memory, what was left behind.

python -m soak [--minutes 30] [--transport tcp] [--cpu-share 0.35] [--seed 1] [--series FILE.jsonl]
Writes bench/results/soak-TRANSPORT.json. Exit code 1 when something leaked, hung or answered wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.rows import Row, show, write

from .rows import rows_of
from .soak import Plan, Result, Soak, fleet


def main() -> int:
    options = _options()
    plan = Plan(options.minutes, options.cpu_share, options.kill_every, options.seed, options.transport)
    with tempfile.TemporaryDirectory() as directory, fleet(plan, Path(directory)) as stack:
        soak = Soak(plan, stack, options.series)
        result = asyncio.run(soak.run())
    return _tell(result, rows_of(result))


def _options() -> argparse.Namespace:
    defaults = Plan()
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--transport", default=defaults.transport)
    parser.add_argument("--cpu-share", type=float, default=defaults.cpu_share)
    parser.add_argument("--kill-every", type=float, default=defaults.kill_every_s, metavar="S")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--series", type=Path)
    return parser.parse_args()


def _tell(result: Result, rows: list[Row]) -> int:
    for told, count in sorted(result.outcomes.items()):
        print(f"  {count:6} {told}")
    asked = sum(result.outcomes.values())
    print(f"{asked} visits, {result.kills} kills, {result.cpu_share:.2f} of a core")
    for name, one in result.after.items():
        print(f"  {name:10} before {result.before.get(name)}\n  {'':10} after  {one}")
    show(rows)
    write(f"soak-{result.plan.transport.replace('/', '-')}", rows)
    missed = [f"{row.case}: {row.metric}" for row in rows if row.met is False]
    for problem in (*result.faults, *missed):
        print(f"NOT MET: {problem}")
    return 1 if result.faults or missed else 0


if __name__ == "__main__":
    sys.exit(main())
