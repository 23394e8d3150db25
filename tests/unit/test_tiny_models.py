"""The tiny models that other tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from support.tiny_models import CORPUS, TinyModel, make_model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_same_shape_and_seed_give_the_same_bytes(tmp_path: Path, family: str) -> None:
    shape = TinyModel(family=family, dtype="bfloat16")  # type: ignore[arg-type]
    first, second = make_model(tmp_path / "a", shape), make_model(tmp_path / "b", shape)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_the_tokenizer_spells_every_text_and_stays_below_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(make_model(tmp_path, TinyModel(shards=3)) / "tokenizer.json"))
    for text in (*CORPUS, "\x00\x7f emoji 👩‍🚀 and שלום"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert max(ids) < 640
    assert (tmp_path / "model.safetensors.index.json").exists()
