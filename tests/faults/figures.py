"""Numbers taken from rounds: failures, added time to first token, gaps, delays of notice and of freeing. Pure.

A delay of which nothing was seen is infinite: no bar is met by it. Counts of nothing are 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .story import Round, Seen

Rounds = Sequence[Round]
FAULTS = ("kill", "freeze", "terminate", "break", "cut")
NEVER_S = float("inf")


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile; infinite of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else NEVER_S


def longest(values: Iterable[float]) -> float:
    """Infinite of nothing."""
    return max(values, default=NEVER_S)


def requests(rounds: Rounds) -> float:
    return sum(len(round_.seen) for round_ in rounds)


def in_flight(rounds: Rounds) -> float:
    """Requests that were under way when the fault came."""
    return sum(1 for round_ in rounds for _ in hit(round_))


def violations(rounds: Rounds) -> float:
    return sum(len(round_.violations) for round_ in rounds)


def failed(rounds: Rounds) -> float:
    return sum(seen.ending not in ("complete", "abort") for round_ in rounds for seen in round_.seen)


def complete_share(rounds: Rounds) -> float:
    """Of the requests under way when the fault came."""
    endings = [seen.ending == "complete" for round_ in rounds for seen in hit(round_)]
    return sum(endings) / max(1, len(endings))


def wrong_tokens(rounds: Rounds) -> float:
    return sum("wrong token" in told or "complete with" in told for round_ in rounds for told in round_.violations)


def leaks(rounds: Rounds) -> float:
    about = ("prefill", "decode", "gateway has", "the fleet")
    return sum(told.startswith(about) for round_ in rounds for told in round_.violations)


def recomputed(rounds: Rounds) -> float:
    """Transfers that decode gave up and prefilled itself: the fault did hit transfers."""
    return sum(value for round_ in rounds for name, value in round_.counted.items() if name.endswith("recomputes"))


def added_ttft_s(rounds: Rounds) -> float:
    """The slowest first token among the streams that waited for one when the fault came, less the usual one."""
    return longest(first - seen.began_s for round_ in rounds for seen, first in _waiting(round_)) - usual_ttft_s(rounds)


def added_beyond_prefill_s(rounds: Rounds) -> float:
    """That, less what one more prefill takes under the same load: the usual time to the first token."""
    return added_ttft_s(rounds) - usual_ttft_s(rounds)


def usual_ttft_s(rounds: Rounds) -> float:
    """Median time to the first token of streams that had it before the fault, under the same load."""
    return quantile([first - seen.began_s for round_ in rounds for seen, first in _healthy(round_)], 0.5)


def usual_ttft_max_s(rounds: Rounds) -> float:
    return longest(first - seen.began_s for round_ in rounds for seen, first in _healthy(round_))


def notice_s(rounds: Rounds) -> float:
    """The latest moment at which decode wrote that a transfer had failed, after the fault; infinite when a round's
    fault was never noticed."""
    late = ([at - moment(round_) for at in round_.notices_s if at >= moment(round_)] for round_ in rounds)
    return longest(longest(each) for each in late)


def detect_s(rounds: Rounds) -> float:
    """From the fault until the gateway wrote that a worker was lost; infinite when it never did."""
    found = ([at - moment(round_) for at in round_.losses_s if at >= moment(round_)] for round_ in rounds)
    return longest(min(late, default=NEVER_S) for late in found)


def apart_s(rounds: Rounds) -> float:
    """From the cut until the gateway set the pair aside; infinite where it never did."""
    return _first_after(rounds, "cut", [round_.apart_s for round_ in rounds])


def heal_s(rounds: Rounds) -> float:
    """From the end of a cut until KV went over the pair again; infinite where that was not seen."""
    return _first_after(rounds, "heal", [round_.again_s for round_ in rounds])


def _first_after(rounds: Rounds, mark: str, moments: Sequence[Sequence[float]]) -> float:
    """The longest, over the rounds, from a mark to the first of these moments after it."""
    since = [round_.marks[mark] for round_ in rounds]
    late = ((at - from_s for at in found if at >= from_s) for from_s, found in zip(since, moments, strict=True))
    return longest(min(each, default=NEVER_S) for each in late)


def refused(rounds: Rounds) -> float:
    return sum(seen.status == 503 for round_ in rounds for seen in round_.seen)


def refused_without_retry_after(rounds: Rounds) -> float:
    return sum(seen.status == 503 and seen.retry_after is None for round_ in rounds for seen in round_.seen)


def refused_late_s(rounds: Rounds) -> float:
    """The longest that a request waited for its 503."""
    ended = [seen for round_ in rounds for seen in round_.seen if seen.status == 503]
    return longest(seen.ended_s - seen.began_s for seen in ended if seen.ended_s is not None)


def held_and_served(rounds: Rounds) -> float:
    """Requests that came while the gateway reached no worker and were answered in full after it did again."""
    return sum(
        seen.ending == "complete" and round_.marks["cut"] < seen.began_s < round_.marks["heal"] <= (seen.first_s or 0.0)
        for round_ in rounds
        for seen in round_.seen
    )


def after_heal_s(rounds: Rounds) -> float:
    """From the end of the cut until the first token of a request that came after it."""
    firsts = [[s.first_s for s in r.seen if s.first_s is not None and s.began_s > r.marks["heal"]] for r in rounds]
    return _first_after(rounds, "heal", firsts)


def ttft_p99_s(rounds: Rounds) -> float:
    streamed = [seen for round_ in rounds for seen in round_.seen if seen.streamed]
    return quantile([seen.first_s - seen.began_s for seen in streamed if seen.first_s is not None], 0.99)


def ttft_median_s(rounds: Rounds) -> float:
    streamed = [seen for round_ in rounds for seen in round_.seen if seen.streamed]
    return quantile([seen.first_s - seen.began_s for seen in streamed if seen.first_s is not None], 0.5)


def freed_s(rounds: Rounds) -> float:
    """From the fault until every pool was whole: the requests that were under way have ended by then, too."""
    return longest(NEVER_S if round_.quiet_s is None else round_.quiet_s - moment(round_) for round_ in rounds)


def served_again_s(rounds: Rounds) -> float:
    """From a restarted worker's word that it is ready until it had sent KV; infinite where it never did."""
    return longest(round_.marks.get("served", NEVER_S) - round_.marks["restart"] for round_ in rounds)


def gap_p99_s(rounds: Rounds) -> float:
    """The pause in streams that were under way: between the tokens around the fault."""
    return quantile([gap for round_ in rounds for seen in hit(round_) for gap in _gap(seen, moment(round_))], 0.99)


def gap_beyond_prefill_s(rounds: Rounds) -> float:
    """That pause less what a prefill takes under the same load: the time to the first token of healthy streams."""
    return gap_p99_s(rounds) - usual_ttft_s(rounds)


def resumed_prompts(rounds: Rounds) -> float:
    """Prompt tokens that prefill looked at once more for streams that went on elsewhere."""
    return _after_hold(rounds, "prefill", "local_compute") + _after_hold(rounds, "prefill", "local_cache_hit")


def prompts_again(rounds: Rounds) -> float:
    """Of those, the ones computed again, there or on decode."""
    return _after_hold(rounds, "prefill", "local_compute") + _after_hold(rounds, "decode", "local_compute")


def emitted_again(rounds: Rounds) -> float:
    """Tokens that clients of streams which went on had already: decode computes their KV again. An estimate: half of
    what all streams had, for one of two decode workers died."""
    return sum(sum(time_s < moment(round_) for time_s in seen.times_s) for round_ in rounds for seen in hit(round_)) / 2


def _after_hold(rounds: Rounds, role: str, source: str) -> float:
    return sum(
        value
        for round_ in rounds
        for name, value in round_.after_hold.items()
        if name.startswith(role) and name.endswith(source)
    )


def losses(rounds: Rounds) -> float:
    """The most in a round; none is as it should be where a worker is slow and not gone."""
    return max((len(round_.losses_s) for round_ in rounds), default=0)


def settled_s(rounds: Rounds) -> float:
    """How long after the fault the last stream that it hit heard of it: its error, or its next token."""
    return longest(told for round_ in rounds for seen in hit(round_) for told in _told(seen, moment(round_)))


def drain_s(rounds: Rounds) -> float:
    return longest(round_.marks["exit"] - round_.marks["terminate"] for round_ in rounds)


def leases_held(rounds: Rounds) -> float:
    return sum(round_.marks.get("leases", 0.0) for round_ in rounds)


def handed_over(rounds: Rounds) -> float:
    """Streams that went on on another worker."""
    return sum(round_.counted.get("gateway resumed", 0.0) for round_ in rounds)


def moved(rounds: Rounds) -> float:
    """The most requests that one fault sent to another worker. None is right where the worker makes good its failed
    step itself; that a step did fail is the checker's to ask."""
    return max(
        (round_.counted.get("gateway resumed", 0) + round_.counted.get("retries", 0) for round_ in rounds), default=0
    )


def not_quarantined(rounds: Rounds) -> float:
    return sum(code != 3 for round_ in rounds for code in round_.exits)


def exit_s(rounds: Rounds) -> float:
    return longest(round_.marks["exit"] - round_.marks["break"] for round_ in rounds)


def injected(rounds: Rounds) -> float:
    return sum(round_.marks.get("injected", 0.0) for round_ in rounds)


def bad_exits(rounds: Rounds) -> float:
    return sum(code != 0 for round_ in rounds for code in round_.exits)


def rate_per_s(asked: Sequence[Seen]) -> float:
    """At which requests were begun; 0 of fewer than two."""
    began = sorted(seen.began_s for seen in asked)
    return (len(began) - 1) / (began[-1] - began[0]) if len(began) > 1 else 0.0


def moment(round_: Round) -> float:
    return round_.marked(*FAULTS)


def hit(round_: Round) -> Iterator[Seen]:
    return (seen for seen in round_.seen if seen.flying(moment(round_)))


def _waiting(round_: Round) -> Iterator[tuple[Seen, float]]:
    for seen in hit(round_):
        if seen.streamed and seen.first_s is not None and seen.first_s >= moment(round_):
            yield seen, seen.first_s


def _healthy(round_: Round) -> Iterator[tuple[Seen, float]]:
    for seen in round_.seen:
        if seen.streamed and seen.first_s is not None and seen.first_s < moment(round_):
            yield seen, seen.first_s


def _gap(seen: Seen, at_s: float) -> Iterator[float]:
    """Around `at_s`, for a stream that had begun and went on."""
    before = [time_s for time_s in seen.times_s if time_s < at_s]
    after = [time_s for time_s in seen.times_s if time_s >= at_s]
    if seen.streamed and before and after:
        yield after[0] - before[-1]


def _told(seen: Seen, at_s: float) -> Iterator[float]:
    if seen.streamed and seen.ended_s is not None:
        yield min([time_s for time_s in seen.times_s if time_s >= at_s] + [seen.ended_s]) - at_s
