"""UCX settings by profile, and the names of what was negotiated. Pure.

PEER error mode (endpoint error handling) is always on: without it a dead peer takes this process with it. In that mode
UCX refuses shared memory unless POSIX_ERROR_HANDLING and SYSV_ERROR_HANDLING are on, and falls silently back to tcp.
A dead peer on shared memory is seen after KEEPALIVE_INTERVAL, 20 s by default.
"""

from __future__ import annotations

from collections.abc import Iterable

# Before ucxx is imported. It would ask for CUDA staging buffers, UCX would complain about ucxx's own variables, and it
# would log to stdout, which is the process's own.
PROCESS_ENV = {"UCX_RNDV_FRAG_MEM_TYPE": "host", "UCX_WARN_UNUSED_ENV_VARS": "n", "UCX_LOG_FILE": "stderr"}
LOOPBACK = "lo"

_SHARED_MEMORY = {"POSIX_ERROR_HANDLING": "y", "SYSV_ERROR_HANDLING": "y"}
_ALWAYS = {"KEEPALIVE_INTERVAL": "500ms"}

PROFILES: dict[str, dict[str, str]] = {
    "ucx": {**_ALWAYS, **_SHARED_MEMORY},
    "ucx/tcp": {**_ALWAYS, "TLS": "tcp"},
    "ucx/shm": {**_ALWAYS, **_SHARED_MEMORY, "TLS": "tcp,posix,sysv"},
}

_RDMA = ("rc", "dc", "ud", "ib", "gdr", "srd")
_SHM = ("posix", "sysv", "cma", "xpmem", "knem", "self")


def options(profile: str, environment: Iterable[str], interface: str | None = None) -> dict[str, str]:
    """UCX options of `profile`, without those the operator set as UCX_... in `environment`.

    `interface` is the one that peers reach this process on. Left alone UCX also takes every other one it finds, those
    of bridges and of other containers too, and connects to addresses that nobody answers. Profile `ucx` may use RDMA
    devices, which are interfaces of their own, and is pinned only when it never leaves the host.
    """
    pinned = interface is not None and (profile != "ucx" or interface == LOOPBACK)
    wanted = {**PROFILES[profile], **({"NET_DEVICES": interface} if pinned and interface else {})}
    chosen = {name.removeprefix("UCX_") for name in environment if name.startswith("UCX_")}
    return {name: value for name, value in wanted.items() if name not in chosen}


def negotiated(transports: Iterable[str]) -> str:
    """The short name for the transports of an endpoint's lanes. The best one carries the data."""
    names = tuple(transports)
    if any(name.startswith(_RDMA) for name in names):
        return "ucx/rdma"
    return "ucx/shm" if any(name.startswith(_SHM) for name in names) else "ucx/tcp"
