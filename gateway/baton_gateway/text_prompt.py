"""A prompt known by its text alone, for `routing.keys: text`: nothing is tokenised here, the worker does it. Pure.

Its keys are block keys of the text's bytes. What routing counts in tokens is an estimate, four bytes each: good enough
to compare workers, never used to refuse a prompt as too long and never signed into a ticket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from baton_api.blocks import TextKey, text_keys

BYTES_PER_TOKEN = 4
KEY_TOKENS = 128
"""Per key. Coarser than a KV block: hashing is most of what is left to do per prompt."""
_NOT_SENT = frozenset({"messages", "prompt", "cache_salt"})


class TextPrompt:
    """Its text is what decides the prompt's tokens, in a form whose beginnings are those of a longer conversation; what
    is said of the template comes first, for it changes everything after it."""

    __slots__ = ("_keys", "_name", "_said", "_text", "salt")
    exact = False

    def __init__(self, fields: Mapping[str, Any], salt: bytes) -> None:
        self.salt = salt
        self._name = "messages" if "messages" in fields else "prompt"
        self._said = msgspec.json.encode(fields[self._name])
        kwargs = fields.get("chat_template_kwargs")
        self._text = msgspec.json.encode(kwargs) + self._said if kwargs else self._said
        self._keys: list[TextKey] | None = None

    def __len__(self) -> int:
        return max(1, len(self._text) // BYTES_PER_TOKEN)

    def keys(self, block_tokens: int) -> list[TextKey]:
        """The same for every block size: the index holds nothing else beside them."""
        if self._keys is None:
            self._keys = text_keys(self._text, KEY_TOKENS * BYTES_PER_TOKEN, self.salt)
        return self._keys

    def blocks_of(self, keys: int, block_tokens: int) -> int:
        """How many KV blocks the first `keys` keys stand for."""
        return keys * KEY_TOKENS // block_tokens

    def into(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The body as the client sent it; its cache_salt is in the salt already."""
        kept = {name: value for name, value in fields.items() if name not in _NOT_SENT}
        kept[self._name] = msgspec.Raw(self._said)
        return kept
