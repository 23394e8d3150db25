"""The sampler, row by row against plain numpy, and what makes a draw repeatable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from baton_api.errors import InternalError
from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.batch import Draw, Memory
from baton_engine.sampler import _adjusted, _sample, draw_key, draw_tokens, gumbels, kept_tokens
from support import reference_sampling as reference

VOCAB = 50
EOS = frozenset({2, 3})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits_of(rows: int = 1, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return 3.0 * torch.randn((rows, vocab), generator=torch.Generator().manual_seed(seed))


def draw_one(
    row: torch.Tensor, params: SamplingParams, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()
) -> int:
    return draw_tokens(row, [0], [Draw(params, 0, prompt, output)], EOS)[0].token_id


GREEDY_CASES = {
    "plain": SamplingParams(temperature=0),
    "a bias lifts a token": SamplingParams(temperature=0, logit_bias=((7, 100.0),)),
    "a bias bans the best": SamplingParams(temperature=0, logit_bias=tuple((i, -100.0) for i in range(0, 50, 2))),
    "presence": SamplingParams(temperature=0, presence_penalty=2.0),
    "frequency": SamplingParams(temperature=0, frequency_penalty=2.0),
    "negative penalties": SamplingParams(temperature=0, frequency_penalty=-2.0, presence_penalty=-1.5),
    "repetition": SamplingParams(temperature=0, repetition_penalty=5.0),
    "repetition rewarded": SamplingParams(temperature=0, repetition_penalty=0.2),
    "min_tokens": SamplingParams(temperature=0, min_tokens=9, stop_token_ids=(10, 11, 12)),
    "all of them": SamplingParams(
        temperature=0,
        presence_penalty=1.0,
        frequency_penalty=0.5,
        repetition_penalty=1.3,
        logit_bias=((4, 3.0), (5, -3.0)),
        min_tokens=20,
        stop_token_ids=(9,),
    ),
}


@pytest.mark.parametrize("name", GREEDY_CASES)
@pytest.mark.parametrize("seed", range(8))
def test_a_greedy_draw_is_the_argmax_of_the_adjusted_row(name: str, seed: int) -> None:
    params, row = GREEDY_CASES[name], logits_of(seed=seed)
    ranked = row[0].argsort(descending=True).tolist()
    prompt, output = tuple(ranked[3:9]), (ranked[0], ranked[0], ranked[1], ranked[20])
    expected = reference.adjusted(row[0].double().numpy(), params, prompt, output, set(EOS)).argmax()
    assert draw_one(row, params, prompt, output) == expected


@pytest.mark.parametrize("token_id", [*sorted(EOS), 11])
def test_min_tokens_holds_back_eos_and_stop_tokens_until_there_are_enough(token_id: int) -> None:
    row = logits_of()
    row[0, token_id] = 50.0
    params = SamplingParams(temperature=0, min_tokens=3, stop_token_ids=(11,))
    assert draw_one(row, params, output=(5, 5)) != token_id
    assert draw_one(row, params, output=(5, 5, 5)) == token_id


RANDOM_CASES = {
    "temperature 1": SamplingParams(),
    "hot": SamplingParams(temperature=2.0),
    "cold": SamplingParams(temperature=0.3),
    "top_k": SamplingParams(top_k=5, temperature=2.0),
    "top_p": SamplingParams(top_p=0.7, temperature=1.5),
    "min_p": SamplingParams(min_p=0.1, temperature=2.0),
    "top_k, then top_p of what is left": SamplingParams(top_k=6, top_p=0.8, temperature=2.0),
    "all filters, penalties and a bias": SamplingParams(
        min_p=0.01, top_k=20, top_p=0.95, temperature=1.7, frequency_penalty=1.0, logit_bias=((1, 4.0),)
    ),
}


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_draws_follow_the_reference_distribution(name: str) -> None:
    """A chi-squared test at about 5 sigma over 4000 seeds; tokens outside the kept set are never drawn."""
    params, row, output = RANDOM_CASES[name], logits_of(seed=4), (1, 1, 9)
    expected = 4000 * reference.distribution(row[0].double().numpy(), params, output=output)
    draws = [Draw(_seeded(params, seed), 0, (), output) for seed in range(4000)]
    counts = np.bincount([t.token_id for t in draw_tokens(row, [0] * 4000, draws, EOS)], minlength=VOCAB)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    freedom = int(common.sum())
    chi_squared = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=1),
        SamplingParams(temperature=1e-9),
        SamplingParams(temperature=1e-50),
        SamplingParams(temperature=2e-5),
        SamplingParams(top_p=1e-9),
    ],
)
def test_the_narrowest_settings_draw_the_likeliest_token(params: SamplingParams) -> None:
    row = logits_of(seed=3)
    assert {draw_one(row, _seeded(params, seed)) for seed in range(50)} == {int(row.argmax())}


def test_among_equal_logits_top_k_keeps_the_lower_ids() -> None:
    row = torch.zeros((1, VOCAB))
    assert {draw_one(row, SamplingParams(top_k=3, seed=seed)) for seed in range(60)} == {0, 1, 2}


def test_a_vocabulary_wider_than_the_first_candidates_is_filtered_alike() -> None:
    """Flat rows whose nucleus does not fit into the candidates sorted at first."""
    row = 0.01 * logits_of(seed=5, vocab=5000)
    for params in (SamplingParams(top_p=0.9), SamplingParams(min_p=0.9), SamplingParams(min_p=0.85, top_p=0.05)):
        found = kept_tokens(row, [Draw(params, 0, (), ())])[0].nonzero().flatten().tolist()
        assert set(found) == reference.kept(row[0].double().numpy(), params)
        assert len(found) > 150


def test_a_draw_depends_on_seed_choice_and_position_only() -> None:
    row = torch.zeros((1, 1000))
    first = Draw(SamplingParams(seed=1), 0, (1, 2), (3,))
    others = {
        "seed": Draw(SamplingParams(seed=2), 0, (1, 2), (3,)),
        "choice": Draw(SamplingParams(seed=1), 1, (1, 2), (3,)),
        "position": Draw(SamplingParams(seed=1), 0, (1, 2), (3, 4)),
    }
    token = draw_tokens(row, [0], [first], EOS)
    assert token == draw_tokens(row, [0], [Draw(SamplingParams(seed=1), 0, (9,), (8,))], EOS)
    for name, other in others.items():
        assert draw_tokens(row, [0], [other], EOS) != token, name


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, 0, 0), (112113195, 673204141)),
        ((1, 0, 0), (-1734357103, 1450673914)),
        ((-(2**63), 7, 123456), (-1519981850, 1187855042)),
    ],
)
def test_the_random_numbers_are_the_same_in_every_process_and_version(
    arguments: tuple[int, int, int], key: tuple[int, int]
) -> None:
    assert draw_key(*arguments) == key


def test_gumbel_numbers_of_a_key_are_known() -> None:
    numbers = gumbels([(1, -2), (0, 0)], 100_000, CPU)
    assert numbers[:, [0, 1, 99_999]].flatten().tolist() == pytest.approx(
        [-0.774798, 0.814034, 1.498051, 22.180710, 4.157149, 0.167559], abs=1e-5
    )


def test_gumbel_numbers_are_gumbel_distributed_and_independent() -> None:
    """Kolmogorov-Smirnov at about 5 sigma, along ids and along keys; no two of 50 ids, nor of 50 keys, go together."""
    numbers = gumbels([draw_key(seed, 0, position) for seed in range(20) for position in range(100)], 2000, CPU).numpy()
    assert np.isfinite(numbers).all()
    for some in (numbers[7], numbers[:, 7], numbers.flatten()):
        shares = np.sort(np.exp(-np.exp(-some.astype(np.float64))))
        even = (np.arange(len(shares)) + 0.5) / len(shares)
        assert np.abs(shares - even).max() < 2.5 / len(shares) ** 0.5
    for some in (numbers[:50], numbers[:, :50].T):
        together = np.corrcoef(some)
        np.fill_diagonal(together, 0.0)
        assert np.abs(together).max() < 6 / 2000**0.5


def test_the_last_bits_of_logits_change_a_draw_only_when_two_scores_nearly_tie() -> None:
    """Noise of 1e-5 on rows of 640 tokens: of 20,000 draws at most 12 change (measured over 200,000: 2)."""
    rows = 20_000
    row = 2.0 * torch.randn((1, 640), generator=torch.Generator().manual_seed(1))
    noise = 1e-5 * (2 * torch.rand((rows, 640), generator=torch.Generator().manual_seed(2)) - 1)
    draws = [Draw(SamplingParams(temperature=0.8, seed=seed), 0, (), ()) for seed in range(rows)]
    exact, shaken = draw_tokens(row, [0] * rows, draws, EOS), draw_tokens(row + noise, range(rows), draws, EOS)
    assert sum(a != b for a, b in zip(exact, shaken, strict=True)) <= 12


def test_logprobs_are_of_the_raw_row_whatever_changes_the_draw() -> None:
    row = logits_of(seed=6)
    params = SamplingParams(temperature=0, logit_bias=((7, 100.0),), repetition_penalty=2.0, top_logprobs=3)
    raw = row[0].double().log_softmax(0)
    token = draw_tokens(row, [0], [Draw(params, 0, (1,), (2,))], EOS)[0]
    assert token.token_id == 7
    assert token.logprob == pytest.approx(float(raw[7]), abs=1e-5)
    best = raw.topk(3)
    assert [token_id for token_id, _ in token.top] == best.indices.tolist()
    assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_each_draw_has_the_logprobs_it_asked_for() -> None:
    row = logits_of()
    asked: list[int | None] = [None, 0, 5, 20]
    draws = [Draw(SamplingParams(temperature=0, top_logprobs=count), 0, (), ()) for count in asked]
    tokens = draw_tokens(row, [0] * 4, draws, EOS)
    assert tokens[0] == SampledToken(tokens[1].token_id)
    assert [len(token.top) for token in tokens] == [0, 0, 5, 20]
    assert {token.logprob is None for token in tokens[1:]} == {False}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(seed=1)])
def test_logits_that_are_not_finite_are_an_error(value: float, params: SamplingParams) -> None:
    rows = logits_of(2)
    rows[1, 5] = value
    with pytest.raises(InternalError, match="not finite"):
        draw_tokens(rows, [0, 1], [Draw(params, 0, (), ())] * 2, EOS)


def test_a_random_draw_without_a_seed_is_an_error() -> None:
    with pytest.raises(InternalError, match="seed"):
        draw_one(logits_of(), SamplingParams())


def test_ids_outside_the_vocabulary_change_nothing() -> None:
    row = logits_of()
    params = SamplingParams(
        temperature=0, logit_bias=((VOCAB, 100.0),), stop_token_ids=(VOCAB + 5, -1), min_tokens=4, presence_penalty=0.1
    )
    row[0, 2:4] = -50.0
    assert draw_one(row, params, output=(VOCAB + 1,)) == int(row.argmax())


def _seeded(params: SamplingParams, seed: int) -> SamplingParams:
    return dataclasses.replace(params, seed=seed)


@pytest.mark.parametrize("ruined", [float("-inf"), float("nan")])
def test_a_row_whose_distribution_is_ruined_costs_no_other_row_its_token(ruined: float) -> None:
    """Nothing a client may send gets here; the sampler holds all the same."""
    good = logits_of(seed=4).reshape(1, -1)
    bad = torch.full_like(good, ruined)
    params = _seeded(SamplingParams(temperature=1.0), 9)
    alone = _sample(good, [Draw(params, 0, (), ())])
    together = _sample(torch.cat([bad, good]), [Draw(params, 0, (), ())] * 2)
    assert together[1:] == alone
    assert 0 <= together[0] < good.shape[1]


def penalised_anew(row: torch.Tensor, params: SamplingParams, prompt: list[int], output: list[int]) -> torch.Tensor:
    """The penalties with nothing kept between draws, as they were: all ids of prompt and output, each time."""
    row = row.clone()
    known = [i for i in {*prompt, *output} if 0 <= i < row.shape[0]]
    scores = row[known]
    row[known] = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
    if output:
        ids = torch.tensor([i for i in output if 0 <= i < row.shape[0]], dtype=torch.int64)
        counts = torch.bincount(ids, minlength=row.shape[0])
        row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    return row


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1, repetition_penalty=1.3),
        SamplingParams(seed=1, repetition_penalty=0.7),
        SamplingParams(seed=1, frequency_penalty=0.3),
        SamplingParams(seed=1, presence_penalty=-0.9),
        SamplingParams(seed=1, repetition_penalty=1.1, frequency_penalty=-0.3, presence_penalty=0.7),
    ],
)
def test_penalties_kept_from_draw_to_draw_are_to_the_bit_those_made_anew(params: SamplingParams) -> None:
    prompt, outputs = [3, 3, 7, VOCAB + 5, -1], [[], [7, 9]]  # the second is resumed with two tokens
    in_prompt, counted = Memory(), [Memory(), Memory()]
    for position in range(60):
        rows = logits_of(2, seed=position)
        draws = [Draw(params, i, prompt, output, in_prompt, counted[i]) for i, output in enumerate(outputs)]
        expected = torch.stack([penalised_anew(rows[i], params, prompt, outputs[i]) for i in range(2)])
        assert torch.equal(_adjusted(rows, draws, EOS), expected)
        assert torch.equal(_adjusted(rows, draws, EOS), expected), "a step that is tried again counts nothing twice"
        drawn = draw_tokens(rows, [0, 1], draws, EOS)
        for output, token in zip(outputs, drawn, strict=True):
            output.append(token.token_id if position % 7 else VOCAB + 1)
