"""What the gateway's settings allow its HTTP server, and whether this machine can give it."""

from __future__ import annotations

import resource
from dataclasses import fields

from baton_api.errors import SettingError
from baton_wire.http_limits import ClientLimits, ServerLimits

from .settings import GatewaySettings

SPARE_DESCRIPTORS = 512
"""For idle connections to workers, files and listeners."""
LEGS = 2
WORKER_BUFFER_BYTES = 64 << 10


def server_limits(settings: GatewaySettings) -> ServerLimits:
    """The settings that have a limit's name; the others keep their defaults."""
    named = {field.name for field in fields(ServerLimits)} & set(settings.__dataclass_fields__)
    return ServerLimits(**{name: getattr(settings, name) for name in named})


def client_limits(settings: GatewaySettings) -> ClientLimits:
    """Towards workers. All requests may be on one of them, while as many that have just ended there or went elsewhere
    still hold theirs: none waits for a connection."""
    return ClientLimits(max_connections_per_peer=2 * settings.max_in_flight, receive_buffer_bytes=WORKER_BUFFER_BYTES)


def ensure_descriptors(settings: GatewaySettings) -> None:
    """Raises this process's soft limit to what it may need. SettingError when the hard limit is lower: connections
    beyond it would hang unaccepted, with no answer at all."""
    ours = LEGS * settings.max_in_flight + SPARE_DESCRIPTORS
    wanted = settings.max_connections + ours
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and wanted > hard:
        raise SettingError(
            "max_connections",
            settings.max_connections,
            f"needs {wanted} file descriptors; the limit is {hard}",
            f"use {max(1, hard - ours)} or less, or raise the limit (ulimit -Hn)",
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
