"""What the engine accepts and when a choice is over."""

from dataclasses import replace

import pytest

from baton_api.errors import BadRequest, ContextLengthExceeded, SettingError
from baton_api.sampling import SamplingParams
from baton_api.settings import parse
from baton_engine.limits import EngineSettings, Limits
from baton_engine.nouns import (
    GenerateRequest,
)
from support.engine_bench import GREEDY, SALT

LIMITS = Limits(max_model_tokens=20, max_running=4, vocab_size=50, eos_token_ids=frozenset({0}))
FREE = SamplingParams(seed=0)


@pytest.mark.parametrize(
    ("prompt", "changes", "error", "param", "words"),
    [
        ([], {}, BadRequest, "prompt", "no tokens"),
        ([1] * 20, {"max_tokens": None}, ContextLengthExceeded, "prompt", "20 tokens. However, you requested 21"),
        ([1] * 13, {}, ContextLengthExceeded, "max_tokens", r"13 in the prompt, 8 in the completion"),
        ([1], {"n": 5}, BadRequest, "n", "n is 5; this engine runs 4"),
        ([1, 50], {}, BadRequest, "prompt", r"token id 50 is outside \[0, 50\)"),
        ([-1, 5], {}, BadRequest, "prompt", "token id -1"),
        ([1], {"logit_bias": ((3, 1.0), (99, 5.0))}, BadRequest, "logit_bias", "token id 99"),
        ([1], {"stop_token_ids": (50,)}, BadRequest, "stop_token_ids", "token id 50"),
    ],
)
def test_a_request_that_can_never_run_is_refused_with_counts(
    prompt: list[int], changes: dict[str, object], error: type[BadRequest], param: str, words: str
) -> None:
    request = GenerateRequest("r", prompt, replace(GREEDY, **changes), SALT)  # type: ignore[arg-type]
    with pytest.raises(error, match=words) as caught:
        LIMITS.check(request)
    assert caught.value.param == param


def test_a_request_that_just_fits_is_accepted() -> None:
    LIMITS.check(GenerateRequest("r", [1] * 12, GREEDY, SALT))
    LIMITS.check(GenerateRequest("r", [1] * 19, replace(GREEDY, max_tokens=None), SALT))


@pytest.mark.parametrize(
    ("output", "sampling", "reason"),
    [
        ([5], FREE, None),
        ([0], FREE, "stop"),
        ([0], replace(FREE, ignore_eos=True), None),
        ([0], replace(FREE, ignore_eos=True, stop_token_ids=(0,)), "stop"),
        ([7], replace(FREE, stop_token_ids=(7,)), "stop"),
        ([5, 0], replace(FREE, min_tokens=3), None),
        ([5, 5, 0], replace(FREE, min_tokens=3), "stop"),
        ([5, 5], replace(FREE, max_tokens=2), "length"),
        ([5, 0], replace(FREE, max_tokens=2), "stop"),
        ([5] * 10, FREE, "length"),
        ([5] * 9, FREE, None),
        ([5] * 10, replace(FREE, min_tokens=15), "length"),
    ],
)
def test_a_choice_is_over_by_these_rules(output: list[int], sampling: SamplingParams, reason: str | None) -> None:
    assert LIMITS.finish_reason(10, output, sampling) == reason


def test_a_budget_below_the_running_limit_stops_the_start() -> None:
    with pytest.raises(SettingError, match=r"engine.max_batched_tokens: 100 is below engine.max_running \(256\)"):
        EngineSettings(max_batched_tokens=100)


def test_settings_are_read_as_everywhere() -> None:
    assert parse(EngineSettings, {"max_running": 4}) == EngineSettings(max_running=4)
    with pytest.raises(SettingError, match="max_running: 0 is below 1; use 1 or more"):
        parse(EngineSettings, {"max_running": 0})
