"""Draws tokens from logits.

Order as vLLM's V1 sampler: min_tokens, logit_bias, penalties (repetition, then frequency and presence), temperature,
min_p, top_k, top_p, draw. Log probabilities are of the raw logits.

A draw depends on (seed, choice, position) and the row's logits alone, by the Gumbel-max trick (arXiv:2110.01515): every
token gets a Gumbel number by a keyed hash of its id, and the largest sum of logit and number wins. The last bits of
logits differ with the batch; a draw then changes only when the two largest sums are that close. Looking one uniform
number up in the cumulative distribution changes it at the edge of any token: about 3e-5 a draw, seen in tests.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baton_api.errors import InternalError
from baton_api.sampling import SampledToken, SamplingParams

from .batch import Draw

CACHED_ELEMENTS = 1 << 16
"""On a CPU, so many logits are sampled at a time: their temporaries stay in its cache (twice as fast as 2^20)."""
MOST_EXPONENTIAL = 30.0
"""Instead of infinity, where a uniform number rounds up to 1."""
FIRST_CANDIDATES = 512
"""How many of the likeliest tokens are sorted at first; all of them only when these do not hold top_p or min_p."""


def draw_tokens(logits: Tensor, rows: Sequence[int], draws: Sequence[Draw], eos: frozenset[int]) -> list[SampledToken]:
    """One token per draw; `draws[i]` is from `logits[rows[i]]`, logits [rows, vocab_size] float32.

    Raises InternalError when the logits are not finite: such a step has no tokens.
    """
    if all(is_plain(draw.params) for draw in draws):
        tokens = _argmax(logits)
        return [SampledToken(tokens[row]) for row in rows]
    _argmax(logits)
    raw = logits[torch.tensor(rows, device=logits.device)]
    token_ids = _choose(_adjusted(raw, draws, eos), draws)
    return _with_logprobs(raw, draws, token_ids)


def is_plain(params: SamplingParams) -> bool:
    """Greedy, nothing changes the logits, no log probabilities: the argmax of the raw row."""
    return params.greedy and params.top_logprobs is None and not _changes_logits(params)


def gumbels(keys: Sequence[tuple[int, int]], vocab: int, device: torch.device) -> Tensor:
    """[keys, vocab] float32: a Gumbel(0, 1) number per key and token id, the same on any machine but for the last bits
    of two logarithms.

    The integer hash is two rounds of multiply and xor-shift (the constants are of the "lowbias32" hash, by the Hash
    Prospector search) in wrapping int32, with a word of the key added in front of each.
    """
    words = torch.tensor(keys, dtype=torch.int32, device=device)
    bits = torch.arange(vocab, dtype=torch.int32, device=device) * _signed(0x9E3779B9) ^ words[:, :1]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits ^= (bits >> shift) & (0xFFFFFFFF >> shift)
        bits *= _signed(factor)
        bits += words[:, 1:]
    bits ^= (bits >> 16) & 0xFFFF
    uniform = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)  # float: finest next to 0, where the winners are
    return uniform.neg_().log1p_().neg_().clamp_(max=MOST_EXPONENTIAL).log_().neg_()


def draw_key(seed: int, choice: int, position: int) -> tuple[int, int]:
    """Two signed 32-bit words that depend on the arguments only, on any machine."""
    packed = struct.pack("<qqq", seed, choice, position)
    first, second = struct.unpack("<ii", hashlib.blake2b(packed, digest_size=8).digest())
    return first, second


def _signed(word: int) -> int:
    """A 32-bit word as the int32 of the same bits."""
    return word - (1 << 32) if word >= 1 << 31 else word


def kept_tokens(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """[draws, vocab_size] bool: what min_p, then top_k, then top_p leave of `logits` (after temperature).

    All three keep the likeliest tokens, so each row is decided by how many it keeps. Among equal logits the lower
    token id ranks first.
    """
    vocab = logits.shape[1]
    totals = _weights(logits, logits.amax(1, keepdim=True)).sum(1, dtype=torch.float64)
    width = min(vocab, max(FIRST_CANDIDATES, *(_top_k(draw.params, 0) for draw in draws)))
    ranked = _largest(logits, width)
    counts = _kept_counts(ranked, totals, draws, vocab)
    if width < vocab and bool((counts > width).any()):
        ranked = _largest(logits, vocab)
        counts = _kept_counts(ranked, totals, draws, vocab)
    last = ranked.gather(1, counts[:, None] - 1)
    kept = logits >= last
    return kept if bool((kept.sum(1) == counts).all()) else _without_late_ties(logits, last, counts)


def _largest(logits: Tensor, width: int) -> Tensor:
    """[rows, width]: the largest logits of each row, falling. On a CPU numpy is 7 to 16 times faster than torch."""
    if logits.device.type != "cpu":
        return logits.topk(width, dim=1).values
    first = logits.shape[1] - width
    rows = logits.numpy()
    some = np.partition(rows, first, axis=1)[:, first:] if first else rows
    return torch.from_numpy(np.sort(some, axis=1)[:, ::-1].copy())


def _without_late_ties(logits: Tensor, last: Tensor, counts: Tensor) -> Tensor:
    """The `counts` largest of each row, where more than that are at least `last`: of its equals, the lowest ids."""
    above, equal = logits > last, logits == last
    places = counts[:, None] - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= places))


def _best(logits: Tensor) -> Tensor:
    """argmax of each row. On a CPU by numpy, whose argmax is vectorised: 13 times faster than torch's."""
    return torch.from_numpy(logits.numpy().argmax(1)) if logits.device.type == "cpu" else logits.argmax(1)


def _argmax(logits: Tensor) -> list[int]:
    """argmax takes a NaN for the maximum, so the value found tells whether the row is usable."""
    best = _best(logits)
    if not bool(logits.gather(1, best[:, None]).isfinite().all()):
        raise InternalError("the model computed logits that are not finite")
    tokens: list[int] = best.tolist()
    return tokens


def _changes_logits(params: SamplingParams) -> bool:
    return bool(params.logit_bias or params.min_tokens or _penalises(params))


def _penalises(params: SamplingParams) -> bool:
    return params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1


def _adjusted(raw: Tensor, draws: Sequence[Draw], eos: frozenset[int]) -> Tensor:
    if not any(_changes_logits(draw.params) for draw in draws):
        return raw
    logits = raw.clone()
    for row, draw in zip(logits, draws, strict=True):
        params = draw.params
        if len(draw.output) < params.min_tokens:
            row[_ids(row, eos.union(params.stop_token_ids))] = -math.inf
        if params.logit_bias:
            bias = {token_id: value for token_id, value in params.logit_bias if token_id < row.shape[0]}
            row[_ids(row, bias)] += torch.tensor(list(bias.values()), device=row.device)
        if _penalises(params):
            _penalise(row, draw)
    return logits


def _penalise(row: Tensor, draw: Draw) -> None:
    """Repetition: arXiv:1909.05858, over prompt and output; frequency and presence: OpenAI, over the output."""
    params = draw.params
    if params.repetition_penalty != 1:
        seen = _in_prompt(row, draw) | (_output_counts(row, draw) > 0)
        penalised = torch.where(row > 0, row / params.repetition_penalty, row * params.repetition_penalty)
        row.copy_(torch.where(seen, penalised, row))
    if draw.output:
        counts = _output_counts(row, draw)
        row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)


def _in_prompt(row: Tensor, draw: Draw) -> Tensor:
    """[vocab] bool, made at a request's first draw."""
    seen = draw.prompt_memory.value
    if not isinstance(seen, Tensor):
        seen = torch.zeros_like(row, dtype=torch.bool)
        seen[_ids(row, draw.prompt)] = True
        draw.prompt_memory.value = seen
    return seen


@dataclass(slots=True)
class _Counted:
    """How often each token, [vocab] int64, is among the first `length` of an output."""

    counts: Tensor
    length: int = 0


def _output_counts(row: Tensor, draw: Draw) -> Tensor:
    """[vocab] int64: kept from draw to draw, the tokens since then added."""
    counted = draw.output_memory.value
    if not isinstance(counted, _Counted):
        counted = draw.output_memory.value = _Counted(torch.zeros_like(row, dtype=torch.int64))
    if counted.length < len(draw.output):
        added = _ids(row, draw.output[counted.length :])
        counted.counts.index_add_(0, added, torch.ones_like(added))
        counted.length = len(draw.output)
    return counted.counts


def _ids(row: Tensor, token_ids: object) -> Tensor:
    """Ids outside the vocabulary are dropped: a request is checked when it comes, and may not fail a step of others."""
    known = [token_id for token_id in token_ids if 0 <= token_id < row.shape[0]]  # type: ignore[attr-defined]
    return torch.tensor(known, dtype=torch.int64, device=row.device)


def _choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    chosen: list[int] = _best(logits).tolist()
    random = [i for i, draw in enumerate(draws) if not draw.params.greedy]
    step = max(1, CACHED_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(draws)
    for begin in range(0, len(random), step):
        some = random[begin : begin + step]
        for i, token_id in zip(some, _sample(logits[some], [draws[i] for i in some]), strict=True):
            chosen[i] = token_id
    return chosen


def _sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Gumbel-max over what the filters leave."""
    temperatures = torch.tensor([[draw.params.temperature] for draw in draws], device=logits.device)
    scores = (logits - logits.amax(1, keepdim=True)) / temperatures
    filtered = [i for i, draw in enumerate(draws) if _filters(draw.params)]
    if filtered:
        some = scores[filtered]
        scores[filtered] = some.masked_fill_(~kept_tokens(some, [draws[i] for i in filtered]), -math.inf)
    scores += gumbels([_key_of(draw) for draw in draws], logits.shape[1], logits.device)
    found = _best(scores)[:, None]
    # A row whose scores are no numbers takes its likeliest token: it may not fail the others.
    usable = scores.gather(1, found).isfinite()
    tokens: list[int] = torch.where(usable, found, _best(logits)[:, None]).flatten().tolist()
    return tokens


def _key_of(draw: Draw) -> tuple[int, int]:
    if draw.params.seed is None:
        raise InternalError("a request reached the sampler without a seed")
    return draw_key(draw.params.seed, draw.choice, len(draw.output))


def _filters(params: SamplingParams) -> bool:
    return params.top_p < 1 or params.top_k > 0 or params.min_p > 0


def _top_k(params: SamplingParams, otherwise: int) -> int:
    return params.top_k if params.top_k > 0 else otherwise


def _weights(logits: Tensor, best: Tensor) -> Tensor:
    """Probabilities but for a factor; the likeliest token has 1."""
    return (logits - best).exp()


def _kept_counts(ranked: Tensor, totals: Tensor, draws: Sequence[Draw], vocab: int) -> Tensor:
    """How many of the likeliest tokens each row keeps, [rows]; `ranked` [rows, width] are the largest logits, falling.

    More than `width` means: at least that many, the exact number needs a wider `ranked`. `totals` [rows] float64 is
    the weight of the whole vocabulary.
    """
    device, width = ranked.device, ranked.shape[1]
    weights = _weights(ranked, ranked[:, :1])
    cumulative = weights.cumsum(1, dtype=torch.float64)
    top_k = torch.tensor([min(vocab, _top_k(draw.params, vocab)) for draw in draws], device=device)
    min_p = torch.tensor([draw.params.min_p for draw in draws], dtype=torch.float64, device=device)
    top_p = torch.tensor([draw.params.top_p for draw in draws], dtype=torch.float64, device=device)
    by_min_p = (weights >= min_p[:, None]).sum(1)
    by_min_p = torch.where(by_min_p == width, vocab, by_min_p)
    most = torch.minimum(top_k, by_min_p)
    mass = torch.where(most > width, totals, cumulative.gather(1, most.clamp(max=width)[:, None] - 1)[:, 0])
    by_top_p = (cumulative < (top_p * mass)[:, None]).sum(1) + 1
    mass_is_known = (most <= width) | (min_p == 0)
    return torch.where((top_p < 1) & mass_is_known, torch.minimum(most, by_top_p), most)


def _with_logprobs(raw: Tensor, draws: Sequence[Draw], token_ids: list[int]) -> list[SampledToken]:
    asked = [i for i, draw in enumerate(draws) if draw.params.top_logprobs is not None]
    tokens = [SampledToken(token_id) for token_id in token_ids]
    if not asked:
        return tokens
    logprobs = raw[asked].log_softmax(1)
    width = max(draws[i].params.top_logprobs or 0 for i in asked)
    top = logprobs.topk(min(width, raw.shape[1]), dim=1)
    values, ids = top.values.tolist(), top.indices.tolist()
    own = logprobs.gather(1, torch.tensor([[token_ids[i]] for i in asked], device=raw.device)).flatten().tolist()
    for place, i in enumerate(asked):
        count = draws[i].params.top_logprobs
        pairs = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        tokens[i] = SampledToken(token_ids[i], own[place], pairs)
    return tokens
