"""Any parameters, any logits: the kept tokens are those of plain numpy, and a batch changes no draw."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_api.sampling import SamplingParams
from baton_engine.batch import Draw
from baton_engine.sampler import draw_tokens, kept_tokens
from support import reference_sampling as reference

VOCAB = 40
# Few distinct values, so that ties are common; small enough for float32 to hold every weight.
ROWS = st.lists(st.integers(-24, 24).map(lambda i: i / 4), min_size=VOCAB, max_size=VOCAB)
TOKEN_IDS = st.integers(0, VOCAB - 1)
FILTERS = st.builds(
    SamplingParams,
    top_p=st.sampled_from([1.0, 0.97, 0.9, 0.713, 0.31, 0.01]),
    top_k=st.sampled_from([-1, 0, 1, 2, 7, 39, 40, 1000]),
    min_p=st.sampled_from([0.0, 1e-6, 0.033, 0.21, 1.0]),
)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.4, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.31]),
    top_k=st.sampled_from([0, 1, 7]),
    min_p=st.sampled_from([0.0, 0.033]),
    presence_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.8, 0.5]),
    logit_bias=st.lists(st.tuples(TOKEN_IDS, st.sampled_from([-100.0, 1.5])), max_size=3, unique_by=lambda p: p[0]).map(
        tuple
    ),
    seed=st.integers(-(2**63), 2**63 - 1),
    min_tokens=st.sampled_from([0, 3]),
    top_logprobs=st.sampled_from([None, 0, 4]),
)
DRAWS = st.builds(
    Draw,
    params=PARAMS,
    choice=st.integers(0, 7),
    prompt=st.lists(TOKEN_IDS, max_size=5),
    output=st.lists(TOKEN_IDS, max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ROWS, FILTERS), min_size=1, max_size=4))
def test_the_kept_tokens_are_those_of_the_plain_way(cases: list[tuple[list[float], SamplingParams]]) -> None:
    """Where the nucleus ends within rounding of top_p, one token more or less is right too."""
    rows = torch.tensor([row for row, _ in cases])
    masks = kept_tokens(rows, [Draw(params, 0, (), ()) for _, params in cases])
    for mask, (row, params) in zip(masks, cases, strict=True):
        found = set(mask.nonzero().flatten().tolist())
        logits = np.array(row)
        near = [reference.kept(logits, _nudged(params, by)) for by in (-1e-6, 0.0, 1e-6)]
        assert found in near


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ROWS, DRAWS), min_size=2, max_size=6))
def test_a_draw_in_a_batch_is_the_draw_alone(cases: list[tuple[list[float], Draw]]) -> None:
    rows = torch.tensor([row for row, _ in cases])
    draws = [draw for _, draw in cases]
    eos = frozenset({0, 1})
    together = draw_tokens(rows, range(len(cases)), draws, eos)
    assert together == [draw_tokens(rows, [i], [draw], eos)[0] for i, draw in enumerate(draws)]


def _nudged(params: SamplingParams, by: float) -> SamplingParams:
    top_p = params.top_p if params.top_p == 1.0 else params.top_p + by
    return SamplingParams(top_p=top_p, top_k=params.top_k, min_p=params.min_p)
