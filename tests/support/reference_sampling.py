"""Sampling written the plain way, one row at a time in numpy float64: what the batched sampler is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baton_api.sampling import SamplingParams

Row = NDArray[np.float64]


def adjusted(row: Row, params: SamplingParams, prompt: Sequence[int], output: Sequence[int], eos: set[int]) -> Row:
    """min_tokens, then logit_bias, then the repetition penalty, then frequency and presence."""
    logits = row.copy()
    if len(output) < params.min_tokens:
        for token_id in eos | set(params.stop_token_ids):
            logits[token_id] = -np.inf
    for token_id, bias in params.logit_bias:
        logits[token_id] += bias
    for token_id in {*prompt, *output}:
        positive = logits[token_id] > 0
        logits[token_id] *= 1 / params.repetition_penalty if positive else params.repetition_penalty
    for token_id, count in Counter(output).items():
        logits[token_id] -= params.frequency_penalty * count + params.presence_penalty
    return logits


def softmax(logits: Row) -> Row:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def kept(logits: Row, params: SamplingParams) -> set[int]:
    """min_p, then top_k, then top_p of the rest; among equals the lower id ranks first."""
    probabilities = softmax(logits)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    ranked = [i for i in ranked if probabilities[i] >= params.min_p * probabilities.max()]
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    if params.top_p == 1.0:
        return set(ranked)
    mass, total, nucleus = 0.0, probabilities[ranked].sum(), set()
    for i in ranked:
        if mass >= params.top_p * total:
            break
        nucleus.add(i)
        mass += probabilities[i]
    return nucleus


def distribution(
    row: Row,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos: set[int] | None = None,
) -> Row:
    """The probability of each token to be drawn (temperature above 0)."""
    logits = adjusted(row, params, prompt, output, eos or set()) / params.temperature
    mask = np.full(len(row), -np.inf)
    mask[list(kept(logits, params))] = 0.0
    return softmax(logits + mask)
