"""What every source of the fleet promises, and what the fleet file adds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from baton_api.fleet import Fleet
from baton_gateway.source import FileSource, Source
from support.fleets import MemorySource, fleet_of
from support.gateways import until

Say = Callable[[Fleet], None]


@asynccontextmanager
async def running(source: Source) -> AsyncIterator[list[Fleet]]:
    """The fleets it says, as they come."""
    said: list[Fleet] = []
    task = asyncio.create_task(source.run(said.append))
    try:
        yield said
        assert not task.done(), "a source never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def file_source(folder: Path) -> tuple[Source, Say]:
    path = folder / "fleet.json"
    return FileSource(str(path), 0.01), lambda fleet: _write(path, fleet)


def memory_source(folder: Path) -> tuple[Source, Say]:
    source = MemorySource()
    return source, source.set


def _write(path: Path, fleet: Fleet) -> None:
    path.write_bytes(fleet.to_json())


@pytest.mark.parametrize("make", [file_source, memory_source])
async def test_a_source_says_the_whole_fleet_first_and_at_every_change(
    make: Callable[[Path], tuple[Source, Say]], tmp_path: Path
) -> None:
    source, say = make(tmp_path)
    fleets = [fleet_of("http://a:1"), fleet_of("http://a:1", "http://b:1"), fleet_of()]
    async with running(source) as said:
        for count, fleet in enumerate(fleets, 1):
            say(fleet)
            await until(lambda count=count: len(said) == count)  # type: ignore[misc]
    assert said == fleets


async def test_a_file_that_vanishes_breaks_or_names_what_cannot_be_called_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fleet.json"
    with caplog.at_level(logging.WARNING, "baton.gateway.source"):
        async with running(FileSource(str(path), 0.01)) as said:
            await until(lambda: "keeping the last fleet" in caplog.text)
            for content in (fleet_of("http://a:1/").to_json(), b'{"model": "ti', fleet_of("ftp://a").to_json()):
                caplog.clear()
                path.write_bytes(content)
                await until(lambda: bool(caplog.records) or bool(said))
            path.unlink()
            await until(lambda: "No such file" in caplog.text)
            path.write_bytes(fleet_of("http://a:1", "http://b:1").to_json())
            await until(lambda: len(said) == 2)
    assert said == [fleet_of("http://a:1"), fleet_of("http://a:1", "http://b:1")]
