"""Most of the KV has moved before prefill ends: on a prompt of four or more chunks at least 70 % of the bytes.

Counted by the decode worker's own timeline, as exported in baton_kv_transfer_overlap_ratio.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from baton_api.timing import from_server_timing
from support.pair import Pair
from support.tiny_models import TinyModel, make_model

# Wide enough that a chunk takes a while to compute.
SHAPE = TinyModel("llama", layers=4, hidden=256, heads=8, kv_heads=4, intermediate=768, max_position=4096)
CHUNK_TOKENS = 128


@pytest.mark.parametrize("transport", ["ucx/tcp", "ucx/shm", "tcp"])
@pytest.mark.parametrize("chunks", [4, 5, 16])
async def test_at_least_seventy_percent_of_the_bytes_land_before_prefill_ends(
    tmp_path: Path, transport: str, chunks: int
) -> None:
    model = make_model(tmp_path / "model", SHAPE)
    async with Pair.of(model, transport, tmp_path, kv={"num_blocks": 2048}) as pair:
        shares = []
        for number in range(5):
            tokens = [3 + (number * 97 + i * 7) % 630 for i in range(chunks * CHUNK_TOKENS)]
            before = overlap(pair)
            answer = await pair.disaggregated(tokens, max_tokens=1, temperature=0)
            after = overlap(pair)
            assert after[1] == before[1] + 1
            shares.append(after[0] - before[0])
            spans = {span.name: span for span in from_server_timing(answer.headers["server-timing"])}
            assert f"{chunks} chunks" in spans["prefill"].desc
            assert f"{len(tokens) // 16 * pair.prefill.parts.engine.layout.block_bytes} B" in spans["transfer"].desc
        print(f"{transport}, {chunks} chunks: median {statistics.median(shares):.0%} hidden ({min(shares):.0%} at worst)")
        assert statistics.median(shares) >= 0.7, shares


def overlap(pair: Pair) -> tuple[float, float]:
    """(sum, count) of the exported histogram."""
    text = pair.decode.exposition().decode()
    found = [re.search(rf"^baton_kv_transfer_overlap_ratio_{name} (\S+)$", text, re.M) for name in ("sum", "count")]
    assert all(found)
    return float(found[0][1]), float(found[1][1])  # type: ignore[index]
