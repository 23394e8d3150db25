"""How many connections a server holds: in all, and of one address. Pure.

An IPv6 client owns a /64 at least, so that is what counts as one address; IPv4 inside IPv6 counts as IPv4.
"""

from __future__ import annotations

import ipaddress

from baton_api.errors import BatonError, NoCapacity, Overloaded
from baton_wire.http_limits import ServerLimits


class Doors:
    """Counts by address; `enter` and `leave` come in pairs, for refused ones too."""

    __slots__ = ("_limits", "_of")

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._of: dict[str, int] = {}

    def enter(self, host: str, open_connections: int) -> BatonError | None:
        """The refusal, if there is one; `open_connections` counts this one, and no refused ones."""
        group = address_group(host)
        count = self._of[group] = self._of.get(group, 0) + 1
        limits = self._limits
        if open_connections > limits.max_connections:
            return NoCapacity(
                f"{limits.max_connections} connections are open", code="too_many_connections", retry_after_s=1.0
            )
        if count > limits.max_connections_per_address:
            return Overloaded(
                f"{limits.max_connections_per_address} connections of your address are open; close some",
                code="too_many_connections_of_address",
                retry_after_s=1.0,
            )
        return None

    def leave(self, host: str) -> None:
        group = address_group(host)
        left = self._of[group] - 1
        if left:
            self._of[group] = left
        else:
            del self._of[group]

    def check_quiescent(self) -> None:
        assert not self._of


def address_group(host: str) -> str:
    """What counts as one client; anything that is no IP address (a Unix socket) by its own name."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()
