"""Tokenises a piece of text by words that it knows, where `pieces` proves that a text may be cut.

A word here is what stands between two single spaces, and is known with the space before it, when it is ASCII letters
with at most a few marks around them. What stands between known words goes to the tokenizer, all of it in one call.

By the proof in `pieces` the text may be cut before any single space between printable ASCII characters: no alternative
of the three patterns matches such a character and a space behind it, so a match ends there, and none looks back.

Words are everybody's, unlike pieces: how fast a common word is found tells nobody what another tenant asked, and the
tokenizer's own cache of words is shared as well.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence

EncodeMany = Callable[[list[str]], list[list[int]]]

MAX_WORDS = 1 << 15
"""About 200 bytes each (invariant I9); when they are as many, all are forgotten."""
_WORD = re.compile(r"[\"'(]?[A-Za-z]{1,24}[.,;:!?)\"']{0,2}")
LEARNT_AT_ONCE = 8
"""Of one piece: learning costs a call of the tokenizer, and a rare word will not come again."""


class WordCache:
    """Thread-safe."""

    def __init__(self, encode_many: EncodeMany) -> None:
        self._encode_many = encode_many
        self._known: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def encode(self, piece: str) -> list[int]:
        """The tokens of `piece`, which starts and ends where a text may be cut, or is a whole text."""
        parts = self._parts(piece)
        asked = [part for part in parts if isinstance(part, str)]
        told = self._encode_many(asked) if asked else []
        answers = iter(told)
        ids: list[int] = []
        for part in parts:
            ids.extend(next(answers) if isinstance(part, str) else part)
        if asked:
            self._learn(asked, told)
        return ids

    def _parts(self, piece: str) -> list[str | Sequence[int]]:
        """`piece` as tokens of known words, words worth knowing (with their spaces), and text between them.

        `rest`: the pieces of text whose end is still open, none right behind the word `before`.
        """
        known, learnt = self._known, 0
        parts: list[str | Sequence[int]] = []
        start, *words = piece.split(" ")
        rest = [start] if start else []
        before: str | None = None
        for word in words:
            may_cut = not rest or _is_printable(rest[-1][-1])
            part: str | Sequence[int] | None = known.get(word) if may_cut else None
            if may_cut and part is None and learnt < LEARNT_AT_ONCE and _may_be_known(word):
                part = f" {word}"
                learnt += 1
            if part is not None:
                if rest:
                    parts.append("".join(rest))
                    rest = []
                parts.append(part)
                before = word
                continue
            if not rest and before is not None and not (word and _is_printable(word[0])):
                parts.pop()  # no cut between that word and this one
                rest.append(f" {before}")
            rest.append(f" {word}")
        if rest:
            parts.append("".join(rest))
        return parts

    def _learn(self, asked: list[str], told: list[list[int]]) -> None:
        """What was asked for is a word with its space, or text that tells nothing of its words."""
        new = {text[1:]: tuple(ids) for text, ids in zip(asked, told, strict=True) if _is_word(text)}
        with self._lock:
            if len(self._known) + len(new) > MAX_WORDS:
                self._known = {}
            self._known.update(new)

    def check_invariants(self) -> None:
        assert len(self._known) <= MAX_WORDS and all(map(_may_be_known, self._known))


def _may_be_known(word: str) -> bool:
    return _WORD.fullmatch(word) is not None


def _is_word(text: str) -> bool:
    return text[0] == " " and _may_be_known(text[1:])


def _is_printable(char: str) -> bool:
    """Of ASCII, and no space."""
    return "!" <= char <= "~"
