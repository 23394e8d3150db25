"""Row 28's long streams, in a process of their own, so that they take no turns from the clients that are timed:
`python -m faults.readers URL COUNT SEED PAUSE_S SHORTEST` says "ready", reads a byte every PAUSE_S seconds (0: all that
comes) of answers of SHORTEST to ANSWER_TOKENS tokens, and leaves when its input ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from .client import body_of, head_and
from .story import Case

ANSWER_TOKENS = 1900


@contextlib.contextmanager
def readers(url: str, count: int, seed: int, pause_s: float = 1.0, shortest: int = ANSWER_TOKENS) -> Iterator[None]:
    """So many of them, under way."""
    command = (sys.executable, "-m", "faults.readers", url, str(count), str(seed), str(pause_s), str(shortest))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n", "the readers did not begin"
            yield
        finally:
            process.stdin.close()
            process.wait(30.0)
    assert process.returncode == 0, f"the readers ended with {process.returncode}"


class Reader:
    """One stream, on a thread of its own."""

    def __init__(self, url: str, rng: random.Random, pause_s: float, shortest: int) -> None:
        tokens = rng.randint(shortest, ANSWER_TOKENS)
        case = Case(tuple(rng.randrange(3, 640) for _ in range(60)), tokens, extras={"logprobs": 5})
        self._leaving, self._pause_s = threading.Event(), pause_s
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = url.removeprefix("http://").split(":")
        self._socket.connect((host, int(port)))
        self._socket.sendall(head_and(json.dumps(body_of(case, stream=True)).encode()))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._leaving.wait(self._pause_s):
            try:
                if not self._socket.recv(1 if self._pause_s else 65536):
                    return
            except OSError:
                return

    def close(self) -> None:
        self._leaving.set()
        with contextlib.suppress(OSError):  # it has read all
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def main(argv: Sequence[str]) -> None:
    url, count, seed, pause_s, shortest = argv
    rng = random.Random(int(seed))
    under_way = [Reader(url, rng, float(pause_s), int(shortest)) for _ in range(int(count))]
    print("ready", flush=True)
    sys.stdin.read()
    for reader in under_way:
        reader.close()


if __name__ == "__main__":
    main(sys.argv[1:])
