"""Which transports UCX finds here, and which an endpoint's lanes really use, asked from libucp.

ucxx has no call for it; ucp_ep_query() with UCP_EP_ATTR_FIELD_TRANSPORTS (UCX >= 1.13, ucp/api/ucp.h) answers for the
endpoint handle that ucxx exposes.
"""

from __future__ import annotations

import ctypes
import os
import re

from . import ucx_env

_FIELD_TRANSPORTS = 1 << 3
_MAX_LANES = 64


class _Lane(ctypes.Structure):
    _fields_ = (("transport", ctypes.c_char_p), ("device", ctypes.c_char_p))


class _Lanes(ctypes.Structure):
    _fields_ = (("entries", ctypes.POINTER(_Lane)), ("count", ctypes.c_uint), ("entry_size", ctypes.c_size_t))


class _EndpointAttributes(ctypes.Structure):
    _fields_ = (
        ("field_mask", ctypes.c_uint64),
        ("name", ctypes.c_char * 32),
        ("local_sockaddr", ctypes.c_char * 128),
        ("remote_sockaddr", ctypes.c_char * 128),
        ("transports", _Lanes),
        ("user_data", ctypes.c_void_p),
    )


def lane_transports(endpoint_handle: int) -> tuple[str, ...]:
    """Transport names of a connected endpoint's lanes, without the connection manager's. Raises OSError."""
    lanes = (_Lane * _MAX_LANES)()
    attributes = _EndpointAttributes(field_mask=_FIELD_TRANSPORTS)
    attributes.transports = _Lanes(lanes, _MAX_LANES, ctypes.sizeof(_Lane))
    status = ctypes.CDLL("libucp.so.0").ucp_ep_query(ctypes.c_void_p(endpoint_handle), ctypes.byref(attributes))
    if status != 0:
        raise OSError(f"ucp_ep_query returned {status}")
    return tuple(lane.transport.decode() for lane in lanes[: attributes.transports.count] if lane.device)


def found_here() -> tuple[str, ...]:
    """Every transport/device that UCX finds for this process ("tcp/eth0", "rc_mlx5/mlx5_0:1"). Raises ImportError
    where ucxx is not installed, OSError or RuntimeError where UCX cannot start."""
    for name, value in ucx_env.PROCESS_ENV.items():
        os.environ.setdefault(name, value)
    import libucx

    libucx.load_library()
    from ucxx._lib import libucxx

    context = libucxx.UCXContext(ucx_env.options("ucx", os.environ))
    return tuple(re.findall(r"^#\s+resource \d+ .* -- (\S+)$", context.info, re.MULTILINE))
