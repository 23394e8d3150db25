"""Between which prefill and decode workers no KV gets through: a circuit breaker per pair. Pure.

Both workers may be well as the gateway sees them: it is the way between them that is not. Decode tells in its answer
that a transfer was lost for lack of its peer. The pair then rests; after that one request at a time tries it again, and
the others go on elsewhere until one has come through.
"""

from __future__ import annotations

from baton_api.timing import from_server_timing

TRIAL_S = 5.0
"""How long a trial may take before the next one: as long as a first connection may take."""
_ABOUT_THE_WAY = frozenset({"peer_lost", "transfer_deadline"})
Urls = tuple[str, str]


def lost_on_the_way(server_timing: str) -> bool | None:
    """Whether decode's answer says that the transfer did not get through; None when there was none."""
    spans = {span.name: span.desc for span in from_server_timing(server_timing)}
    if "lost_transfer" in spans:
        return spans["lost_transfer"] in _ABOUT_THE_WAY
    return False if "transfer" in spans else None


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

    def told(self, pair: Urls, *, lost: bool, now_s: float) -> bool:
        """What became of a transfer. True when the pair was not in doubt before and is now."""
        if not lost:
            self._until_s.pop(pair, None)
            return False
        new = pair not in self._until_s
        self._until_s[pair] = now_s + self._rest_s
        return new

    def forget(self, url: str) -> None:
        """The worker is gone or a new one."""
        for pair in [pair for pair in self._until_s if url in pair]:
            del self._until_s[pair]
