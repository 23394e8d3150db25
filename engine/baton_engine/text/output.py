"""One choice's tokens to what a client sees: text, stop strings, log probabilities. Pure.

Stop strings as in vLLM: a match may begin in earlier tokens, the text ends before it (after it with
`include_stop_str_in_output`), the first stop string of the list wins within one token's text, and none is looked for
until more than `min_tokens` tokens are there. Text that may be the beginning of a stop string is held back.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton_api.sampling import FinishReason, SampledToken, SamplingParams

from .detokenise import Detokeniser
from .stop_search import StopSearch

TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One candidate for one position. `bytes` may be part of a character; `text` then has U+FFFD in its place."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The drawn token and the best ones. `text_offset`: characters of the output before the one that this
    token begins in."""

    drawn: TokenChoice
    top: tuple[TokenChoice, ...]
    text_offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What new tokens add. `stop` is the stop string or stop token id that ended the choice (None: end of sequence).
    `cancel`: a stop string ended it, and the engine does not know yet: call stop_choice()."""

    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop: str | int | None = None
    cancel: bool = False


class _Characters:
    """Counts the characters in the bytes of consecutive tokens; bytes that make none count as U+FFFD."""

    def __init__(self) -> None:
        self._count = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> int:
        """How many characters come before the one that `data` begins in."""
        before, unfinished = self._count, bool(self._decoder.getstate()[0])
        first = self._decoder.decode(data[:1])
        self._count += len(first) + len(self._decoder.decode(data[1:]))
        can_finish = bool(data) and data[0] & 0xC0 == 0x80
        # Unfinished for ever, when there is a character more than the one that this byte can finish.
        return before + (unfinished and len(first) > can_finish)


class ChoiceOutput:
    """`token_bytes` gives the bytes of a token on its own; `hidden` are the special tokens that have no text."""

    def __init__(
        self,
        sampling: SamplingParams,
        detokeniser: Detokeniser,
        token_bytes: TokenBytes,
        hidden: frozenset[int] = frozenset(),
    ) -> None:
        self._sampling = sampling
        self._detokeniser = detokeniser
        self._token_bytes = token_bytes
        self._hidden = hidden
        self._held = ""
        self._searches = [StopSearch(stop) for stop in sampling.stop]
        self._tokens = 0
        self._characters = _Characters()
        self._over = False

    def push(self, tokens: Sequence[SampledToken], finish: FinishReason | None = None) -> Delta:
        """Takes in the engine's next tokens. After the end of the choice, whoever ended it, there is nothing more."""
        if self._over:
            return Delta()
        logprobs: list[TokenLogprobs] = []
        for index, token in enumerate(tokens, 1):
            self._tokens += 1
            if self._sampling.top_logprobs is not None:
                logprobs.append(self._logprobs(token))
            if finish == "stop" and index == len(tokens) and not self._sampling.include_stop_str_in_output:
                break
            matched = self._add(self._detokeniser.push(token.token_id))
            if matched is not None:
                return self._ended(Delta("", tuple(logprobs), "stop", matched, cancel=finish is None))
        if finish is None:
            return Delta(self._release(), tuple(logprobs))
        matched = self._add(self._detokeniser.flush())
        if matched is not None:
            return self._ended(Delta("", tuple(logprobs), "stop", matched))
        return self._ended(Delta("", tuple(logprobs), finish, self._stop_token(tokens, finish)))

    def _ended(self, delta: Delta) -> Delta:
        self._over = True
        text, self._held = self._held, ""
        return Delta(text, delta.logprobs, delta.finish, delta.stop, delta.cancel)

    def _stop_token(self, tokens: Sequence[SampledToken], finish: FinishReason) -> int | None:
        last = tokens[-1].token_id if tokens else None
        return last if finish == "stop" and last in self._sampling.stop_token_ids else None

    def _add(self, text: str) -> str | None:
        """Adds text to what is held and cuts it at a stop string, which is returned."""
        start, self._held = len(self._held), self._held + text
        found = [search.push(text) for search in self._searches]
        if self._tokens <= self._sampling.min_tokens:
            return None
        for stop, end in zip(self._sampling.stop, found, strict=True):
            if end is not None:
                cut = 0 if self._sampling.include_stop_str_in_output else len(stop)
                self._held = self._held[: start + end - cut]
                return stop
        return None

    def _release(self) -> str:
        """Text that no stop string can begin in."""
        cut = len(self._held) - max((search.held for search in self._searches), default=0)
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _logprobs(self, token: SampledToken) -> TokenLogprobs:
        drawn = self._candidate(token.token_id, token.logprob if token.logprob is not None else 0.0)
        shown = b"" if token.token_id in self._hidden else drawn.bytes
        return TokenLogprobs(
            drawn,
            tuple(self._candidate(token_id, logprob) for token_id, logprob in token.top),
            self._characters.add(shown),
        )

    def _candidate(self, token_id: int, logprob: float) -> TokenChoice:
        data = self._token_bytes(token_id)
        return TokenChoice(token_id, data.decode("utf-8", "replace"), data, logprob)
