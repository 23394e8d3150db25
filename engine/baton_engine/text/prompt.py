"""A request's prompt as token ids: the chat template, then the tokenizer.

Used by the gateway and, for requests that come to it directly, by a worker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from baton_api.errors import BadRequest, ContextLengthExceeded
from baton_api.openai import ChatRequest, CompletionRequest

from .template import ChatTemplate
from .tokenizer import Tokenizer, load_chat_template

_USUAL_CHARS_PER_TOKEN = 8


class ModelReader:
    """Chat template and tokenizer of one model. `context` is its longest context in tokens, None if nobody says so:
    what is far beyond it is refused before it is tokenised, which is what costs most."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, context: int | None = None, cache_bytes: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context = context
        self._cache = tokenizer.piece_cache(cache_bytes) if cache_bytes else None

    @classmethod
    def load(cls, folder: Path, cache_bytes: int = 0) -> ModelReader:
        """Raises SettingError."""
        return cls(Tokenizer.load(folder), load_chat_template(folder), _context(folder), cache_bytes)

    def read(self, request: ChatRequest | CompletionRequest, owner: bytes = b"") -> Sequence[int]:
        """`owner`: whose text it is; what is remembered of it helps nobody else. Raises BadRequest."""
        if isinstance(request, ChatRequest):
            return self._chat(request, owner)
        if isinstance(request.prompt, str):
            self._refuse_far_too_long(request.prompt, "prompt")
            return self._tokenizer.encode(request.prompt, add_special_tokens=True)
        ids = request.prompt or ()
        if self._context is not None and len(ids) > self._context:
            raise self._too_long(f"{len(ids)}", "prompt")
        return self._checked(ids, "prompt")

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
        self._refuse_far_too_long(text, "messages")
        if self._cache is not None:
            return self._cache.encode(text, owner)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _refuse_far_too_long(self, text: str, param: str) -> None:
        """Raises ContextLengthExceeded."""
        context = self._context
        if context is not None and len(text) > _USUAL_CHARS_PER_TOKEN * context:
            count = self._tokenizer.at_least(text, context)
            if count > context:
                raise self._too_long(f"more than {context}", param)

    def _too_long(self, count: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"this model's context is {self._context} tokens; the prompt has {count}", param=param
        )


def _context(folder: Path) -> int | None:
    """`max_position_embeddings` of the model's config.json."""
    try:
        limit = json.loads((folder / "config.json").read_bytes()).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return limit if isinstance(limit, int) and limit > 0 else None
