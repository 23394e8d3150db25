"""Tokens of one choice to text: whole characters, stop strings, log probabilities."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from baton_api.sampling import FinishReason, SampledToken, SamplingParams
from baton_engine.text.detokenise import MAX_HELD_TOKENS, Detokeniser
from baton_engine.text.output import ChoiceOutput, Delta
from baton_engine.text.tokenizer import Tokenizer
from support.tokenizer_dirs import SENTENCES, byte_level, sentencepiece

EOS = 0
PARAMS = SamplingParams(seed=0)


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    make: Callable[[Path], Path] = request.param
    return Tokenizer.load(make(tmp_path_factory.mktemp("tokenizer")))


def letters(ids: object) -> str:
    """A tokenizer whose token 65 is "A" and so on; 0 is a special token without text."""
    return "".join(chr(token_id) for token_id in ids if token_id)  # type: ignore[attr-defined]


def run(
    chunks: list[str], finish: FinishReason | None = None, prompt: str = "", **changes: Any
) -> tuple[list[str], Delta]:
    """Texts of the deltas, and the last delta, for chunks of one-letter tokens ("\\0" is the end token)."""
    params = replace(PARAMS, **changes)
    output = ChoiceOutput(params, Detokeniser(letters, [*map(ord, prompt)]), lambda i: chr(i).encode(), frozenset({0}))
    deltas = []
    for index, chunk in enumerate(chunks, 1):
        tokens = [SampledToken(ord(letter), -1.0, ((ord(letter), -1.0), (90, -2.0))) for letter in chunk]
        deltas.append(output.push(tokens, finish if index == len(chunks) else None))
        if deltas[-1].finish:
            break
    assert output.push([SampledToken(65)]) == Delta() or deltas[-1].finish is None
    return [delta.text for delta in deltas], deltas[-1]


@pytest.mark.parametrize("text", SENTENCES)
def test_text_comes_out_whole_whatever_the_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokeniser = Detokeniser(tokenizer.decode)
    deltas = [detokeniser.push(token_id) for token_id in ids]
    assert not any("\ufffd" in delta for delta in deltas)
    assert "".join(deltas) + detokeniser.flush() == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_deltas_of_any_tokens_add_up_to_transformers_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # A byte-fallback decoder turns a whole run of byte tokens into U+FFFD when one of them is wrong, also those that
    # were characters before: what is out cannot follow, so such runs are left to the test of whole texts.
    bytes_apart = (
        [i for i in range(tokenizer.vocab_size) if not 3 <= i < 259] if tokenizer.token_bytes(3) == b"\0" else []
    )
    token_ids = st.sampled_from(bytes_apart or range(tokenizer.vocab_size))
    ids = data.draw(st.lists(token_ids, max_size=MAX_HELD_TOKENS))
    skip = data.draw(st.booleans())
    detokeniser = Detokeniser(lambda some: tokenizer.decode(some, skip_special_tokens=skip))
    text = "".join(map(detokeniser.push, ids)) + detokeniser.flush()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


def test_decoding_is_transformers_decoding(tmp_path: Path) -> None:
    folder = sentencepiece(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    ids = theirs.encode("Hello wörld 😀", add_special_tokens=False)
    detokeniser = Detokeniser(ours.decode)
    assert "".join(map(detokeniser.push, ids)) == theirs.decode(ids) == "Hello wörld 😀"


@pytest.mark.parametrize("cut", range(14))
def test_a_choice_resumed_elsewhere_goes_on_with_the_text_that_was_held(tokenizer: Tokenizer, cut: int) -> None:
    ids = tokenizer.encode("The quick naïve fox 😀!", add_special_tokens=False)
    first = Detokeniser(tokenizer.decode)
    sent = "".join(map(first.push, ids[:cut]))
    second = Detokeniser(tokenizer.decode, ids[:cut])
    rest = "".join(map(second.push, ids[cut:])) + second.flush()
    assert sent + rest == tokenizer.decode(ids)


def test_tokens_that_never_make_a_character_are_not_held_for_ever(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level(tmp_path))
    lonely = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xe2")
    detokeniser = Detokeniser(tokenizer.decode)
    texts = [detokeniser.push(lonely) for _ in range(MAX_HELD_TOKENS + 1)]
    assert texts[MAX_HELD_TOKENS - 1] == "\ufffd" * MAX_HELD_TOKENS and not any(texts[: MAX_HELD_TOKENS - 1])
    assert texts[-1] == "" and detokeniser.flush() == "\ufffd"


@pytest.mark.parametrize(
    ("chunks", "finish", "changes", "texts", "end", "stop", "cancel"),
    [
        (["a", "b", "c"], None, {}, ["a", "b", "c"], None, None, False),
        (["a", "b"], "length", {}, ["a", "b"], "length", None, False),
        (["a", "\0"], "stop", {}, ["a", ""], "stop", None, False),
        (["a", "x"], "stop", {"stop_token_ids": (120,)}, ["a", ""], "stop", 120, False),
        (
            ["a", "x"],
            "stop",
            {"stop_token_ids": (120,), "include_stop_str_in_output": True},
            ["a", "x"],
            "stop",
            120,
            False,
        ),
        (["a", "b"], "abort", {}, ["a", "b"], "abort", None, False),
        (["a", "b", "c"], None, {"stop": ("b",)}, ["a", ""], "stop", "b", True),
        (["a", "S", "T", "b"], None, {"stop": ("ST",)}, ["a", "", ""], "stop", "ST", True),
        (["a", "S", "U"], None, {"stop": ("ST",)}, ["a", "", "SU"], None, None, False),
        (["S", "S", "T"], None, {"stop": ("ST",)}, ["", "S", ""], "stop", "ST", True),
        (["a", "S"], "length", {"stop": ("ST",)}, ["a", "S"], "length", None, False),
        (["aSTb"], None, {"stop": ("ST",)}, ["a"], "stop", "ST", True),
        (
            ["a", "S", "T"],
            None,
            {"stop": ("ST",), "include_stop_str_in_output": True},
            ["a", "", "ST"],
            "stop",
            "ST",
            True,
        ),
        (["a", "S", "T"], "length", {"stop": ("ST",)}, ["a", "", ""], "stop", "ST", False),
        (["abab", "c"], None, {"stop": ("ababc", "bc")}, ["", ""], "stop", "ababc", True),
        (["a", "b", "c"], None, {"stop": ("bc", "abc")}, ["", "", "a"], "stop", "bc", True),
        (["b", "b", "b"], None, {"stop": ("b",), "min_tokens": 2}, ["b", "b", ""], "stop", "b", True),
        (["S", "T", "T"], None, {"stop": ("ST", "TT"), "min_tokens": 2}, ["", "S", ""], "stop", "TT", True),
        (["S", "\0"], "stop", {"stop": ("ST",)}, ["", "S"], "stop", None, False),
        ([""], "length", {}, [""], "length", None, False),
        ([""], "stop", {}, [""], "stop", None, False),
    ],
)
def test_a_choice_ends_where_it_should(
    chunks: list[str],
    finish: FinishReason | None,
    changes: dict[str, Any],
    texts: list[str],
    end: FinishReason | None,
    stop: str | int | None,
    cancel: bool,
) -> None:
    got, last = run(chunks, finish, **changes)
    assert got == texts
    assert (last.finish, last.stop, last.cancel) == (end, stop, cancel)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    include=st.booleans(),
)
def test_streaming_equals_vllms_search_of_the_whole_text_after_each_token(
    text: str, stops: list[str], include: bool
) -> None:
    expected, matched = text, None
    for length in range(1, len(text) + 1):
        matched = next((stop for stop in stops if text[:length].endswith(stop)), None)
        if matched:
            expected = text[: length - (0 if include else len(matched))]
            break
    got, last = run(list(text) or [""], "length", stop=tuple(stops), include_stop_str_in_output=include)
    assert "".join(got) == expected
    assert last.stop == matched and last.finish == ("stop" if matched else "length")


class Naive:
    """What ChoiceOutput did before it had StopSearch: every beginning of every stop string, compared each time."""

    def __init__(self, stops: tuple[str, ...], min_tokens: int, include: bool) -> None:
        self.stops, self.min_tokens, self.include = stops, min_tokens, include
        self.held, self.tokens = "", 0

    def push(self, texts: list[str], over: bool) -> tuple[str, str | None]:
        for text in texts:
            self.tokens += 1
            matched = self.add(text)
            if matched is not None:
                return self.held, matched
        keep = 0 if over else max((self.overlap(stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        released, self.held = self.held[:cut], self.held[cut:]
        return released, None

    def add(self, text: str) -> str | None:
        start, self.held = len(self.held), self.held + text
        if not text or self.tokens <= self.min_tokens:
            return None
        for stop in self.stops:
            at = self.held.find(stop, max(start - len(stop) + 1, 0))
            if at >= 0:
                self.held = self.held[: at + len(stop) * self.include]
                return stop
        return None

    def overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self.held))
        return next((size for size in range(longest, 0, -1) if self.held.endswith(stop[:size])), 0)


def repeated(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Words like aaab or abababa, whose beginnings are also endings."""
    pieces = st.tuples(parts, st.integers(1, 8)).map(lambda piece: piece[0] * piece[1])
    return st.lists(pieces, min_size=1, max_size=3).map("".join)


@st.composite
def _stops_and_steps(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    """Texts of tokens, step by step, many of them parts of the stop strings."""
    stops = draw(
        st.lists(
            st.one_of(st.text("ab", min_size=1, max_size=9), repeated(st.text("ab", min_size=1, max_size=3))),
            max_size=3,
        )
    )
    beginnings = [stop[:size] for stop in stops for size in range(len(stop) + 1)]
    texts = [st.text("abc", max_size=3), repeated(st.text("ab", max_size=3))]
    parts = st.one_of(*texts, *([st.sampled_from(beginnings)] * 2 if stops else []))
    return stops, draw(st.lists(st.lists(parts, max_size=3), max_size=8))


@settings(max_examples=500, deadline=None)
@given(_stops_and_steps(), st.integers(0, 6), st.booleans(), st.booleans())
@example((["aabaaac"], [["aabaaa"], ["baaac"]]), 0, False, False)
def test_what_goes_out_and_what_is_held_are_as_with_every_beginning_compared(
    stops_and_steps: tuple[list[str], list[list[str]]], min_tokens: int, include: bool, ends: bool
) -> None:
    stops, steps = stops_and_steps
    texts = [text for step in steps for text in step]
    params = replace(PARAMS, stop=tuple(stops), min_tokens=min_tokens, include_stop_str_in_output=include)
    detokeniser = Detokeniser(lambda ids: "".join(texts[i] for i in ids))
    output, naive = ChoiceOutput(params, detokeniser, lambda i: b""), Naive(params.stop, min_tokens, include)
    token_ids = iter(range(len(texts)))
    for index, step in enumerate(steps, 1):
        finish: FinishReason | None = "length" if ends and index == len(steps) else None
        delta = output.push([SampledToken(next(token_ids)) for _ in step], finish)
        released, matched = naive.push(step, finish is not None)
        assert (delta.text, delta.stop) == (released, matched)
        if matched is not None or finish is not None:
            break


@pytest.mark.parametrize("size", [2, 1023])
def test_a_stop_string_that_repeats_itself_holds_as_much_as_it_must(size: int) -> None:
    texts, last = run(["a"] * (2 * size), stop=("a" * size + "b", "x" + "a" * size))
    assert texts == [""] * size + ["a"] * size and last.finish is None
    assert run(["a"] * (2 * size) + ["b"], stop=("a" * size + "b",))[0][-1] == ""


def test_text_that_only_the_end_brings_out_can_still_hold_a_stop_string(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level(tmp_path))
    half = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xe2")
    delta = tokenizer.choice_output(replace(PARAMS, stop=("\ufffd",))).push([SampledToken(half)], "length")
    assert delta == Delta("", (), "stop", "\ufffd")


def test_log_probabilities_name_tokens_bytes_and_offsets(tokenizer: Tokenizer) -> None:
    text = "naïve 😀!"
    ids = [*tokenizer.encode(text, add_special_tokens=False), next(iter(tokenizer.eos_token_ids))]
    output = tokenizer.choice_output(replace(PARAMS, top_logprobs=1))
    delta = output.push([SampledToken(i, -0.5, ((i, -0.5), (i + 1, -1.5))) for i in ids], "stop")
    assert [row.drawn.token_id for row in delta.logprobs] == ids
    assert [len(row.top) for row in delta.logprobs] == [2] * len(ids)
    joined = b"".join(row.drawn.bytes for row in delta.logprobs[:-1])
    assert joined.decode().lstrip(" ") == text == delta.text
    offsets = [row.text_offset for row in delta.logprobs]
    assert offsets == sorted(offsets) and offsets[0] == 0 and offsets[-1] == len(joined.decode())
    for index, row in enumerate(delta.logprobs[:-1]):
        before = b"".join(other.drawn.bytes for other in delta.logprobs[:index])
        assert row.text_offset == len(before.decode("utf-8", "ignore"))
        assert row.drawn.text == row.drawn.bytes.decode("utf-8", "replace") and row.drawn.logprob == -0.5


def test_without_being_asked_there_are_no_log_probabilities() -> None:
    assert run(["a"])[1].logprobs == ()
    rows = run(["a\0b"], top_logprobs=0)[1].logprobs
    assert [row.text_offset for row in rows] == [0, 1, 1]
