"""When a prefill worker may stop keeping blocks, and which tickets were used. Pure: the clock is an argument.

While prefill still computes, only the request's own deadline ends a lease. From its end on, the lease is `lease_s` long
and every sign of life from the decode worker renews it, never beyond the deadline.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from baton_api.errors import TicketRefused, TransferError


@dataclass(slots=True)
class LeaseTerm:
    """`deadline_s` and all `now_s` are on one monotonic clock."""

    deadline_s: float
    lease_s: float
    quiet_since_s: float | None = None

    def finished(self, now_s: float) -> None:
        """Prefill ended: from now on the lease runs."""
        self.quiet_since_s = now_s

    def renew(self, now_s: float) -> None:
        """The decode worker gave a sign of life. Before the end of prefill there is nothing to renew."""
        if self.quiet_since_s is not None:
            self.quiet_since_s = max(self.quiet_since_s, now_s)

    def stood_still(self, for_s: float, now_s: float) -> None:
        """This process did not run for so long until now: a sign of life may be waiting to be read."""
        if self.quiet_since_s is not None:
            self.quiet_since_s = max(self.quiet_since_s, min(now_s, self.quiet_since_s + for_s))

    @property
    def expires_at_s(self) -> float:
        if self.quiet_since_s is None:
            return self.deadline_s
        return min(self.deadline_s, self.quiet_since_s + self.lease_s)

    def expired(self, now_s: float) -> bool:
        return now_s >= self.expires_at_s


@dataclass(slots=True)
class Obituaries:
    """Why leases ended whose decode worker has not come yet, so that it hears at once. The oldest makes room."""

    capacity: int
    _errors: dict[str, TransferError] = field(default_factory=dict)

    def add(self, transfer_id: str, error: TransferError) -> None:
        while len(self._errors) >= self.capacity:
            del self._errors[next(iter(self._errors))]
        self._errors[transfer_id] = error

    def take(self, transfer_id: str) -> TransferError | None:
        return self._errors.pop(transfer_id, None)

    def __len__(self) -> int:
        return len(self._errors)


@dataclass(slots=True)
class TicketBook:
    """Transfers whose ticket was used, each remembered until its ticket expires by itself (Unix time)."""

    capacity: int
    _used: set[str] = field(default_factory=set)
    _by_expiry: list[tuple[float, str]] = field(default_factory=list)

    def use(self, transfer_id: str, expires_at_s: float, now_s: float) -> None:
        """Raises TicketRefused for a replay, and when there is no room to remember one more."""
        self._forget(now_s)
        if transfer_id in self._used:
            raise TicketRefused(f"ticket of transfer {transfer_id} was used already", code="ticket_replayed")
        if len(self._used) >= self.capacity:
            raise TicketRefused(f"{self.capacity} used tickets are remembered already", code="ticket_book_full")
        self._used.add(transfer_id)
        heapq.heappush(self._by_expiry, (expires_at_s, transfer_id))

    def was_used(self, transfer_id: str) -> bool:
        return transfer_id in self._used

    def __len__(self) -> int:
        return len(self._used)

    def _forget(self, now_s: float) -> None:
        while self._by_expiry and self._by_expiry[0][0] <= now_s:
            self._used.discard(heapq.heappop(self._by_expiry)[1])
