"""The rows that are not told over a constant load: each a fleet of its own and a question asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import torch

from support.stack import Stack

from .corruption import WANTED, corrupt
from .departures import departures
from .gateway_drain import drains
from .hostile import SETTINGS, hostile
from .overload import POOL_BLOCKS, overload
from .rate_drain import at_a_rate
from .slow_readers import ROOMY_BLOCKS, slow_readers
from .story import Figure

Probe = Callable[[Path, Path, int, int], list[Figure]]
"""(model, folder, seed, times) -> figures"""
CORRUPTED_PER_TIME = WANTED // 10  # ten rounds are the whole


def row_14(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    torch.set_num_threads(1)
    folder.mkdir()
    return asyncio.run(corrupt(model, folder, CORRUPTED_PER_TIME * times, seed))


def row_26(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    with Stack.up(model, folder) as stack:
        return departures(stack, 2 * times, seed)


def row_30(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    with Stack.up(model, folder, gateway=SETTINGS) as stack:
        return hostile(stack, times)


def row_17(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    with Stack.up(model, folder) as stack:
        return drains(stack, times, seed)


def row_9(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    with Stack.up(model, folder, decode=2, worker={"kv": {"num_blocks": POOL_BLOCKS}}) as stack:
        return overload(stack, times, seed)


def row_28(model: Path, folder: Path, seed: int, times: int) -> list[Figure]:
    with Stack.up(model, folder, worker={"kv": {"num_blocks": ROOMY_BLOCKS}}) as stack:
        return slow_readers(stack, times, seed)


PROBES: dict[str, tuple[str, Probe]] = {
    "9": ("three and six times the load that fills the KV pools", row_9),
    "28": ("clients that read one byte a second", row_28),
    "14": ("blocks corrupted in flight", row_14),
    "30": ("hostile bodies (rows 30 to 32)", row_30),
    "17": ("SIGTERM of the gateway under 50 streams", row_17),
    "17r": ("SIGTERM of one of two gateways at 150 requests/s", at_a_rate),
    "26": ("clients that leave (rows 26 and 27)", row_26),
}
