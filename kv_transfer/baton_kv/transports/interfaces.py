"""Which network interface has an address: UCX is told interfaces, we are told addresses."""

from __future__ import annotations

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915  # netdevice(7)
_IFREQ = struct.Struct("16s24x")
_ADDRESS = slice(20, 24)


def interface_of(host: str) -> str | None:
    """ "127.0.0.1" -> "lo"; None for a name, a wildcard, an IPv6 address or one that no interface here has."""
    try:
        wanted = socket.inet_aton(host)
    except OSError:
        return None
    if wanted == bytes(4):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        names = [name for _, name in socket.if_nameindex()]
        return next((name for name in names if _address(asker, name) == wanted), None)


def _address(asker: socket.socket, name: str) -> bytes | None:
    """The interface's first IPv4 address."""
    try:
        return fcntl.ioctl(asker, _SIOCGIFADDR, _IFREQ.pack(name.encode()))[_ADDRESS]
    except OSError:  # it has none, or is gone by now
        return None
