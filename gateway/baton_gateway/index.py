"""Which worker is thought to hold which prefix: a speculative index, recorded on routing. Pure.

Block keys are salted by tenant, so what one tenant's prompts left behind is invisible to another's (invariant I6).
A wrong guess costs time, never correctness: workers look for themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from baton_api.blocks import BlockKey


class PrefixIndex:
    """At most `max_keys` block keys, least recently routed first out (invariant I9)."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._holders: OrderedDict[BlockKey, dict[str, int]] = OrderedDict()
        self._lives: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def record(self, keys: Sequence[BlockKey], url: str) -> None:
        """`url` will soon hold these blocks, the prompt's first ones. Children age before their parents."""
        life = self._lives.setdefault(url, 0)
        for key in reversed(keys[: self._max_keys]):
            self._holders.setdefault(key, {})[url] = life
            self._holders.move_to_end(key)
        while len(self._holders) > self._max_keys:
            self._holders.popitem(last=False)

    def held(self, keys: Sequence[BlockKey], urls: Collection[str]) -> dict[str, int]:
        """How many leading blocks of `keys` each of `urls` is thought to hold; those with none are left out."""
        depth: dict[str, int] = {}
        alive = {url: self._lives[url] for url in urls if url in self._lives}
        count = 0
        for key in keys:
            holders = self._holders.get(key)
            if holders is None:
                break
            # Of all that a request costs here this loop runs longest: nothing is built while nobody drops out.
            for url in [url for url, life in alive.items() if holders.get(url) != life]:
                depth[url] = count
                del alive[url]
            if not alive:
                break
            count += 1
        depth.update(dict.fromkeys(alive, count))
        return {url: blocks for url, blocks in depth.items() if blocks}

    def forget(self, url: str) -> None:
        """A new epoch: nothing that was recorded of `url` holds any more. Its old entries age out."""
        if url in self._lives:
            self._lives[url] += 1

    def check_invariants(self) -> None:
        assert len(self._holders) <= self._max_keys
        assert all(life <= self._lives[url] for holders in self._holders.values() for url, life in holders.items())
