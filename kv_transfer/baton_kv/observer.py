"""What the KV transfer tells whoever keeps metrics. Pure.

The rows of baton_api.metrics.KV map one to one: transfers and bytes by side, the pull's timeline, leases, checksum
failures, asked and negotiated transport.
"""

from __future__ import annotations

from typing import Literal, Protocol

from baton_api.timing import PullTimeline

Side = Literal["prefill", "decode"]


class KvObserver(Protocol):
    """Called on the event loop; must not block or raise."""

    def on_transfer_end(self, side: Side, outcome: str, moved_bytes: int, timeline: PullTimeline | None) -> None:
        """`outcome` is "acked" or a reason; `timeline` only for a pull that succeeded."""

    def on_checksum_failures(self, blocks: int) -> None: ...

    def on_leases(self, held: int) -> None:
        """How many leases are held now."""

    def on_link(self, asked: str, negotiated: str) -> None:
        """A data link came up."""


class Unobserved:
    """Nobody watches."""

    def on_transfer_end(self, side: Side, outcome: str, moved_bytes: int, timeline: PullTimeline | None) -> None:
        pass

    def on_checksum_failures(self, blocks: int) -> None:
        pass

    def on_leases(self, held: int) -> None:
        pass

    def on_link(self, asked: str, negotiated: str) -> None:
        pass
