"""Looks for one stop string in text that comes in pieces. Pure."""

from __future__ import annotations


class StopSearch:
    """Knuth, Morris and Pratt: each character is looked at once, and steps back are paid for by steps forward.

    `held` is the length of the longest beginning of `stop`, never all of it, that the text so far ends in.
    """

    __slots__ = ("_borders", "_stop", "held")

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = [0, 0]  # of the first 0, 1, ... characters; made only as far as the text has matched
        self.held = 0

    def push(self, text: str) -> int | None:
        """Takes in more text. Where in it the first occurrence of `stop` ends, None when none ends in it."""
        stop, borders, held, found = self._stop, self._borders, self.held, None
        for end, character in enumerate(text, 1):
            while held and stop[held] != character:
                held = borders[held]
            if stop[held] == character:
                held += 1
                if held == len(borders):
                    self._next_border()
                if held == len(stop):
                    held = borders[held]
                    found = found or end
        self.held = held
        return found

    def _next_border(self) -> None:
        """The border of a text: its longest beginning, but for all of it, that it also ends in."""
        stop, borders = self._stop, self._borders
        last, border = stop[len(borders) - 1], borders[-1]
        while border and stop[border] != last:
            border = borders[border]
        borders.append(border + (stop[border] == last))
