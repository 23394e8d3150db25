"""KV blocks are bytes: moved to another runner they mean the same; nothing of an earlier request shows in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baton_api.errors import InternalError
from baton_engine.batch import Draw, Slice
from baton_engine.checkpoint import read_config, read_tensor_files
from baton_engine.kv_cache import StagedBlockStore, torch_dtype
from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings
from baton_engine.weights import load_weights
from support.stepping import Blocks, Running, generate, step
from support.tiny_models import TinyModel, make_model

CPU = torch.device("cpu")
PROMPT = list(range(40, 85))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def load(folder: Path, num_blocks: int = 32) -> TorchRunner:
    return TorchRunner.load(folder, TensorSettings(num_blocks=num_blocks))


def staged(folder: Path, num_blocks: int = 32) -> TorchRunner:
    """The same model over a store with separate host copies, as on an accelerator."""
    layout, config = load(folder, 1).layout, read_config(folder)
    weights = load_weights(config, read_tensor_files(folder), torch_dtype(layout.dtype), CPU, None)
    return TorchRunner(config, weights, StagedBlockStore(layout, num_blocks, CPU), TensorSettings())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("receiver_is_staged", [False, True])
@pytest.mark.parametrize("sender_is_staged", [False, True])
def test_blocks_copied_to_another_runner_give_the_same_next_tokens(
    tmp_path: Path, dtype: str, sender_is_staged: bool, receiver_is_staged: bool
) -> None:
    folder = make_model(tmp_path, TinyModel(family="qwen3", dtype=dtype))
    prefill = (staged if sender_is_staged else load)(folder)
    decode = (staged if receiver_is_staged else load)(folder, 64)
    expected = generate(load(folder), PROMPT, 20)
    sender, blocks = Running(PROMPT), Blocks(32, seed=1)
    step(prefill, [sender], blocks)
    receiver = Running(PROMPT, output=list(sender.output), computed=len(PROMPT))
    receiver.block_ids = Blocks(64, seed=2).take(3)
    prefill.store.before_send(sender.block_ids)
    for source, destination in zip(sender.block_ids, receiver.block_ids, strict=True):
        decode.store.view(destination)[:] = prefill.store.view(source)
    decode.store.after_land(receiver.block_ids)
    spare = Blocks(64, seed=2)
    spare.take(3)
    while len(receiver.output) < 20:
        step(decode, [receiver], spare)
    assert receiver.output_ids == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_view_is_the_block_writable_and_of_the_layouts_size(tmp_path: Path, dtype: str) -> None:
    folder = make_model(tmp_path, TinyModel(dtype=dtype))
    for store in (load(folder).store, staged(folder).store):
        view = store.view(3)
        assert (view.format, view.nbytes, view.readonly) == ("B", store.layout.block_bytes, False)
        view[:] = bytes(range(256)) * (view.nbytes // 256)
        store.after_land([3])
        assert bytes(store.pool.blocks[3].view(torch.uint8).numpy()) == bytes(view)
        assert not any(store.view(2)) and not any(store.view(4))
        with pytest.raises(IndexError, match="block 32"):
            store.view(32)


def test_a_staged_store_has_host_memory_only_for_blocks_that_travel(tmp_path: Path) -> None:
    store = StagedBlockStore(load(make_model(tmp_path)).layout, 1000, CPU)
    assert len(store._slabs) == 0
    store.before_send([700, 701])
    assert len(store._slabs) == 1


def test_a_copied_block_serves_another_sequence_and_leaves_the_source_alone(tmp_path: Path) -> None:
    runner = load(make_model(tmp_path, TinyModel()))
    expected = generate(runner, PROMPT, 12)
    first, blocks = Running(PROMPT), Blocks(32)
    step(runner, [first], blocks)
    second = Running(PROMPT, output=list(first.output), computed=len(PROMPT))
    second.block_ids = [*first.block_ids[:2], *blocks.take(1)]
    runner.copy_blocks([(first.block_ids[2], second.block_ids[2])])
    runner.copy_blocks([])
    other = Running([*PROMPT[:-1], 7])
    for _ in range(11):
        step(runner, [first, second, other], blocks)
    assert first.output_ids == second.output_ids == expected


def test_copies_in_one_call_read_the_state_before_any_of_them(tmp_path: Path) -> None:
    runner = load(make_model(tmp_path, TinyModel()))
    runner.store.view(0)[:] = b"\x01" * runner.layout.block_bytes
    runner.store.view(1)[:] = b"\x02" * runner.layout.block_bytes
    runner.copy_blocks([(0, 1), (1, 0)])
    assert (runner.store.view(0)[5], runner.store.view(1)[5]) == (2, 1)


@pytest.mark.parametrize("chunk", [1000, 16, 5, 1])
def test_poison_left_in_free_blocks_neither_changes_tokens_nor_stays_in_what_is_sent(
    tmp_path: Path, chunk: int
) -> None:
    runner = load(make_model(tmp_path, TinyModel()))
    expected = generate(runner, PROMPT, 20)
    for block in range(32):
        runner.store.view(block)[:] = b"\xff" * runner.layout.block_bytes
    sequence, blocks = Running(PROMPT), Blocks(32)
    while not sequence.output:
        step(runner, [sequence], blocks, chunk)
    partial = runner.store.pool.blocks[sequence.block_ids[-1]].view(2, 2, 2, 16, 16)
    assert not partial[..., len(PROMPT) % 16 :, :].any()
    assert partial[..., : len(PROMPT) % 16, :].all()
    while len(sequence.output) < 20:
        step(runner, [sequence], blocks)
    assert sequence.output_ids == expected


def test_logits_that_are_not_finite_fail_the_step(tmp_path: Path) -> None:
    runner = load(make_model(tmp_path, TinyModel()))
    draw = Draw(Running([]).params, 0, PROMPT, ())
    runner._model._final_norm.fill_(float("nan"))
    with pytest.raises(InternalError, match="not finite"):
        runner.run([Slice(PROMPT, 0, (0, 1, 2), (draw,))])
