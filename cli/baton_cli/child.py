"""python -m baton_cli.child PARENT_PID MODULE ARGUMENT...: `python -m MODULE`, bound to its supervisor's life.

Linux kills this process when the supervisor dies, however it dies (prctl(2), PR_SET_PDEATHSIG). It is done here and not
between fork and exec, where a supervisor with threads could not do it safely.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Does nothing where there is no prctl: there only the supervisor's own clean end stops its children."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the call
        os._exit(1)


def main() -> None:
    die_with(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
