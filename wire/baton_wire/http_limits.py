"""What one peer may cost us: the bounds of the HTTP server and client. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

from baton_api.errors import SettingError

KIB = 1024
MIB = 1024 * KIB


def _require_positive(limits: ServerLimits | ClientLimits) -> None:
    for field in fields(limits):
        value = getattr(limits, field.name)
        if value is not None and not value > 0:
            raise SettingError(field.name, value, "must be above zero", "give a positive number or leave the default")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one server. Time limits are checked by a sweep of all connections (`sweep_interval_s`)."""

    max_body_bytes: int = 16 * MIB
    max_bodies_bytes: int = 512 * MIB
    """Of all connections together, until their answers have ended; beyond it a growing body gets 503. Those of up
    to 16 KiB that came in one piece with their head are not counted."""
    max_header_bytes: int = 32 * KIB
    """Request line and header section together."""
    max_target_bytes: int = 8 * KIB
    max_headers: int = 100
    header_timeout_s: float = 10.0
    """From the first byte of a head (or the accept, for the first one) to its end."""
    body_grace_s: float = 10.0
    body_min_bytes_per_s: float = 1024.0
    """A body may fall `body_grace_s` behind this rate; coming faster at first earns no silence later."""
    idle_timeout_s: float = 75.0
    max_connections: int = 4096
    max_connections_per_address: int = 4096
    """Of one client address; one more gets 429."""
    max_refused_connections: int = 256
    """Open beside the others while their refusal is read; one more is reset without an answer."""
    write_high_water_bytes: int = 16 * KIB
    """Above it `drain` waits and relays pause. Small events weigh three times their size there."""
    max_unsent_bytes: int = 32 * KIB
    """That the kernel takes of an answer before it can send them (tcp(7), TCP_NOTSENT_LOWAT; Linux only): its own
    buffer grows to megabytes, and a reader that stands still would be noticed only then."""
    max_write_buffer_bytes: int = 4 * MIB
    """A stream whose writer ignores `drain` is cut here."""
    write_stall_s: float = 60.0
    """A client that takes nothing of its answer for so long, with the buffer above its mark, is cut."""
    max_pipelined_bytes: int = 64 * KIB
    """Read ahead while a request is answered; then reading pauses."""
    linger_s: float = 2.0
    """After a refusal the client may go on sending for so long (discarded), so that it can read the refusal."""

    def __post_init__(self) -> None:
        _require_positive(self)

    @property
    def sweep_interval_s(self) -> float:
        shortest = min(self.header_timeout_s, self.body_grace_s, self.idle_timeout_s, self.write_stall_s, self.linger_s)
        return min(1.0, shortest / 4)


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of one client."""

    max_connections_per_peer: int = 1024
    max_waiting_per_peer: int = 4096
    """Requests that wait for a connection; one more is refused with NoCapacity."""
    max_idle_per_peer: int = 256
    idle_timeout_s: float = 60.0
    """Below the server's, so that the client is the one to close and the race for an idle connection stays rare."""
    connect_timeout_s: float = 5.0
    max_head_bytes: int = 64 * KIB
    max_answer_bytes: int = 64 * MIB
    """Of a whole answer held in memory (`request`); streams are not counted."""
    max_buffered_bytes: int = 256 * KIB
    """Read ahead of the consumer of a `stream`; then reading pauses."""
    receive_buffer_bytes: int | None = None
    """Of a connection in the kernel (SO_RCVBUF, which does not grow then): all that is read at once, and what a server
    can send ahead of a consumer that has paused. 64 KiB in flight are 128 MB/s at 0.5 ms, 1.3 at 50 ms."""
    max_coding_bytes: int = 16 * KIB
    """Chunk headers, extensions and trailers between two bytes of payload."""

    def __post_init__(self) -> None:
        _require_positive(self)
