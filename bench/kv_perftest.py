"""ucx_perftest from the libucx wheel: one tagged-message bandwidth test with Baton's own UCX settings."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import time
from pathlib import Path

from baton_kv.transports import ucx_env

from .kv_baton import Moved

_THRESHOLD = {"UCX_RNDV_THRESH": "8192"}  # what ucxx sets by itself


def perftest_path() -> Path:
    """The binary comes without its execute bit."""
    import libucx

    path = Path(next(iter(libucx.__path__)), "bin", "ucx_perftest")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def environment(transport: str) -> dict[str, str]:
    """The variables that a Baton process on `transport` runs UCX with."""
    chosen = {f"UCX_{name}": value for name, value in ucx_env.PROFILES[transport].items()}
    libraries = perftest_path().parent.parent / "lib"
    return {**os.environ, **ucx_env.PROCESS_ENV, **_THRESHOLD, **chosen, "LD_LIBRARY_PATH": str(libraries)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def run(transport: str, message_bytes: int, messages: int) -> Moved:
    """tag_bw with error handling (-e), as the product runs. CPU of both processes, start included.

    It sends the same `message_bytes` again and again: a small message stays in the cache, blocks of a pool do not.
    """
    env, port = environment(transport), str(free_port())
    command = [str(perftest_path()), "-p", port, "-e"]
    test = ["-t", "tag_bw", "-s", str(message_bytes), "-n", str(messages), "-w", "2", "-f", "-v"]
    cpu_s = _children_cpu_s()
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_listening(int(port), server)
        client = subprocess.run(
            [*command[:1], "127.0.0.1", *command[1:], *test],
            check=True,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        server.wait(timeout=10)
    finally:
        server.kill()
        server.wait()
    micros = float(client.stdout.strip().splitlines()[-1].split(",")[3])  # overall_lat: microseconds a message
    size_bytes = message_bytes * messages
    return Moved(micros * messages / 1e6, _children_cpu_s() - cpu_s, size_bytes)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _wait_listening(port: int, server: subprocess.Popen[bytes]) -> None:
    """Looks into /proc/net/tcp: a probing connect would be taken for the peer."""
    wanted, give_up_s = f":{port:04X}", time.monotonic() + 15
    while time.monotonic() < give_up_s and server.poll() is None:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == "0A":
                return
        time.sleep(0.01)
    raise RuntimeError("ucx_perftest does not listen")
