"""What a decode worker says beside its event stream so that another one can go on in its place. Pure.

An SSE comment line before each event tells the tokens that the event accounts for. The gateway takes these lines out by
their bytes, keeps them one after another, and, when the worker dies, sends them as the field `emitted` to the next one,
which alone reads them:

    :@<created> <cached>            before the first event: Unix seconds, cached prompt tokens
    :<choice>[ <token id>]...[.]    before each event of a choice; "." when the event ended it

An event that was not passed on whole leaves no line, so what these lines tell is what the client has. Tokens whose text
is still held back (half characters, the beginning of a stop string) stand with the next event, or are drawn again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import BadRequest

_START = re.compile(r":@([0-9]{1,15}) ([0-9]{1,10})")
_LINE = re.compile(r":([0-9]{1,2})((?: [0-9]{1,10})*)(\.?)")


@dataclass(slots=True)
class EmittedChoice:
    """`begun`: an event of it was passed on (its role, if nothing else). `over`: its last one was."""

    token_ids: list[int] = field(default_factory=list)
    begun: bool = False
    over: bool = False


@dataclass(frozen=True, slots=True)
class Emitted:
    """How far the client's answer is. `created_s` and `cached_tokens` are None while nothing was passed on."""

    choices: tuple[EmittedChoice, ...]
    created_s: int | None = None
    cached_tokens: int | None = None

    @property
    def over(self) -> bool:
        return all(choice.over for choice in self.choices)

    @property
    def token_count(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)

    def for_engine(self) -> tuple[tuple[int, ...] | None, ...]:
        """Per choice the tokens to go on from, None when it is over; () when every choice begins."""
        if not self.token_count:
            return ()
        return tuple(None if choice.over else tuple(choice.token_ids) for choice in self.choices)


def start_line(created_s: int, cached_tokens: int) -> bytes:
    return b":@%d %d\n" % (created_s, cached_tokens)


def event_line(choice: int, token_ids: Sequence[int], *, over: bool) -> bytes:
    """For the event that comes next."""
    ids = "".join(f" {token_id}" for token_id in token_ids)
    return f":{choice}{ids}{'.' if over else ''}\n".encode()


def read_emitted(lines: str, n: int) -> Emitted:
    """What `lines` tell about the n choices of a request. Raises BadRequest when they are not of this form."""
    choices = tuple(EmittedChoice() for _ in range(n))
    created_s = cached_tokens = None
    for line in lines.splitlines():
        if found := _LINE.fullmatch(line):
            _take(choices, int(found[1]), [int(token_id) for token_id in found[2].split()], over=bool(found[3]))
        elif (start := _START.fullmatch(line)) and created_s is None:
            created_s, cached_tokens = int(start[1]), int(start[2])
        else:
            raise BadRequest(f"emitted has a line {line[:32]!r}", param="emitted")
    if created_s is None and any(choice.begun for choice in choices):
        raise BadRequest("emitted does not say when the answer was created", param="emitted")
    return Emitted(choices, created_s, cached_tokens)


def _take(choices: Sequence[EmittedChoice], index: int, token_ids: list[int], *, over: bool) -> None:
    if index >= len(choices) or choices[index].over:
        raise BadRequest(f"emitted names choice {index}, of {len(choices)} or over before", param="emitted")
    choice = choices[index]
    choice.begun, choice.over = True, over
    choice.token_ids += token_ids
