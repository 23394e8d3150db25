"""Judges one round by the invariants I1, I2/X3, I3, X1 and X4: every violation as a sentence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .story import Held, Round, Said, Seen

Tokens = Sequence[int]
# The gateway may keep one idle connection per stream to whichever worker took the load over; a worker started last has
# some threads to make yet (13, then 18, as measured); nothing pools other descriptors.
SLACK = {"sockets": 16, "files": 4, "threads": 6}
CALLED = {"sockets": "sockets", "files": "descriptors that are no sockets", "threads": "threads"}


def check(round_: Round, reference: Sequence[Seen], *, may_break: bool, streams: int) -> list[str]:
    """Nothing, or what was wrong. `reference[case]` is that case's answer without faults; `streams` were under way."""
    return [
        *(f"request {seen.number}: {wrong}" for seen in round_.seen for wrong in endings(seen, may_break=may_break)),
        *(f"request {seen.number}: {wrong}" for seen in round_.seen for wrong in answer(seen, reference[seen.case])),
        *pools(round_.after, round_.quiet_s),
        *baseline(round_.before, round_.after, streams),
        *conserved(round_),
        *(f"{name} was to fail a step and did not" for name in round_.unfired),
    ]


def endings(seen: Seen, *, may_break: bool) -> Iterator[str]:
    """I1: exactly one of complete, explicit error, client abort; by the deadline."""
    if seen.ending == "open":
        yield "never ended"
        return
    if seen.ending == "silent":
        yield f"ended without an end: status {seen.status}, {len(seen.tokens)} tokens"
    if seen.dones + len(seen.errors) > 1 or seen.after_end:
        yield f"ended {seen.dones + len(seen.errors)} times, {seen.after_end} events after its end"
    if seen.ending == "error" and not may_break:
        yield f"failed ({seen.errors[0]}) after {len(seen.tokens)} tokens"
    if seen.ended_s is not None and seen.ended_s > seen.deadline_s:
        yield f"ended {seen.ended_s - seen.deadline_s:.1f} s after its deadline"


def tokens(seen: Seen, reference: Tokens) -> Iterator[str]:
    """I2, X3: what came is a prefix of the reference, and all of it when the answer says it is complete."""
    right = list(reference[: len(seen.tokens)])
    if seen.tokens != right:
        at = next((i for i, (got, want) in enumerate(zip(seen.tokens, right, strict=False)) if got != want), len(right))
        yield f"wrong token at {at} of {len(seen.tokens)}"
    elif seen.ending == "complete" and len(seen.tokens) != len(reference):
        yield f"complete with {len(seen.tokens)} of {len(reference)} tokens"


def answer(seen: Seen, reference: Seen) -> Iterator[str]:
    """I2, X3 for everything that a client is shown: tokens, text, log probabilities and ends of every choice."""
    yield from tokens(seen, reference.tokens)
    for choice, said in sorted(seen.said.items()):
        right = reference.said.get(choice, Said())
        if choice:
            yield from (
                f"choice {choice}: {wrong}" for wrong in tokens(replace(seen, tokens=said.tokens), right.tokens)
            )
        if said.text != right.text[: len(said.text)]:
            yield f"choice {choice}: wrong token text {said.text[-20:]!r}"
        if not _alike(said.logprobs, right.logprobs):
            yield f"choice {choice}: wrong token log probabilities"
        if seen.ending == "complete" and (said.text, said.finish) != (right.text, right.finish):
            yield f"choice {choice}: complete with text of {len(said.text)}, {said.finish}; right is {right.finish}"
    if seen.ending == "complete" and len(seen.said) != len(reference.said):
        yield f"complete with {len(seen.said)} of {len(reference.said)} choices"


def _alike(got: Sequence[tuple[str, float]], right: Sequence[tuple[str, float]]) -> bool:
    """A prefix; the last digits of a log probability depend on the batch, without faults too."""
    pairs = zip(got, right, strict=False)
    return len(got) <= len(right) and all(a[0] == b[0] and abs(a[1] - b[1]) < 1e-3 for a, b in pairs)


def pools(after: Mapping[str, Held], quiet_s: float | None) -> Iterator[str]:
    """I3: every pool is whole, nothing runs, nothing is promised."""
    if quiet_s is None:
        yield "the fleet did not get quiet"
    for name, held in after.items():
        if held.free_blocks != held.total_blocks:
            yield f"{name} holds {held.total_blocks - held.free_blocks} of {held.total_blocks} blocks"
        if held.running or held.waiting or held.leases:
            yield f"{name} has {held.running} running, {held.waiting} waiting, {held.leases} leases"


def baseline(before: Mapping[str, Held], after: Mapping[str, Held], streams: int) -> Iterator[str]:
    """X4: sockets, file descriptors and threads of processes that lived through it are back to what they had when they
    were new, so that what each round leaves behind adds up until it shows."""
    for name in before.keys() & after.keys():
        if before[name].epoch != after[name].epoch:
            continue
        for what, slack in SLACK.items():
            was, is_now = getattr(before[name], what), getattr(after[name], what)
            # The gateway keeps idle connections to both roles.
            pooled = 0 if what != "sockets" else 2 * streams if name == "gateway" else streams
            if is_now > was + slack + pooled:
                yield f"{name} has {is_now} {CALLED[what]}, had {was}"


def conserved(round_: Round) -> Iterator[str]:
    """X1: the gateway counted what the clients saw: outcomes sum up to requests, usage to tokens."""
    counted = {name: value for name, value in round_.counted.items() if name.startswith("gateway ")}
    if not counted:
        return
    seen = Counter(seen.ending for seen in round_.seen)
    if counted.get("gateway in_flight", 0):
        yield f"the gateway counts {counted['gateway in_flight']:g} requests in flight"
    if counted["gateway requests"] != len(round_.seen):
        yield f"the gateway counted {counted['gateway requests']:g} requests of {len(round_.seen)}"
    if counted["gateway ok"] != seen["complete"]:
        yield f"the gateway counted {counted['gateway ok']:g} complete answers of {seen['complete']}"
    sent = sum(seen.received for seen in round_.seen if seen.ending == "complete")
    if counted["gateway tokens"] != sent:
        yield f"the gateway counted {counted['gateway tokens']:g} tokens, clients received {sent}"
