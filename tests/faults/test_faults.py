"""A short part of the fault runner, on one fleet with few streams; the whole is `make faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.corruption import corrupt
from faults.departures import departures
from faults.story import EndLoad, Event, Kill, Load, Restart, Story, Wait
from faults.theatre import Theatre, theatre
from support.tiny_models import TinyModel, make_model

pytestmark = pytest.mark.timeout(300)
SEED = 7
LOAD = Load(streams=8, prompt_tokens=(100, 600), max_tokens=(16, 96), cases=8)
STORIES: dict[str, tuple[Event, ...]] = {
    "decode dies": (Wait(0.3, 1.0), Kill("decode"), Wait(0.5, 1.0), EndLoad()),
    "prefill dies and comes back": (
        Wait(0.3, 1.0),
        Kill("prefill"),
        Wait(0.2, 0.5),
        Restart(),
        Wait(0.5, 1.0),
        EndLoad(),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), TinyModel("llama", max_position=2048))


@pytest.fixture(scope="module")
def stage(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """One prefill, two decode workers, a gateway. Streams of a dead decode worker may end with an explicit error."""
    story = Story("short", "one of everything", (), (), LOAD, prefill=1, decode=2, may_break=True)
    with theatre(story, model, tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.mark.parametrize("story", STORIES)
def test_a_killed_worker_leaves_no_wrong_token_no_hang_and_no_block(stage: Theatre, story: str) -> None:
    round_ = stage.play(SEED, STORIES[story])
    assert round_.violations == []
    assert len(round_.seen) > LOAD.streams and "kill" in round_.marks
    epochs = [(name, round_.before[name].epoch != round_.after[name].epoch) for name in stage.stack.workers]
    assert sum(changed for _, changed in epochs) == 1, epochs


def test_blocks_of_clients_that_leave_are_free_at_once(stage: Theatre) -> None:
    assert [figure for figure in departures(stage.stack, 3, SEED) if figure.met is False] == []


async def test_damaged_blocks_never_become_tokens(model: Path, tmp_path: Path) -> None:
    assert [figure for figure in await corrupt(model, tmp_path, 200, SEED) if figure.met is False] == []
