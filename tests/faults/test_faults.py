"""A short part of the fault runner, on one fleet with few streams; the whole is `make faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import ucx_faults
from faults.corruption import corrupt
from faults.departures import departures
from faults.story import Break, Cut, EndLoad, Event, Kill, Load, Restart, Shim, Story, Terminate, Wait
from faults.theatre import Theatre, theatre
from support import network
from support.tiny_models import TinyModel, make_model

pytestmark = pytest.mark.timeout(300)
SEED = 7
LOAD = Load(streams=8, prompt_tokens=(100, 600), max_tokens=(16, 96), cases=8)
HARD = Load(streams=8, prompt_tokens=(40, 400), max_tokens=(120, 200), cases=8, hard=True)
BACK = (Wait(0.2, 0.5), Restart(), Wait(0.5, 1.0), EndLoad())
STORIES: dict[str, tuple[Event, ...]] = {
    "prefill dies among the first prompts": (Wait(0.0, 0.1), Kill("prefill"), *BACK),
    "prefill dies and comes back": (Wait(0.3, 1.0), Kill("prefill"), *BACK),
    "decode dies and comes back": (Wait(0.3, 1.0), Kill("decode"), *BACK),
    "decode ends with streams left": (Wait(0.3, 1.0), Terminate("decode"), EndLoad()),
    "decode runs out of memory": (Wait(0.3, 1.0), Break("oom"), Wait(0.3, 0.6), EndLoad()),
    "decode's device is dead": (Wait(0.3, 1.0), Break("cuda", 1_000_000, exits=True), EndLoad()),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), TinyModel("llama", max_position=2048))


@pytest.fixture(scope="module")
def stage(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """One prefill, two decode workers that can be broken and that drain for half a second only, a gateway."""
    story = Story("short", "all", (), (), HARD, prefill=1, decode=2, worker={"drain_s": 0.5}, breakable=True)
    with theatre(story, model, tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.mark.parametrize("story", STORIES)
def test_a_worker_that_dies_goes_or_fails_costs_no_request_no_token_and_no_block(stage: Theatre, story: str) -> None:
    round_ = stage.play(SEED, STORIES[story])
    assert round_.violations == []
    assert len(round_.seen) >= HARD.streams
    assert all(seen.ending == "complete" for seen in round_.seen)
    changed = [name for name in stage.stack.workers if round_.before[name].epoch != round_.after[name].epoch]
    assert len(changed) == (story != "decode runs out of memory"), changed
    if "device" in story:
        assert round_.exits == [3]
    if "memory" in story:
        assert round_.counted["gateway resumed"] + round_.counted["retries"] <= 1


def test_blocks_of_clients_that_leave_are_free_at_once(stage: Theatre) -> None:
    assert [figure for figure in departures(stage.stack, 3, SEED) if figure.met is False] == []


def test_a_cut_between_two_workers_costs_no_request(model: Path, tmp_path: Path) -> None:
    if why := network.available():
        pytest.skip(why)
    events = (Wait(0.3, 0.5), Cut("pair", 4.0), Wait(2.5, 3.0), EndLoad())
    story = Story("short", "cut", events, (), LOAD, prefill=1, decode=2, network=True)
    with theatre(story, model, tmp_path) as stage:
        round_ = stage.play(SEED)
        assert round_.violations == [] and round_.apart_s and round_.again_s
        assert all(seen.ending == "complete" for seen in round_.seen)


def test_ucx_calls_that_fail_cost_no_request(model: Path, tmp_path: Path) -> None:
    if why := ucx_faults.unavailable():
        pytest.skip(why)
    events = (Wait(0.3, 0.5), Shim(3.0), Wait(0.5, 1.0), EndLoad())
    story = Story("short", "ucx", events, (), LOAD, prefill=1, decode=1, transport="ucx/tcp", shimmed=True)
    with theatre(story, model, tmp_path) as stage:
        round_ = stage.play(SEED)
        assert round_.violations == [] and round_.marks["injected"] > 0
        assert all(seen.ending == "complete" for seen in round_.seen)


async def test_damaged_blocks_never_become_tokens(model: Path, tmp_path: Path) -> None:
    assert [figure for figure in await corrupt(model, tmp_path, 200, SEED) if figure.met is False] == []
