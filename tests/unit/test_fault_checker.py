"""The judge is judged: every way a round can be wrong is found, a good round passes, figures are what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from faults import figures
from faults.checker import check
from faults.story import Figure, Held, Round, Said, Seen

WHOLE = Held(free_blocks=9, total_blocks=9, sockets=5, fds=20, threads=8, epoch="a")


def seen(**changes: Any) -> Seen:
    """A complete answer, but for `changes`."""
    good = Seen(0, 0, began_s=10.0, deadline_s=20.0, status=200, tokens=[5, 6, 7, 8], times_s=[11, 12, 13, 14])
    return replace(replace(good, dones=1, ended_s=14.5), **changes)


REFERENCE = [seen(said={0: Said([5, 6, 7, 8], "abcd", [("a", -1.0)], "length"), 1: Said([9], "x", [], "stop")})]


def hard(first: Said, second: Said | None = None, **changes: Any) -> Seen:
    return seen(said={0: first, **({} if second is None else {1: second})}, tokens=first.tokens, **changes)


GOOD = Said([5, 6, 7, 8], "abcd", [("a", -1.00001)], "length")
OTHER = Said([9], "x", [], "stop")


def round_of(*answers: Seen, **changes: Any) -> Round:
    complete = [answer for answer in answers if answer.ending == "complete"]
    counted = {
        "gateway requests": len(answers),
        "gateway ok": len(complete),
        "gateway tokens": sum(answer.received for answer in complete),
        "gateway in_flight": 0,
    }
    held = {"prefill-0": WHOLE, "gateway": Held(sockets=9, fds=9, threads=2)}
    good = Round(1, list(answers), {"kill": 12.5}, held, dict(held), counted, quiet_s=15.0)
    return replace(good, **changes)


def test_a_good_round_passes() -> None:
    left = hard(Said([5], "a"), dones=0, left=True)
    assert check(round_of(hard(GOOD, OTHER), left), REFERENCE, may_break=False, streams=4) == []


BAD_ANSWERS = {
    "never ended": seen(ended_s=None),
    "ended without an end: status 200, 2 tokens": seen(dones=0, tokens=[5, 6]),
    "ended 2 times": seen(dones=2),
    "events after its end": seen(after_end=1),
    "failed (502) after 1 tokens": seen(dones=0, errors=["502"], tokens=[5]),
    "5.0 s after its deadline": seen(ended_s=25.0),
    "wrong token at 2 of 4": seen(tokens=[5, 6, 9, 8]),
    "wrong token at 4 of 5": seen(tokens=[5, 6, 7, 8, 8]),
    "wrong token at 0 of 1": seen(dones=0, errors=["502"], tokens=[6]),
    "complete with 3 of 4 tokens": seen(tokens=[5, 6, 7]),
    "choice 0: wrong token text": hard(replace(GOOD, text="abxd"), OTHER),
    "choice 0: wrong token log probabilities": hard(replace(GOOD, logprobs=[("a", -1.1)]), OTHER),
    "choice 0: complete with text of 4, stop": hard(replace(GOOD, finish="stop"), OTHER),
    "choice 1: wrong token at 0 of 1": hard(GOOD, replace(OTHER, tokens=[8])),
    "choice 1: complete with 0 of 1 tokens": hard(GOOD, replace(OTHER, tokens=[])),
    "complete with 1 of 2 choices": hard(GOOD),
}


@pytest.mark.parametrize("told", BAD_ANSWERS)
def test_a_wrong_answer_is_found(told: str) -> None:
    found = check(round_of(BAD_ANSWERS[told]), REFERENCE, may_break=False, streams=4)
    assert any(told in line for line in found), found


def test_an_explicit_error_passes_only_where_the_story_allows_it() -> None:
    broken = round_of(seen(dones=0, errors=["connection_lost"], tokens=[5, 6]))
    assert check(broken, REFERENCE, may_break=True, streams=4) == []
    assert len(check(broken, REFERENCE, may_break=False, streams=4)) == 1


BAD_ENDS = {
    "prefill-0 holds 2 of 9 blocks": {"after": {"prefill-0": replace(WHOLE, free_blocks=7)}},
    "prefill-0 has 1 running, 0 waiting, 3 leases": {"after": {"prefill-0": replace(WHOLE, running=1, leases=3)}},
    "prefill-0 has 200 sockets, had 5": {"after": {"prefill-0": replace(WHOLE, sockets=200)}},
    "prefill-0 has 20 descriptors that are no sockets, had 15": {"after": {"prefill-0": replace(WHOLE, fds=25)}},
    "prefill-0 has 15 threads, had 8": {"after": {"prefill-0": replace(WHOLE, threads=15)}},
    "did not get quiet": {"quiet_s": None},
    "decode-0 was to fail a step and did not": {"unfired": ["decode-0"]},
    "the gateway counted 7 requests of 1": {"counted": "gateway requests"},
    "the gateway counted 7 complete answers of 1": {"counted": "gateway ok"},
    "the gateway counted 7 tokens, clients received 4": {"counted": "gateway tokens"},
    "the gateway counts 7 requests in flight": {"counted": "gateway in_flight"},
}


@pytest.mark.parametrize("told", BAD_ENDS)
def test_what_is_left_over_or_miscounted_is_found(told: str) -> None:
    good, changes = round_of(seen()), BAD_ENDS[told]
    if isinstance(name := changes.get("counted"), str):
        changes = {"counted": {**good.counted, name: 7}}
    found = check(replace(good, **changes), REFERENCE, may_break=False, streams=4)
    assert any(told in line for line in found), found


def test_idle_connections_are_no_leak() -> None:
    after = {"prefill-0": replace(WHOLE, sockets=5 + 16 + 4, fds=20 + 16 + 4)}
    assert check(round_of(hard(GOOD, OTHER), after=after), REFERENCE, may_break=False, streams=4) == []


def test_a_restarted_process_starts_a_baseline_of_its_own() -> None:
    after = {"prefill-0": replace(WHOLE, epoch="b", threads=90)}
    assert check(round_of(hard(GOOD, OTHER), after=after), REFERENCE, may_break=False, streams=4) == []


def test_figures_are_taken_around_the_fault() -> None:
    healthy = seen(ended_s=12.2, times_s=[11, 12, 12.1, 12.2])
    through = seen(times_s=[11, 12, 14, 15], ended_s=15.0)
    waiting = seen(times_s=[16, 16, 16, 16], ended_s=16.0)
    broken = seen(tokens=[5], times_s=[12], dones=0, errors=["502"], ended_s=13.0)
    rounds = [round_of(healthy, through, waiting, broken, quiet_s=18.0)]
    assert figures.in_flight(rounds) == 3
    assert figures.failed(rounds) == 1
    assert figures.complete_share(rounds) == pytest.approx(2 / 3)
    assert figures.usual_ttft_s(rounds) == 1.0
    assert figures.added_ttft_s(rounds) == 5.0
    assert figures.gap_p99_s(rounds) == 2.0
    assert figures.settled_s(rounds) == 3.5
    assert figures.freed_s(rounds) == 5.5
    assert figures.added_beyond_prefill_s(rounds) == 4.0


DELAYS = {
    "kill": (figures.added_ttft_s, figures.notice_s, figures.detect_s, figures.gap_beyond_prefill_s, figures.settled_s),
    "heal": (figures.heal_s, figures.after_heal_s, figures.refused_late_s),
    "restart": (figures.served_again_s,),
}


@pytest.mark.parametrize(("mark", "take"), [(mark, take) for mark, all_of in DELAYS.items() for take in all_of])
def test_a_delay_of_which_nothing_was_seen_meets_no_bar(mark: str, take: Any) -> None:
    before_the_fault = seen(ended_s=12.2, times_s=[11, 12, 12.1, 12.2])
    rounds = [round_of(before_the_fault, marks={"kill": 12.5, mark: 12.5})]
    assert Figure("1", "m", "s", take(rounds), 1e9).met is False


def test_a_round_whose_fault_nobody_noticed_is_not_hidden_by_one_that_was() -> None:
    noticed, missed = round_of(seen(), notices_s=[12.0, 12.75, 13.0]), round_of(seen(), notices_s=[12.0])
    assert figures.notice_s([noticed]) == 0.5
    assert figures.notice_s([noticed, missed]) == float("inf")


def test_pools_that_never_get_whole_are_never_free() -> None:
    assert figures.freed_s([round_of(seen()), round_of(seen(), quiet_s=None)]) == float("inf")


def test_a_restarted_worker_serves_from_its_ready_line_on() -> None:
    assert figures.served_again_s([round_of(seen(), marks={"restart": 14.0, "served": 15.5})]) == 1.5


def test_a_rate_is_that_of_beginnings() -> None:
    assert figures.rate_per_s([seen(began_s=at) for at in (10.0, 10.5, 11.0, 12.0)]) == 1.5
    assert figures.rate_per_s([seen()]) == figures.rate_per_s([]) == 0.0


@pytest.mark.parametrize(("better", "met"), [("lower", [True, True, False]), ("higher", [False, True, True])])
def test_a_bar_is_met_from_its_good_side(better: Any, met: list[bool]) -> None:
    assert [Figure("1", "m", "s", value, 2.0, better).met for value in (1, 2, 3)] == met
    assert Figure("1", "m", "s", 1.0).met is None
