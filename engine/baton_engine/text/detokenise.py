"""Token ids of one choice to text, as they come, never half a character. Pure.

The window method of text-generation-inference and vLLM: tokens are decoded together with the ones before them, because
what a token reads as depends on these (a leading space, the bytes of one character spread over several tokens). Text
goes out once it no longer ends in U+FFFD, which is what an unfinished character decodes to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

CONTEXT_TOKENS = 6
# A character has 4 bytes at most; so many tokens that end in no whole character are none.
MAX_HELD_TOKENS = 32
UNFINISHED = "\ufffd"


class Detokeniser:
    """`decode` turns ids into text, special tokens left out or not; `prompt` are the tokens before the output, so that
    the first one gets its leading space. Tokens at the prompt's end that end in an unfinished character count as
    output, as they do when a choice is resumed elsewhere: their text was held there, and comes here."""

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._done = len(self._window)
        while self._done and decode(self._window[: self._done]).endswith(UNFINISHED):
            self._done -= 1
        self._before = decode(self._window[: self._done])

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; "" while a character is unfinished."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(UNFINISHED) and len(self._window) - self._done < MAX_HELD_TOKENS:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What is held, at the end: an unfinished character becomes U+FFFD, as in one decode of all tokens."""
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        new = text[len(self._before) :]
        if new:
            self._window = self._window[self._done :]
            self._done = len(self._window)
            self._before = self._decode(self._window)
        return new
