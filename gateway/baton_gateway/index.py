"""Which worker is thought to hold which prefix: a speculative index, recorded on routing. Pure.

Block keys are salted by tenant, so what one tenant's prompts left behind is invisible to another's (invariant I6).
A wrong guess costs time, never correctness: workers look for themselves.

A worker that holds a block holds the blocks before it: a prompt is recorded from its first block on, and blocks grow
old no later than those that follow them. So how much of a prompt a worker holds is found by halving, and recording is
one update of a dict, whatever the prompt's length.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from baton_api.blocks import BlockKey, TextKey

Key = BlockKey | TextKey
Keys = dict[Key, None]
Routed = tuple[str, Sequence[Key]]
"""A worker's url and the keys of a prompt that it will soon hold."""


class PrefixIndex:
    """At most `max_keys` keys, of all workers together (invariant I9). Two generations: what is routed is young; when
    the young are half of all, the old are forgotten and the young become old. So the least recently routed half goes
    first, and what was routed again stays. `news`: what was recorded, for who takes it; None where nobody does."""

    def __init__(self, max_keys: int) -> None:
        self._half = max(1, max_keys // 2)
        self._young: dict[str, Keys] = {}
        self._old: dict[str, Keys] = {}
        self._young_count = 0
        self.news: list[Routed] | None = None

    def __len__(self) -> int:
        return self._young_count + sum(map(len, self._old.values()))

    def record(self, keys: Sequence[Key], url: str, *, heard: bool = False) -> None:
        """`url` will soon hold these blocks, the prompt's first ones; of a prompt longer than half the index only as
        many as that. `heard` from somebody else: no news."""
        if self.news is not None and not heard:
            self.news.append((url, keys))
        if len(keys) > self._half:
            keys = keys[: self._half]
        if self._young_count + len(keys) > self._half:
            self._old, self._young, self._young_count = self._young, {}, 0
        young = self._young.get(url)
        if young is None:
            young = self._young[url] = {}
        before = len(young)
        young.update(dict.fromkeys(keys))
        self._young_count += len(young) - before

    def held(self, keys: Sequence[Key], urls: Collection[str]) -> dict[str, int]:
        """How many leading blocks of `keys` each of `urls` is thought to hold; those with none are left out."""
        found: dict[str, int] = {}
        if not keys:
            return found
        first = keys[0]
        for url in urls:
            young, old = self._young.get(url, _NONE), self._old.get(url, _NONE)
            if first in young or first in old:
                found[url] = _depth(keys, young, old)
        return found

    def forget(self, url: str) -> None:
        """A new epoch: nothing that was recorded of `url` holds any more."""
        self._young_count -= len(self._young.pop(url, ()))
        self._old.pop(url, None)

    def check_invariants(self) -> None:
        assert self._young_count == sum(map(len, self._young.values())) <= self._half
        assert sum(map(len, self._old.values())) <= self._half


_NONE: Keys = {}


def _depth(keys: Sequence[Key], young: Keys, old: Keys) -> int:
    """How many of `keys` are held; the first one is."""
    held, missing = 1, len(keys) + 1
    while held + 1 < missing:
        middle = (held + missing) // 2
        key = keys[middle - 1]
        if key in young or key in old:
            held = middle
        else:
            missing = middle
    return held
