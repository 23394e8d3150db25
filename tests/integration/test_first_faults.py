"""The first faults, on two workers in this process: for each, right tokens or an explicit error by the deadline, and
every block of both pools free afterwards (Pair checks that on its way out)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from baton_api.handoff import HandOff
from support.pair import NUMBERS, SALT, Answer, Pair
from support.tiny_models import TinyModel, make_model

TRANSPORTS = ("ucx/tcp", "ucx/shm", "tcp", "cma", "inproc")
TOKENS = [7 + i % 600 for i in range(300)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama", TinyModel("llama", max_position=4096))


def greedy(**more: Any) -> dict[str, Any]:
    return {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}


def bad_ticket(pair: Pair, kind: str, transfer_id: str) -> str:
    match kind:
        case "forged":
            good = pair.ticket(TOKENS, transfer_id)
            return good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB")
        case "expired":
            return pair.ticket(TOKENS, transfer_id, lifetime_s=-1.0)
        case "another prompt's":
            return pair.ticket(TOKENS[1:], transfer_id, num_tokens=len(TOKENS))
        case "another worker's":
            return pair.ticket(TOKENS, transfer_id, decode_id="decode-9")
        case "an old epoch's":
            return pair.ticket(TOKENS, transfer_id, prefill_epoch="0" * 16)
        case "another layout's":
            return pair.ticket(TOKENS, transfer_id, fingerprint="0" * 32)
        case _:
            raise AssertionError(kind)


KINDS = ("forged", "expired", "another prompt's", "another worker's", "an old epoch's", "another layout's")


@pytest.mark.parametrize("policy", ["recompute", "fail"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_bad_ticket_moves_nothing(llama: Path, kind: str, policy: str, tmp_path: Path) -> None:
    async with Pair.of(llama, "tcp", tmp_path, kv={"lease_s": 1.0, "heartbeat_s": 0.2}) as pair:
        transfer_id = f"t{next(NUMBERS)}"
        legs = [
            HandOff(leg, transfer_id, SALT.hex(), 20.0, bad_ticket(pair, kind, transfer_id), policy)  # type: ignore[arg-type]
            for leg in ("prefill", "decode")
        ]
        _, answer = await asyncio.gather(
            pair.post(pair.prefill, TOKENS, legs[0], greedy(seed=1)),
            pair.post(pair.decode, TOKENS, legs[1], greedy(seed=1)),
        )
        assert pair.decode.parts.engine.stats().prompt_tokens_transferred == 0
        check(answer, await pair.aggregated(TOKENS, **greedy()), policy)


def check(answer: Answer, reference: Answer, policy: str) -> None:
    if policy == "recompute":
        assert (answer.status, answer.tokens) == (200, reference.tokens)
    else:
        assert answer.status == 502, answer
        assert answer.body["error"]["message"]


async def test_a_ticket_opens_one_transfer_once(llama: Path, tmp_path: Path) -> None:
    async with Pair.of(llama, "tcp", tmp_path, kv={"lease_s": 1.0, "heartbeat_s": 0.2}) as pair:
        transfer_id = f"t{next(NUMBERS)}"
        wire = pair.ticket(TOKENS, transfer_id)
        first = HandOff("prefill", transfer_id, SALT.hex(), 20.0, wire, "fail")
        second = HandOff("decode", transfer_id, SALT.hex(), 20.0, wire, "fail")
        _, once = await asyncio.gather(
            pair.post(pair.prefill, TOKENS, first, greedy(seed=1)),
            pair.post(pair.decode, TOKENS, second, greedy(seed=1)),
        )
        assert once.status == 200
        again = await pair.post(pair.decode, TOKENS, second, greedy(seed=1))
        assert again.status == 502, again


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.05, 0.2])
async def test_a_client_that_goes_away_leaves_no_block_behind(
    llama: Path, transport: str, after_s: float, tmp_path: Path
) -> None:
    tokens = [3 + i % 630 for i in range(2000)]
    async with Pair.of(llama, transport, tmp_path, kv={"lease_s": 120.0}) as pair:
        task = asyncio.ensure_future(pair.disaggregated(tokens, **greedy(max_tokens=1500)))
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The leases of these workers are longer than the wait: whoever leaves is told of, also to a prefill that decode
        # was only connecting to.
        await pair.check_quiet(30.0)
        answer = await pair.disaggregated(TOKENS, **greedy())
        reference = await pair.aggregated(TOKENS, **greedy())
        assert answer.tokens == reference.tokens


async def test_a_prefill_leg_that_never_comes_is_waited_for_until_the_deadline_then_recomputed(
    llama: Path, tmp_path: Path
) -> None:
    async with Pair.of(llama, "tcp", tmp_path, kv={"transfer_timeout_s": 1.0}) as pair:
        transfer_id = f"t{next(NUMBERS)}"
        leg = HandOff("decode", transfer_id, SALT.hex(), 20.0, pair.ticket(TOKENS, transfer_id), "recompute")
        began_s = time.monotonic()
        answer = await pair.post(pair.decode, TOKENS, leg, greedy(seed=1))
        assert time.monotonic() - began_s < 5.0
        assert answer.tokens == (await pair.aggregated(TOKENS, **greedy())).tokens


async def test_a_decode_leg_that_never_comes_costs_a_lease_and_no_more(llama: Path, tmp_path: Path) -> None:
    async with Pair.of(llama, "tcp", tmp_path, kv={"lease_s": 0.5, "heartbeat_s": 0.1}) as pair:
        transfer_id = f"t{next(NUMBERS)}"
        leg = HandOff("prefill", transfer_id, SALT.hex(), 20.0, pair.ticket(TOKENS, transfer_id), "recompute")
        answer = await pair.post(pair.prefill, TOKENS, leg, greedy(seed=1))
        assert answer.status == 200
        assert pair.prefill.leg.leases == 1
        await pair.check_quiet(5.0)


async def test_a_request_that_queues_for_room_longer_than_a_lease_still_pulls_its_prompt(
    llama: Path, tmp_path: Path
) -> None:
    """Two prompts that do not fit into decode's pool together: the second waits for the first one's last token."""
    first, second = ([start + i % 600 for i in range(1500)] for start in (7, 8))
    kv = {"lease_s": 0.5, "heartbeat_s": 0.1, "num_blocks": 128}
    async with Pair.of(llama, "tcp", tmp_path, kv=kv) as pair:
        ahead = asyncio.ensure_future(pair.disaggregated(first, **greedy(max_tokens=400)))
        async with asyncio.timeout(30):
            while not pair.decode.parts.engine.stats().running:
                await asyncio.sleep(0.01)
        answer = await pair.disaggregated(second, **greedy())
        assert (await ahead).status == answer.status == 200
        assert pair.decode.parts.engine.stats().prompt_tokens_transferred == 3000
        assert answer.tokens == (await pair.aggregated(second, **greedy())).tokens
