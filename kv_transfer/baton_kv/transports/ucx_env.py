"""UCX settings by profile, and the names of what was negotiated. Pure.

PEER error mode (endpoint error handling) is always on: without it a dead peer takes this process with it. In that mode
UCX refuses shared memory unless POSIX_ERROR_HANDLING and SYSV_ERROR_HANDLING are on, and falls silently back to tcp.
A dead peer on shared memory is seen after KEEPALIVE_INTERVAL, 20 s by default.
"""

from __future__ import annotations

from collections.abc import Iterable

# Before ucxx is imported. It would ask for CUDA staging buffers, and UCX would complain about ucxx's own variables.
PROCESS_ENV = {"UCX_RNDV_FRAG_MEM_TYPE": "host", "UCX_WARN_UNUSED_ENV_VARS": "n"}

_SHARED_MEMORY = {"POSIX_ERROR_HANDLING": "y", "SYSV_ERROR_HANDLING": "y"}
_ALWAYS = {"KEEPALIVE_INTERVAL": "500ms"}

PROFILES: dict[str, dict[str, str]] = {
    "ucx": {**_ALWAYS, **_SHARED_MEMORY},
    "ucx/tcp": {**_ALWAYS, "TLS": "tcp"},
    "ucx/shm": {**_ALWAYS, **_SHARED_MEMORY, "TLS": "tcp,posix,sysv"},
}

_RDMA = ("rc", "dc", "ud", "ib", "gdr", "srd")
_SHM = ("posix", "sysv", "cma", "xpmem", "knem", "self")


def options(profile: str, environment: Iterable[str]) -> dict[str, str]:
    """UCX options of `profile`, without those the operator set as UCX_... in `environment`."""
    chosen = {name.removeprefix("UCX_") for name in environment if name.startswith("UCX_")}
    return {name: value for name, value in PROFILES[profile].items() if name not in chosen}


def negotiated(transports: Iterable[str]) -> str:
    """The short name for the transports of an endpoint's lanes. The best one carries the data."""
    names = tuple(transports)
    if any(name.startswith(_RDMA) for name in names):
        return "ucx/rdma"
    return "ucx/shm" if any(name.startswith(_SHM) for name in names) else "ucx/tcp"
