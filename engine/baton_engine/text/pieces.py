"""Tokenises a text piece by piece and remembers pieces and words, where that provably gives the tokens of the whole.

A cut is made only between an ASCII letter and a single space that an ASCII letter follows ("of| the"). For the
pipelines below the two sides are then tokenised independently of each other:
- Added tokens are taken out of the text first. None may contain a space here, strip its surroundings or ask for whole
  words, so none reaches over a cut, and none looks over it.
- The normalizer is none or NFC: a space composes with nothing, so neither side changes the other.
- The pre-tokenizer's pattern is one of three known ones. It is applied from left to right without looking back. No
  alternative of any of them matches a letter followed by a space, so a match ends at the cut; and the next one begins
  there whatever stood before. The only look-ahead, \\s+(?!\\S), concerns white space that ends a match, and the left
  side ends in a letter.
- BPE without dropout works within the pieces that the pattern gives.
Any other tokenizer is never cut (`cuts_are_safe`).
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections.abc import Mapping
from typing import Any

from .words import EncodeMany, WordCache

PIECE_CHARS = 512
"""A piece ends at the first safe cut after so many characters: texts that begin alike are cut alike."""

ENTRY_BYTES = 340
"""A dict's place with its share of the room it keeps for growth, and the key's tuple (60 to 115 bytes, measured with
Python 3.11); the owner's bytes; the text's and the ids' own heads."""
WIDE_BYTES = 8
"""Of a character of a text that is not all ASCII: up to 4, and as many in the UTF-8 that the tokenizer leaves there."""

_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
_WORDS, _OTHERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
LLAMA3_PATTERN = _WORDS + r"\p{N}{1,3}" + _OTHERS
QWEN_PATTERN = _WORDS + r"\p{N}" + _OTHERS
"""Of Qwen 2, 2.5 and 3."""

_Known = dict[tuple[bytes, str], "array[int]"]


def cuts_are_safe(tokenizer_json: str) -> bool:
    """Whether the proof above covers this tokenizer (tokenizer.json's content), when no special tokens are added."""
    parts: dict[str, Any] = json.loads(tokenizer_json)
    for token in parts.get("added_tokens") or ():
        if token["single_word"] or token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"]):
            return False
    model, normalizer = parts["model"], parts.get("normalizer")
    if model.get("type") != "BPE" or model.get("dropout") or parts.get("truncation") or parts.get("padding"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    return _known_pattern(parts.get("pre_tokenizer") or {})


def _known_pattern(pre: Mapping[str, Any]) -> bool:
    if pre.get("type") == "ByteLevel":  # with GPT-2's own pattern
        return not pre.get("add_prefix_space") and bool(pre.get("use_regex", True))
    steps: list[Any] = pre.get("pretokenizers") or []
    if pre.get("type") != "Sequence" or len(steps) != 2:
        return False
    split, level = steps
    return (
        split.get("type") == "Split"
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and (split.get("pattern") or {}).get("Regex") in (LLAMA3_PATTERN, QWEN_PATTERN)
        and level.get("type") == "ByteLevel"
        and not level.get("add_prefix_space")
        and not level.get("use_regex", True)
    )


def cut(text: str) -> list[str]:
    """The pieces of `text`, in order and without gaps."""
    pieces: list[str] = []
    start = 0
    while (found := _CUT.search(text, start + PIECE_CHARS)) is not None:
        pieces.append(text[start : found.start()])
        start = found.start()
    pieces.append(text[start:])
    return pieces


class PieceCache:
    """Encodes by pieces. What is remembered takes at most `max_bytes` (invariant I9), the half not used for longest
    goes first. Pieces are `owner`'s alone: how fast an answer comes must not tell one tenant what another one asked.
    Thread-safe."""

    def __init__(self, encode_many: EncodeMany, max_bytes: int) -> None:
        self._words = WordCache(encode_many)
        self._half_bytes = max_bytes // 2
        self._young: _Known = {}
        self._old: _Known = {}
        self._young_bytes = 0
        self._lock = threading.Lock()

    def encode(self, text: str, owner: bytes) -> list[int]:
        ids: list[int] = []
        for piece in cut(text):
            known = self._young.get((owner, piece))
            ids.extend(known if known is not None else self._learn(owner, piece))
        return ids

    def _learn(self, owner: bytes, piece: str) -> array[int]:
        known = self._old.get((owner, piece))
        if known is None:
            known = array("I", self._words.encode(piece))
        size_bytes = _size_bytes(piece, known)
        with self._lock:
            if self._young_bytes + size_bytes > self._half_bytes:
                self._old, self._young, self._young_bytes = self._young, {}, 0
            if size_bytes <= self._half_bytes and (owner, piece) not in self._young:
                self._young[owner, piece] = known
                self._young_bytes += size_bytes
        return known

    def check_invariants(self) -> None:
        self._words.check_invariants()
        young, old = (
            sum(_size_bytes(piece, ids) for (_, piece), ids in known.items()) for known in (self._young, self._old)
        )
        assert young == self._young_bytes <= self._half_bytes and old <= self._half_bytes


def _size_bytes(piece: str, ids: array[int]) -> int:
    """No less than what it takes to remember a piece: a chat's short texts take more than their characters."""
    return ENTRY_BYTES + len(piece) * (1 if piece.isascii() else WIDE_BYTES) + len(ids) * ids.itemsize
