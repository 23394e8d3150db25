"""A request's prompt as token ids: the chat template, then the tokenizer.

Used by the gateway and, for requests that come to it directly, by a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from baton_api.errors import BadRequest
from baton_api.openai import ChatRequest, CompletionRequest

from .template import ChatTemplate
from .tokenizer import Tokenizer, load_chat_template


class ModelReader:
    """Chat template and tokenizer of one model."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, cache_chars: int = 0) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._cache = tokenizer.piece_cache(cache_chars) if cache_chars else None

    @classmethod
    def load(cls, folder: Path, cache_chars: int = 0) -> ModelReader:
        """Raises SettingError."""
        return cls(Tokenizer.load(folder), load_chat_template(folder), cache_chars)

    def read(self, request: ChatRequest | CompletionRequest, owner: bytes = b"") -> Sequence[int]:
        """`owner`: whose text it is; what is remembered of it helps nobody else. Raises BadRequest."""
        if isinstance(request, ChatRequest):
            return self._chat(request, owner)
        if isinstance(request.prompt, str):
            return self._tokenizer.encode(request.prompt, add_special_tokens=True)
        return self._checked(request.prompt or (), "prompt")

    def text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(self._checked(token_ids, "tokens"), skip_special_tokens=False)

    def _checked(self, ids: Sequence[int], param: str) -> Sequence[int]:
        if ids and max(ids) >= self._tokenizer.vocab_size:
            raise BadRequest(f"{param} holds token id {max(ids)}, which this model does not have", param=param)
        return ids

    def _chat(self, request: ChatRequest, owner: bytes) -> Sequence[int]:
        if self._template is None:
            raise BadRequest("this model has no chat template; use /v1/completions", param="messages")
        messages = [message.for_template() for message in request.messages]
        text = self._template.render(messages, variables=dict(request.template_kwargs))
        if self._cache is not None:
            return self._cache.encode(text, owner)
        return self._tokenizer.encode(text, add_special_tokens=False)
