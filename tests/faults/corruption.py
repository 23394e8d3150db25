"""Row 14: blocks corrupted in flight, in every way memory and wires do it, and the tokens that come out.

Two workers in this process, composed as in production; the faults enter through the transport's seam.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass
from pathlib import Path

from baton_api.blocks import prompt_digest
from baton_api.handoff import HandOff
from support.kv_flaky import faulty
from support.pair import NUMBERS, Pair

from .story import Figure

PROMPTS, PROMPT_TOKENS, MAX_TOKENS = 8, 400, 6
SHARE = 0.25  # of the blocks sent
WANTED = 10_000  # damaged blocks


@dataclass
class Vandal:
    """Damages a share of the blocks that pass; `hit` counts those whose bytes did change."""

    rng: random.Random
    share: float = 0.0
    hit: int = 0
    passed: int = 0
    last: bytes = b""

    def __call__(self, tag: int, view: memoryview) -> memoryview:
        self.passed += 1
        sent, self.last, earlier = bytes(view), bytes(view), self.last
        if self.rng.random() >= self.share:
            return view
        damaged = damage(self.rng, sent, earlier)
        self.hit += damaged != sent
        return memoryview(damaged)


def damage(rng: random.Random, block: bytes, earlier: bytes) -> bytes:
    """One bit, a burst, a torn or zeroed tail, two halves swapped, shifted by a byte, or another block altogether."""
    at, size = rng.randrange(len(block)), len(block)
    match rng.randrange(7):
        case 0:
            return block[:at] + bytes([block[at] ^ (1 << rng.randrange(8))]) + block[at + 1 :]
        case 1:
            burst = rng.randbytes(min(64, size - at))
            return block[:at] + burst + block[at + len(burst) :]
        case 2:
            return block[:at] + earlier[at:size].ljust(size - at, b"\0")
        case 3:
            return block[:at] + bytes(size - at)
        case 4:
            return block[size // 2 :] + block[: size // 2]
        case 5:
            return block[1:] + block[:1]
        case _:
            return earlier[:size].ljust(size, b"\0")


async def corrupt(model: Path, folder: Path, blocks: int, seed: int, transport: str = "tcp") -> list[Figure]:
    """Requests until so many blocks were damaged; each answer is compared with the undamaged one."""
    rng = random.Random(seed)
    vandal = Vandal(rng)
    async with Pair.of(model, transport, folder, wrap=faulty(vandal)) as pair:
        prompts = [[rng.randrange(3, 640) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
        greedy = {"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
        right = [(await pair.aggregated(prompt, **greedy)).tokens for prompt in prompts]
        vandal.share = SHARE
        requests = wrong = failed = 0
        while vandal.hit < blocks:
            picked = [rng.randrange(PROMPTS) for _ in range(4)]
            answers = await asyncio.gather(*(disaggregated(pair, prompts[number]) for number in picked))
            for number, (status, tokens) in zip(picked, answers, strict=True):
                requests += 1
                failed += status != 200
                wrong += status == 200 and tokens != right[number]
        vandal.share = 0.0
        found = pair.decode.parts.telemetry.exposition(pair.decode.parts.engine.stats(), False).decode()
    # Fewer than were damaged: what comes after a pull has failed is thrown away unread.
    noticed = sum(float(line.split()[1]) for line in found.splitlines() if line.startswith(CHECKSUM_FAILURES))
    return [
        Figure("14", damaged(blocks), "blocks", vandal.hit, blocks, "higher", requests),
        Figure("14", "requests with wrong tokens", "requests", wrong, 0, times=requests),
        Figure("14", "requests failed", "requests", failed, 0, times=requests),
        Figure("14", "checksum failures counted", "blocks", noticed, times=requests),
    ]


def damaged(blocks: int) -> str:
    """The figure's name: one of fewer blocks than the table asks for says so."""
    return "blocks damaged in flight" + ("" if blocks >= WANTED else f" (a run for {blocks} of the {WANTED} wanted)")


CHECKSUM_FAILURES = "baton_kv_checksum_failures_total"


async def disaggregated(pair: Pair, prompt: list[int]) -> tuple[int, list[list[int]]]:
    """Under a salt of its own, so that no block is held already; decode prefills itself when KV stays damaged."""
    transfer_id, salt = f"t{next(NUMBERS)}", secrets.token_bytes(32)
    digest = prompt_digest(prompt, pair.prefill.info().block_tokens, salt).hex()
    wire = pair.ticket(prompt, transfer_id, prompt_digest=digest)
    params = {"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True, "seed": 1}
    first, second = (
        HandOff("prefill", transfer_id, salt.hex(), 60.0, wire, "recompute"),
        HandOff("decode", transfer_id, salt.hex(), 60.0, wire, "recompute"),
    )
    _, answer = await asyncio.gather(
        pair.post(pair.prefill, prompt, first, params), pair.post(pair.decode, prompt, second, params)
    )
    return answer.status, answer.tokens if answer.status == 200 else []
