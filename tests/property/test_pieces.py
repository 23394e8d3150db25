"""Tokens by remembered pieces are the tokens of the whole text, for every pipeline that may be cut; others are not."""

from __future__ import annotations

import functools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from baton_engine.text import pieces, words
from baton_engine.text.pieces import LLAMA3_PATTERN, QWEN_PATTERN, PieceCache, cut, cuts_are_safe
from baton_engine.text.prompt import ModelReader
from baton_engine.text.words import WordCache
from support.tokenizer_dirs import SENTENCES, byte_level, sentencepiece

TRAINED = [
    *SENTENCES,
    "I'd we're don't it's  the cat  sat\n\non a mat 12345 of the",
    "a b c d e f g of the of a",
    "ôé e\u0301 ",
]


@functools.cache
def backend(kind: str) -> Tokenizer:
    made = Tokenizer(BPE())
    if kind == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN if kind == "llama3" else QWEN_PATTERN), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if kind == "qwen":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TRAINED, trainer)
    made.add_tokens([AddedToken("<tool>", special=False), AddedToken("thecat", special=False)])
    return made


LATIN = ["a", "b", "t", "s", "d", "m", "the", "cat", "of", "'s", "'S", "'ll", "'", "1", "2024"]
LATIN += [",", ".", '."', "(", ")", "?!", "-"]
OTHERS = ["é", "e\u0301", "\u0301", "ß", "漢字", "\u1100\u1161", "🙂"]
SPACES = [" ", " ", " ", "  ", "\n", "\r\n", "\t", "\u00a0"]
ADDED = ["<|end|>", "<|im_start|>", "<tool>", "thecat", "<|", "|>"]
WORDS = st.sampled_from(LATIN) | st.sampled_from(SPACES) | st.sampled_from(OTHERS) | st.sampled_from(ADDED)
TEXTS = st.lists(WORDS, max_size=60).map("".join) | st.text(max_size=60)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen"])
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 4000))
def test_pieces_give_the_tokens_of_the_whole(kind: str, texts: list[str], piece_chars: int, max_bytes: int) -> None:
    whole = backend(kind)

    def encode(text: str) -> list[int]:
        ids: list[int] = whole.encode(text, add_special_tokens=False).ids
        return ids

    def encode_many(texts: list[str]) -> list[list[int]]:
        return [encode(text) for text in texts]

    assert cuts_are_safe(whole.to_str())
    cache = PieceCache(encode_many, max_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_CHARS", piece_chars)
        for text in [*texts, *texts, texts[0] + texts[-1]]:
            assert "".join(cut(text)) == text
            assert cache.encode(text, b"me") == encode(text), (text, cut(text))
            cache.check_invariants()


def changed(**parts: Any) -> str:
    return json.dumps({**json.loads(backend("qwen").to_str()), **parts})


def added(**token: Any) -> str:
    known = {"id": 0, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
    return changed(added_tokens=[{**known, "normalized": False, "special": True, **token}])


@pytest.mark.parametrize(
    "tokenizer_json",
    [
        added(content="of the"),
        added(content=" x"),
        added(single_word=True),
        added(lstrip=True),
        added(rstrip=True),
        changed(normalizer={"type": "NFKC"}),
        changed(normalizer={"type": "Prepend", "prepend": "_"}),
        changed(pre_tokenizer=None),
        changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        changed(pre_tokenizer={"type": "Whitespace"}),
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel"}]}),
        changed(model={"type": "Unigram", "vocab": []}),
        changed(model={**json.loads(backend("qwen").to_str())["model"], "dropout": 0.1}),
        changed(truncation={"max_length": 5}),
    ],
)
def test_what_the_proof_does_not_cover_is_never_cut(tokenizer_json: str) -> None:
    assert not cuts_are_safe(tokenizer_json)


def test_a_sentencepiece_model_has_no_cache_and_a_byte_level_one_has(tmp_path: Path) -> None:
    assert ModelReader.load(sentencepiece(tmp_path / "s"), 1000)._cache is None
    assert ModelReader.load(byte_level(tmp_path / "b"), 1000)._cache is not None
    assert ModelReader.load(byte_level(tmp_path / "c"))._cache is None


def test_a_shared_beginning_is_encoded_once_per_owner() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return [backend("gpt2").encode(text, add_special_tokens=False).ids for text in texts]

    cache, shared = PieceCache(encode, 1_000_000), f"{'thecat' * 5} {'onamat' * 5} " * 50  # too long for known words
    first = cache.encode(shared + "1", b"me")
    before = len(asked)
    assert cache.encode(shared + "2", b"me")[: len(first) - 8] == first[: len(first) - 8]
    assert len(asked) == before + 1, "only the last piece was new"
    cache.encode(shared + "1", b"you")
    assert len(asked) == 2 * before + 1, "another tenant's text is not known from ours"


def test_known_words_are_not_asked_for_again() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return [backend("llama3").encode(text, add_special_tokens=False).ids for text in texts]

    cache = WordCache(encode)
    for text in ("so the cat sat", " the cat sat on", " sat the  cat, the cat sat!"):
        assert cache.encode(text) == backend("llama3").encode(text, add_special_tokens=False).ids
        cache.check_invariants()
    assert asked == ["so", " the", " cat", " sat", " on", " the  cat,", " sat!"]


def test_no_more_words_are_known_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 3)
    cache = WordCache(lambda texts: [[len(text)] for text in texts])
    for text in ("x a b", "x c d", "x e f"):
        cache.encode(text)
        cache.check_invariants()
    assert set(cache._known) == {"e", "f"}


def test_short_texts_are_counted_with_what_it_takes_to_remember_them() -> None:
    """A chat's short texts take ten times their characters."""
    cache = PieceCache(lambda texts: [[1] for _ in texts], 1 << 20)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            cache.encode(f"{number:x}", bytes(16) + number.to_bytes(16))
            if number % 1000 == 0:
                assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
        cache.check_invariants()
    finally:
        tracemalloc.stop()
