"""Counts silent heartbeats of a peer. Pure.

It counts beats, not time: a process whose own event loop stood still for ten seconds has missed one beat, and does not
declare every peer dead when it wakes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pulse:
    allowed_misses: int
    misses: int = 0

    def heard(self) -> None:
        """Any message counts as a sign of life."""
        self.misses = 0

    def beat(self) -> bool:
        """One heartbeat interval passed. False: the peer is lost."""
        self.misses += 1
        return self.misses <= self.allowed_misses
