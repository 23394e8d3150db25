"""Prompts known by their text: keys, estimates, and what the worker is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton_api.blocks import text_keys
from baton_api.errors import SettingError
from baton_api.settings import parse
from baton_gateway.legs import Handing, decode_body
from baton_gateway.settings import GatewaySettings
from baton_gateway.text_prompt import BYTES_PER_TOKEN, KEY_TOKENS, TextPrompt

SALT, OTHER = bytes(32), b"o" * 32
BLOCK = KEY_TOKENS * BYTES_PER_TOKEN


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **fields}


def shared(one: dict[str, Any], other: dict[str, Any], salt: bytes = SALT) -> int:
    """How many leading keys two prompts have in common."""
    pairs = zip(TextPrompt(one, SALT).keys(16), TextPrompt(other, salt).keys(16), strict=False)
    return next((count for count, (mine, theirs) in enumerate(pairs) if mine != theirs), -1)


def test_a_longer_conversation_begins_with_the_keys_of_the_shorter_one() -> None:
    first, second = chat("a" * 2100), chat("a" * 2100, "b" * 1000)
    keys = TextPrompt(first, SALT).keys(16)
    assert len(keys) == 4 and TextPrompt(second, SALT).keys(16)[:4] == keys


@pytest.mark.parametrize(
    ("change", "salt"),
    [
        (chat("a" * 2000, chat_template_kwargs={"thinking": True}), SALT),
        (chat("b" + "a" * 1999), SALT),
        (chat("a" * 2000), OTHER),
        ({"prompt": "a" * 2000}, SALT),
    ],
    ids=["template arguments", "first letter", "tenant", "completion"],
)
def test_what_changes_the_prompt_or_its_owner_changes_every_key(change: dict[str, Any], salt: bytes) -> None:
    assert shared(chat("a" * 2000), change, salt) == 0


def test_a_difference_far_back_leaves_the_keys_before_it() -> None:
    assert shared(chat("a" * 2000), chat("a" * 1200 + "b" * 800)) == 2


def test_a_partial_block_of_text_has_no_key() -> None:
    text = b"x" * (2 * BLOCK)
    assert len(text_keys(text, BLOCK, SALT)) == 2 and len(text_keys(text[:-1], BLOCK, SALT)) == 1


def test_keys_count_as_the_kv_blocks_that_their_text_is_taken_for() -> None:
    prompt = TextPrompt({"prompt": "a" * 1022}, SALT)
    assert (len(prompt), prompt.exact) == (1024 // BYTES_PER_TOKEN, False)
    assert prompt.blocks_of(3, 16) == 3 * KEY_TOKENS // 16 and prompt.blocks_of(1, 256) == 0
    assert len(TextPrompt({"prompt": ""}, SALT)) == 1, "routing divides by it"


def test_the_worker_gets_the_text_and_no_token_ids() -> None:
    fields = chat("hi", model="m", cache_salt="s", chat_template_kwargs={"thinking": True})
    body = json.loads(decode_body(fields, TextPrompt(fields, SALT), Handing("t", 1.0, "recompute", None)))
    assert body["messages"] == fields["messages"] and body["chat_template_kwargs"] == {"thinking": True}
    assert "prompt_token_ids" not in body and "cache_salt" not in body
    assert body["kv_transfer_params"]["ticket"] is None


@pytest.mark.parametrize("mode", ["auto", "disaggregated"])
def test_text_keys_cannot_be_had_with_a_transfer(mode: str) -> None:
    raw = {"fleet_file": "f", "model_path": "m", "prefix_keys": "text", "mode": mode}
    with pytest.raises(SettingError, match="does not fit mode"):
        parse(GatewaySettings, raw)
    assert parse(GatewaySettings, {**raw, "mode": "aggregated"}).prefix_keys == "text"
