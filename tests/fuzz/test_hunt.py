"""A small seeded part of `make fuzz`, and that a hunt finds what there is to be found."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from baton_wire import http_body
from fuzzing.hunt import Hunt, by_chance
from fuzzing.targets import TARGETS


def hunted(target: str, keep: Path, inputs: int = 20_000) -> Hunt:
    async def run() -> Hunt:
        hunt = Hunt(TARGETS[target](), keep)
        by_chance(hunt, inputs, seed=1)
        return hunt

    return asyncio.run(run())


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found(target: str, tmp_path: Path) -> None:
    hunt = hunted(target, tmp_path)
    assert hunt.failures == {} and hunt.inputs == 20_000
    assert hunt.target.accepted > 1000  # else it would say little


def test_a_parser_that_takes_a_bare_line_feed_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lax = http_body.re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t\x20-\x7e]*+)?\r?\n")
    monkeypatch.setattr(http_body, "_SIZE_LINE", lax)
    hunt = hunted("requests", tmp_path)
    assert hunt.failures and all(Path(kept).exists() for kept in hunt.failures.values())
