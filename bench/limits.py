"""The native engine against what its device can do: `python -m bench.limits`, `make bench-limits`.

Random weights in the shape of a real model: on a GPU Llama-3-8B in bfloat16, on a CPU Qwen2.5-0.5B in float32. The
device's limits are measured in the same rounds, with PyTorch alone: bytes that a copy within its memory reads and
writes, and what a product of large square matrices in the same dtype computes. Where the data sheet's figures are known
they stand beside, with goals of 0.7 of its bandwidth and 0.6 of its arithmetic. A row's ratio is the least time that
these limits allow by the time taken.

What is counted is what the model needs, whatever the engine does (as "model FLOPs utilization" of PaLM, arXiv
2204.02311, appendix B): a decode step reads all weights once but the table of embeddings, and the KV of all contexts; a
prompt costs two FLOP per weight and token, the vocabulary's for the last token only, and four per pair of tokens, head
and dimension that attention looks at.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import PretrainedConfig

from baton_api.sampling import SamplingParams
from baton_engine.engine import NativeEngine
from baton_engine.limits import EngineSettings
from baton_engine.nouns import GenerateRequest, Leg
from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings

from .engine import FEWEST_IDS
from .engine_baton import SALT, Collected
from .engine_model import SHAPES, make
from .rows import Measure, Row, compare, show, write

BANDWIDTH_GOAL, FLOP_GOAL = 0.7, 0.6


@dataclass(frozen=True, slots=True)
class Scale:
    """What fits the kind of device."""

    shape: str
    dtype: torch.dtype
    context: int
    prompt: int
    steps: int
    copy_bytes: int
    square: int


SCALES = {
    "cuda": Scale("8B", torch.bfloat16, context=1024, prompt=8000, steps=64, copy_bytes=4 << 30, square=8192),
    "cpu": Scale("0.5B", torch.float32, context=32, prompt=512, steps=24, copy_bytes=256 << 20, square=1024),
}
BATCHES = (1, 8, 64)


@dataclass(frozen=True, slots=True)
class Limits:
    bytes_per_s: float
    flop_per_s: float


DATA_SHEETS = {"H200": Limits(4.8e12, 989e12), "H100": Limits(3.35e12, 989e12)}
"""Memory and dense bfloat16 of the SXM boards (NVIDIA's data sheets), by what the device's name has in it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one decode step, or of one prompt."""

    read_bytes: int
    flop: int

    def least_s(self, limits: Limits) -> float:
        return max(self.read_bytes / limits.bytes_per_s, self.flop / limits.flop_per_s)

    def by_memory(self, limits: Limits) -> bool:
        return self.read_bytes / limits.bytes_per_s > self.flop / limits.flop_per_s


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model needs to compute tokens."""

    read_weights: int
    body_weights: int
    kv_per_token: int
    attention_per_pair: int
    item_bytes: int

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> Needs:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        attention = config.hidden_size * head_dim * (2 * heads + 2 * kv_heads)
        body = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
        return cls(
            read_weights=body + config.vocab_size * config.hidden_size,
            body_weights=body,
            kv_per_token=config.num_hidden_layers * 2 * kv_heads * head_dim,
            attention_per_pair=config.num_hidden_layers * 4 * heads * head_dim,
            item_bytes=dtype.itemsize,
        )

    def of_step(self, contexts: Sequence[int]) -> Cost:
        """One step over contexts of so many tokens."""
        read = self.item_bytes * (self.read_weights + sum(contexts) * self.kv_per_token)
        return Cost(read, 2 * self.read_weights * len(contexts) + self.attention_per_pair * sum(contexts))

    def of_prompt(self, tokens: int) -> Cost:
        once = 2 * (self.read_weights - self.body_weights)
        flop = 2 * self.body_weights * tokens + once + self.attention_per_pair * tokens * (tokens + 1) // 2
        return Cost(self.item_bytes * self.read_weights, flop)


class Driven:
    """The native engine, and requests of new random prompts to it."""

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = engine
        self._rng = random.Random(0)
        self._count = 0

    async def seconds_of_prefill(self, tokens: int) -> float:
        """From the submission to the first token."""
        began_s = time.perf_counter()
        (one,) = await self._answers([tokens], 1)
        return one.at_s[0] - began_s

    async def seconds_of_step(self, batch: int, context: int, steps: int) -> float:
        """The median decode step while all of them decode."""
        answers = await self._answers([context] * batch, steps)
        first_s, last_s = max(one.at_s[0] for one in answers), min(one.at_s[-1] for one in answers)
        at_s = [at_s for at_s in answers[0].at_s if first_s <= at_s <= last_s]
        return median(late - early for early, late in itertools.pairwise(at_s))

    async def _answers(self, prompts: Sequence[int], output: int) -> list[Collected]:
        sampling = SamplingParams(temperature=0.0, seed=0, max_tokens=output, ignore_eos=True)
        answers = []
        for tokens in prompts:
            self._count += 1
            prompt = [self._rng.randrange(8, FEWEST_IDS) for _ in range(tokens)]
            answers.append(Collected())
            request = GenerateRequest(f"r{self._count}", prompt, sampling, SALT, Leg.AGGREGATED)
            self._engine.submit(request, answers[-1].take)
        await asyncio.gather(*(one.over for one in answers))
        return answers


class Device:
    """What it can do, with PyTorch alone."""

    def __init__(self, name: str, scale: Scale) -> None:
        self._device, self._scale = torch.device(name), scale
        self.name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "this CPU"

    def limits(self) -> Limits:
        return Limits(self._copied_bytes_per_s(), self._multiplied_flop_per_s())

    def _copied_bytes_per_s(self) -> float:
        """Read and written by a copy."""
        source = torch.ones(self._scale.copy_bytes, dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        return 2 * self._scale.copy_bytes / self._seconds(lambda: target.copy_(source))

    def _multiplied_flop_per_s(self) -> float:
        side = self._scale.square
        left = torch.rand(side, side, device=self._device).to(self._scale.dtype)
        right, out = left.t().contiguous(), torch.empty_like(left)
        return 2 * side**3 / self._seconds(lambda: torch.mm(left, right, out=out))

    def _seconds(self, work: Callable[[], object], times: int = 5) -> float:
        work()
        taken = []
        for _ in range(times):
            self._wait()
            began_s = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - began_s)
        return median(taken)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def rows_of(case: str, cost: Cost, taken_s: list[float], limits: list[Limits], sheet: Limits | None) -> list[Row]:
    """`taken_s` and the device's limits, round by round."""
    rates = [1 / seconds for seconds in taken_s]
    measure = Measure("rate", "1/s", "higher")
    rows = [compare(case, measure, rates, "measured limits", [1 / cost.least_s(each) for each in limits])]
    if sheet is not None:
        with_goal = Measure("rate", "1/s", "higher", None, BANDWIDTH_GOAL if cost.by_memory(sheet) else FLOP_GOAL)
        rows.append(compare(case, with_goal, rates, "data sheet", [1 / cost.least_s(sheet)] * len(rates)))
    show(rows)
    return rows


async def bench(engine: NativeEngine, device: Device, scale: Scale, rounds: int) -> list[Row]:
    needs, driven = Needs.of(SHAPES[scale.shape], scale.dtype), Driven(engine)
    sheet = next((limits for name, limits in DATA_SHEETS.items() if name in device.name), None)
    kind = f"{scale.shape} {str(scale.dtype).removeprefix('torch.')}"
    rows: list[Row] = []
    for batch in BATCHES:
        taken_s, limits = [], []
        for number in range(-1, rounds):  # the first one warms
            limits += [device.limits()] * (number >= 0)
            step_s = await driven.seconds_of_step(batch, scale.context, scale.steps)
            taken_s += [step_s] * (number >= 0)
        cost = needs.of_step([scale.context + scale.steps // 2] * batch)
        rows += rows_of(f"{kind}, a decode step of {batch}, {scale.context} tokens each", cost, taken_s, limits, sheet)
    taken_s, limits = [], []
    for number in range(-1, rounds):
        limits += [device.limits()] * (number >= 0)
        prefill_s = await driven.seconds_of_prefill(scale.prompt)
        taken_s += [prefill_s] * (number >= 0)
    return rows + rows_of(f"{kind}, prefill of {scale.prompt}", needs.of_prompt(scale.prompt), taken_s, limits, sheet)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU, of the engine and of its limits")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scale = SCALES[torch.device(options.device).type]
    longest = max(scale.prompt, scale.context) + scale.steps
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), scale.shape, scale.dtype, options.device)
        tensors = TensorSettings(
            device=options.device, dtype=str(scale.dtype).removeprefix("torch."), max_model_len=longest,
            num_blocks=2 * max(BATCHES) * (scale.context + scale.steps) // 16 + longest // 16,
        )  # fmt: skip
        runner = TorchRunner.load(Path(name), tensors)
    engine = NativeEngine(runner, EngineSettings(max_batched_tokens=scale.prompt, max_running=max(BATCHES)))
    try:
        rows = await bench(engine, Device(options.device, scale), scale, options.rounds)
    finally:
        await engine.close()
    print(write("limits", rows, keep_other_cases=True))


if __name__ == "__main__":
    asyncio.run(main())
