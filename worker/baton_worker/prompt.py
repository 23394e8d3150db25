"""A request that came without token ids, as tokens: the chat template, then the tokenizer."""

from __future__ import annotations

from pathlib import Path

from baton_api.errors import BadRequest
from baton_api.openai import ChatRequest, CompletionRequest
from baton_engine.text.template import ChatTemplate
from baton_engine.text.tokenizer import Tokenizer, load_chat_template


class Prompter:
    """One model's way from a request to its prompt's tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> Prompter:
        return cls(tokenizer, load_chat_template(folder))

    def tokens(self, request: ChatRequest | CompletionRequest) -> tuple[int, ...]:
        """Raises BadRequest when the model has no chat template or it refuses the messages."""
        if request.prompt_token_ids is not None:
            return request.prompt_token_ids
        if isinstance(request, ChatRequest):
            return tuple(self._tokenizer.encode(self._rendered(request), add_special_tokens=False))
        if isinstance(request.prompt, str):
            return tuple(self._tokenizer.encode(request.prompt, add_special_tokens=True))
        return request.prompt or ()

    def _rendered(self, request: ChatRequest) -> str:
        if self._template is None:
            raise BadRequest("this model has no chat template; use /v1/completions", param="messages")
        messages = [message.for_template() for message in request.messages]
        return self._template.render(messages, variables=dict(request.template_kwargs))
