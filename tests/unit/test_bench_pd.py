"""bench.pd's own parts: what a client counts, what the proxy passes on, and that whole process trees end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bench.cpu import end_tree, tree
from bench.pd_client import Target, offer
from bench.pd_proxy import ASK, Proxy


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server with that handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Engine(BaseHTTPRequestHandler):
    """Answers a leg that asks for a hand-off with parameters, any other with an event stream of `tokens` tokens."""

    asked: list[dict[str, Any]]
    tokens = 3

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if body.get("kv_transfer_params") == ASK:
            answer = json.dumps({"kv_transfer_params": {"remote_block_ids": [[1, 2]]}}).encode()
        else:
            events = [{"choices": [{"token_ids": [number]}]} for number in range(self.tokens)]
            answer = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


def engine(count: int = 3) -> type[Engine]:
    return type("OneEngine", (Engine,), {"asked": [], "tokens": count})


def test_the_proxy_asks_prefill_for_one_token_and_gives_its_parameters_to_decode() -> None:
    prefill, decode = engine(), engine()
    with served(prefill) as prefill_port, served(decode) as decode_port:
        ports = {"prefill_port": prefill_port, "decode_port": decode_port}
        with served(type("OneProxy", (Proxy,), ports)) as port:
            load = offer(Target(port), [[5, 6], [7]], output=3, concurrency=2)
    assert [stream.token_ids for stream in load.streams] == [(0, 1, 2), (0, 1, 2)]
    assert all(leg["max_tokens"] == 1 and not leg["stream"] for leg in prefill.asked)
    assert all(leg["kv_transfer_params"] == {"remote_block_ids": [[1, 2]]} for leg in decode.asked)
    assert sorted(leg["prompt"] for leg in decode.asked) == [[5, 6], [7]]
    assert all(leg["max_tokens"] == 3 and leg["stream"] for leg in decode.asked)


def test_an_answer_with_too_few_tokens_fails_the_load() -> None:
    with served(engine(count=2)) as port, pytest.raises(RuntimeError, match="2 tokens instead of 3"):
        offer(Target(port), [[5]], output=3, concurrency=1)


def test_a_process_ends_with_all_its_descendants() -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
    process = subprocess.Popen([sys.executable, "-c", code])
    end_s = time.monotonic() + 30
    while len(members := tree(process.pid)) < 2 and time.monotonic() < end_s:
        time.sleep(0.02)
    assert len(members) == 2
    end_tree(process.pid)
    process.wait(10)
    child = Path("/proc", str(members[1]), "stat")
    while child.exists() and ") Z " not in child.read_text() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not child.exists() or ") Z " in child.read_text()
