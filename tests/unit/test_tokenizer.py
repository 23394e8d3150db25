"""Tokenizer and chat template, compared with transformers' on the same directories."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from baton_api.errors import ContextLengthExceeded, SettingError
from baton_api.openai import ChatRequest, CompletionRequest, Message
from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.text.prompt import ModelReader
from baton_engine.text.tokenizer import Tokenizer, load_chat_template
from support.tokenizer_dirs import SENTENCES, TEMPLATE, byte_level, sentencepiece

TEXTS = [*SENTENCES, "", " ", "  two spaces", "a<|im_end|>b <tool> c", "<s>x</s> y", "\n\tz", "𝔘𝔫𝔦 ☃️"]
CONFIGS: list[dict[str, Any]] = [
    {},
    {"add_bos_token": True},
    {"add_bos_token": True, "add_eos_token": True},
    {"add_bos_token": False},
    {"additional_special_tokens": ["<|extra|>"]},
    {"added_tokens_decoder": {"600": {"content": "<late>", "special": False, "lstrip": True}}},
    {"pad_token": {"__type": "AddedToken", "content": "<|pad|>", "lstrip": False, "special": True}},
]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("config", CONFIGS, ids=[",".join(config) or "plain" for config in CONFIGS])
def test_encoding_and_decoding_equal_transformers(
    tmp_path: Path, make: Callable[..., Path], config: dict[str, Any]
) -> None:
    folder = make(tmp_path, **config)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, "x<|extra|>y <late> <|pad|>"]:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
            assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)
    assert ours.vocab_size == len(theirs)
    assert theirs.eos_token_id in ours.eos_token_ids
    assert set(theirs.all_special_ids) <= ours.special_ids


@pytest.mark.parametrize("legacy", [{}, {"legacy": True}, {"legacy": False}])
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_llama_class_is_built_as_transformers_builds_it(
    tmp_path: Path, make: Callable[..., Path], legacy: dict[str, bool]
) -> None:
    folder = make(tmp_path, tokenizer_class="LlamaTokenizerFast", **legacy)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=True)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_bytes_of_tokens_add_up_to_the_text(tmp_path: Path, make: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(make(tmp_path))
    for text in SENTENCES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
        assert joined.removeprefix(" ") == text
    assert tokenizer.token_bytes(next(iter(tokenizer.eos_token_ids))) in (b"<|end|>", b"</s>")
    assert tokenizer.token_bytes(10**6) == b""


def test_end_tokens_come_from_the_tokenizer_and_the_generation_config(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    assert Tokenizer.load(folder).eos_token_ids == {0}
    for said, expected in [(3, {0, 3}), ([2, 3], {0, 2, 3})]:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
        assert Tokenizer.load(folder).eos_token_ids == expected
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert Tokenizer.load(folder).eos_token_ids == {2, 3}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "is malformed"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
    ],
)
def test_a_broken_directory_stops_the_start(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    path = byte_level(tmp_path) / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SettingError, match=words):
        Tokenizer.load(tmp_path)


def test_a_chat_is_rendered_and_encoded_as_transformers_does(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    ours, template, theirs = Tokenizer.load(folder), load_chat_template(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "今日は😀?"}]
    assert template is not None
    for prompt in (True, False):
        text = template.render(messages, add_generation_prompt=prompt)
        assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode(text, add_special_tokens=False) == ids


def test_a_template_file_wins_over_the_config_and_names_choose_among_several(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "a")
    (folder / "chat_template.jinja").write_text("file {{ eos_token }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools {{ tools | length }}")
    template = load_chat_template(folder)
    assert template is not None
    messages = [{"role": "user", "content": "x"}]
    assert template.render(messages) == "file <|end|>"
    assert template.render(messages, tools=[{"type": "function"}]) == "tools 1"
    listed = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    template = load_chat_template(byte_level(tmp_path / "b", chat_template=listed))
    assert template is not None and template.render(messages, tools=[]) == "two"
    assert load_chat_template(byte_level(tmp_path / "c", chat_template=None)) is None


def test_a_choice_follows_its_prompt_and_hides_special_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(sentencepiece(tmp_path))
    prompt = tokenizer.encode("The quick", add_special_tokens=True)
    output = tokenizer.encode("brown", add_special_tokens=False)
    for skip, expected in [(True, " brown"), (False, " brown</s>")]:
        choice = tokenizer.choice_output(SamplingParams(skip_special_tokens=skip), prompt)
        tokens = [SampledToken(token_id) for token_id in [*output, *tokenizer.eos_token_ids]]
        assert "".join(choice.push([token]).text for token in tokens) + choice.push([], "length").text == expected
    assert TEMPLATE


def test_other_threads_run_while_a_long_text_is_encoded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level(tmp_path))
    encoding = threading.Thread(target=tokenizer.encode, args=("a b " * 250_000,), kwargs={"add_special_tokens": False})
    encoding.start()
    turns = 0
    while encoding.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20  # 2 when the interpreter's lock is kept all the while


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("piece", ["a b ", "a", "hello world, ", "\u2603\ufe0f"])
def test_a_text_is_never_counted_longer_than_it_is(tmp_path: Path, make: Callable[..., Path], piece: str) -> None:
    tokenizer = Tokenizer.load(make(tmp_path))
    text = piece * (100_000 // len(piece))
    true = len(tokenizer.encode(text, add_special_tokens=False))
    assert 0.8 * true < tokenizer.at_least(text, 10**9) <= true
    assert 100 < tokenizer.at_least(text, 100) <= true


def test_a_prompt_far_beyond_the_context_is_refused_before_it_is_tokenised_whole(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    reader = ModelReader.load(folder)
    sampling = SamplingParams()
    for request, param in (
        (CompletionRequest("m", sampling, "a b " * 4000), "prompt"),
        (CompletionRequest("m", sampling, (5,) * 513), "prompt"),
        (ChatRequest("m", sampling, (Message("user", "a b " * 4000),)), "messages"),
    ):
        with pytest.raises(ContextLengthExceeded, match="this model's context is 512 tokens; the prompt has") as caught:
            reader.read(request)
        assert caught.value.param == param
    assert len(reader.read(CompletionRequest("m", sampling, (5,) * 512))) == 512
    few = reader.read(CompletionRequest("m", sampling, "hello " * 100))
    assert 0 < len(few) < 512
