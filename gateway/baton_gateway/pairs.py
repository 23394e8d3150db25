"""Between which prefill and decode workers KV gets through badly or not at all: a circuit breaker per pair. Pure.

Both workers may be well as the gateway sees them: it is the way between them that is not. Decode tells in its answer
that a transfer was lost for lack of its peer, or how long it took. The pair then rests; after that one request at a
time tries it again, and the others go on elsewhere until one has come through.
"""

from __future__ import annotations

import re

from baton_api.timing import from_server_timing

TRIAL_S = 5.0
"""How long a trial may take before the next one: as long as a first connection may take."""
SLOWER = 4.0
_COMPUTE = re.compile(r"compute ([0-9.]+) ms")
_ABOUT_THE_WAY = frozenset({"peer_lost", "transfer_deadline"})
Urls = tuple[str, str]


def bad_way(server_timing: str, slow_s: float) -> bool | None:
    """Whether the way between the two served a transfer badly, by decode's answer; None when there was no transfer.

    Badly: nothing got through; or the request waited for the blocks longer than `slow_s` and `SLOWER` times longer than
    computing them had taken, so that computing them once more on decode would have been the faster way.
    """
    spans = {span.name: span for span in from_server_timing(server_timing)}
    if "lost_transfer" in spans:
        return spans["lost_transfer"].desc in _ABOUT_THE_WAY
    if "transfer" not in spans:
        return None
    compute = _COMPUTE.search(spans["prefill"].desc) if "prefill" in spans else None
    compute_s = float(compute[1]) / 1e3 if compute else 0.0
    return spans["transfer"].duration_s > max(slow_s, SLOWER * compute_s)


class Pairs:
    """A pair is (prefill url, decode url). `rest_s`: how long it is left alone after a loss."""

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self._until_s: dict[Urls, float] = {}

    def apart(self, now_s: float) -> frozenset[Urls]:
        if not self._until_s:
            return frozenset()
        return frozenset(pair for pair, until_s in self._until_s.items() if until_s > now_s)

    def tried(self, pair: Urls, now_s: float) -> None:
        """A request goes over it; if it is in doubt, no other one does meanwhile."""
        if pair in self._until_s:
            self._until_s[pair] = now_s + TRIAL_S

    def told(self, pair: Urls, *, bad: bool, now_s: float) -> bool:
        """What became of a transfer. True when that is news of the pair."""
        if not bad:
            return self._until_s.pop(pair, None) is not None
        new = pair not in self._until_s
        self._until_s[pair] = now_s + self._rest_s
        return new

    def forget(self, url: str) -> None:
        """The worker is gone or a new one."""
        for pair in [pair for pair in self._until_s if url in pair]:
            del self._until_s[pair]
