"""How the processes of a story are started where that is not as in production: breakable, shimmed, in namespaces."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from support.faulty_worker import VARIABLE
from support.network import Network
from support.processes import Launch

from . import ucx_faults
from .story import Story


def network_of(story: Story) -> AbstractContextManager[Network | None]:
    return Network.of([*names(story), "gateway"]) if story.network else nullcontext()


def names(story: Story) -> list[str]:
    roles = (("prefill", story.prefill), ("decode", story.decode))
    return [f"{role}-{number}" for role, count in roles for number in range(count)]


def launches_of(story: Story, directory: Path, network: Network | None) -> dict[str, Launch]:
    """For the processes of a story that are not started as in production."""
    if story.breakable:
        return {name: breakable(directory / f"{name}.fault") for name in names(story) if name.startswith("decode")}
    if story.shimmed:
        library = ucx_faults.build(directory)
        return {name: ucx_faults.launch(library, directory, seed) for seed, name in enumerate(names(story))}
    if network is None:
        return {}
    launches = {name: network.launch(name) for name in [*names(story), "gateway"]}
    if story.wire:
        address, _ = network.wire("prefill-0", "decode-0", directory / "wire.log", *story.wire)
        settings = {"host": "0.0.0.0", "advertise_host": address}
        launches["prefill-0"] = replace(launches["prefill-0"], settings=settings)
    return launches


def breakable(fault: Path) -> Launch:
    return Launch("support.faulty_worker", {VARIABLE: str(fault)})
