"""Baton's native engine as bench.engine drives it: JSON lines in, one answer a line.

`engine_baton MODEL DTYPE THREADS`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from baton_api.blocks import tenant_salt
from baton_api.sampling import SamplingParams
from baton_engine.engine import NativeEngine
from baton_engine.limits import EngineSettings
from baton_engine.nouns import EngineEvent, Failed, Finished, GenerateRequest, Leg, Sampled
from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings

SALT = tenant_salt(b"bench" * 8, "bench")


class Collected:
    """One request's tokens, when they came, and when it is over."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.at_s: list[float] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, event: EngineEvent) -> None:
        if isinstance(event, Sampled):
            self.tokens += [token.token_id for token in event.tokens]
            self.at_s.append(time.perf_counter())
        elif isinstance(event, Failed):
            self.over.set_exception(event.error)
        elif isinstance(event, Finished):
            self.over.set_result(None)


async def run(engine: NativeEngine, name: str, prompts: list[list[int]], output: int) -> dict[str, object]:
    sampling = SamplingParams(temperature=0.0, seed=0, max_tokens=output, ignore_eos=True)
    began_s = time.perf_counter()
    sinks = [Collected() for _ in prompts]
    for number, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        engine.submit(GenerateRequest(f"{name}-{number}", prompt, sampling, SALT, Leg.AGGREGATED), sink.take)
    await asyncio.gather(*(sink.over for sink in sinks))
    return {"wall_s": time.perf_counter() - began_s, "tokens": [sink.tokens for sink in sinks]}


async def main(folder: Path, dtype: str, threads: int) -> None:
    runner = TorchRunner.load(folder, TensorSettings(device="cpu", dtype=dtype, threads=threads, max_model_len=4096))
    engine = NativeEngine(runner, EngineSettings(max_batched_tokens=2048, max_running=64))
    print(json.dumps({"ready": True}), flush=True)
    for number, line in enumerate(iter(sys.stdin.readline, "")):
        given = json.loads(line)
        print(json.dumps(await run(engine, str(number), given["prompts"], given["output"])), flush=True)
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
