"""Settings and identities of the KV transfer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.settings import setting

TRANSPORTS = ("ucx", "ucx/tcp", "ucx/shm", "tcp", "cma", "inproc")


@dataclass(frozen=True, slots=True)
class KvSettings:
    """Every limit of the transfer. Times in seconds."""

    transport: str = setting("ucx", "how KV bytes move", choices=TRANSPORTS)
    data_host: str = setting("127.0.0.1", "address that peers reach this process's data port on")
    data_port: int = setting(0, "tcp and cma: port for KV bytes; 0 lets the system choose", low=0, high=65535)
    transfer_timeout_s: float = setting(
        30.0, "longest a pull may take, its wait for prefill included", low=0.01, high=3600
    )
    connect_timeout_s: float = setting(5.0, "longest the first connect to a peer may take", low=0.01, high=60)
    heartbeat_s: float = setting(0.7, "pause between heartbeats on a stream", low=0.01, high=60)
    heartbeat_misses: int = setting(3, "silent heartbeats after which a peer is lost", low=1, high=100)
    lease_s: float = setting(10.0, "how long finished blocks are kept for a silent decode worker", low=0.01, high=600)
    drain_grace_s: float = setting(1.0, "how long an ended transfer may keep its link to end cleanly", low=0, high=60)
    window_blocks: int = setting(256, "receives posted at a time by one pull", low=1, high=65536)
    seal_bytes: int = setting(16 << 20, "KV bytes checksummed at a time by prefill", low=1, high=1 << 32)
    inline_bytes: int = setting(128 << 10, "checksums up to this size run on the event loop", low=0, high=1 << 30)
    max_transfers: int = setting(1024, "transfers at a time, leases and waiting pulls together", low=1, high=1 << 20)
    max_peers: int = setting(256, "peers connected at a time", low=1, high=1 << 16)
    max_remembered_tickets: int = setting(262144, "used tickets remembered until they expire", low=1, high=1 << 24)


@dataclass(frozen=True, slots=True)
class PrefillIdentity:
    """Who this prefill process is; `epoch` is random per incarnation."""

    worker_id: str
    epoch: str


@dataclass(frozen=True, slots=True)
class DecodeIdentity:
    """Who this decode process is; `epoch` is random per incarnation."""

    worker_id: str
    epoch: str
