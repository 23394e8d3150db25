"""Writes the figures into the page: `python -m faults.report faults/results.json ../docs/faults.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .probes import PROBES
from .rows import rows

PARTS = {
    "27": "clients that leave mid-stream",
    "27w": "clients that leave from an answer not streamed",
    "31": "prompts beyond the context",
    "32": "malformed and smuggled requests",
}
"""Rows that another row's probe answers as well."""
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def table(found: Sequence[dict[str, Any]]) -> str:
    """One block of lines a row of the fault table, its title first."""
    titles = {story.row: story.title for story in rows(resume=True)} | {
        row: title for row, (title, _) in PROBES.items()
    }
    titles |= PARTS
    lines = ["| row | rounds | figure | value | bar | |", "|---|---|---|---|---|---|"]
    last = ""
    for row in found:
        name = row["case"].removeprefix("row ")
        if name != last:
            lines.append(f"| **{name}** | | **{titles.get(name, '')}** | | | |")
            last = name
        bar = "" if row["bar"] is None else f"{'<=' if row['better'] == 'lower' else '>='} {row['bar']:g}"
        lines.append(
            f"| | {row['times']} | {row['metric']} | {row['ours']:.4g} {row['unit']} | {bar} | {verdict(row)} |"
        )
    return "\n".join(lines)


def verdict(row: dict[str, Any]) -> str:
    if row["bar"] is None:
        return ""
    met = row["ours"] <= row["bar"] if row["better"] == "lower" else row["ours"] >= row["bar"]
    return "met" if met else "**not met**"


def main(argv: Sequence[str]) -> None:
    results, page = map(Path, argv)
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(json.loads(results.read_text()))}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
