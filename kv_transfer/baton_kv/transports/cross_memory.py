"""Reads another process's memory on the same host: process_vm_readv(2), what UCX and MPI call cross-memory attach.

The kernel copies straight from the other process's pages into ours. It needs the same PID namespace and the right to
trace the other process (same user, and no Yama or seccomp rule against it). A process that is gone is an OSError.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def address_of(view: memoryview) -> int:
    """Where `view`'s first byte lies in this process; `view` has at least one."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def read(pid: int, address: int, into: memoryview) -> None:
    """Fills `into` from `address` of process `pid`, without the interpreter's lock. Raises OSError."""
    here, done = address_of(into), 0
    while done < into.nbytes:
        left = into.nbytes - done
        near, far = _Vector(here + done, left), _Vector(address + done, left)
        count = _libc.process_vm_readv(pid, ctypes.byref(near), 1, ctypes.byref(far), 1, 0)
        if count <= 0:
            error = ctypes.get_errno()
            raise OSError(error, f"process_vm_readv of process {pid}: {os.strerror(error)}")
        done += count


_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = (
    ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip
