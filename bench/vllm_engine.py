"""Runs in .venv-bench-engine: vLLM's offline engine, JSON lines in, one answer a line.

`vllm_engine.py MODEL DTYPE eager|compiled`.
"""

import json
import os
import sys
import time


def main(folder, dtype, mode):
    out = os.fdopen(os.dup(1), "w")  # vLLM prints to stdout as well
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=folder, skip_tokenizer_init=True, dtype=dtype, enforce_eager=mode == "eager", max_model_len=4096,
        block_size=32, max_num_batched_tokens=2048, max_num_seqs=64, enable_prefix_caching=False,
        disable_log_stats=True,
    )  # fmt: skip
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        sampling = SamplingParams(temperature=0.0, max_tokens=given["output"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in given["prompts"]]
        began_s = time.perf_counter()
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        wall_s = time.perf_counter() - began_s
        tokens = [list(answer.outputs[0].token_ids) for answer in answers]
        print(json.dumps({"wall_s": wall_s, "tokens": tokens}), file=out, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
