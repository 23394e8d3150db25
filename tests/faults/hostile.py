"""Rows 30 to 32: bodies made to hurt, sent to a real gateway process; each answer's status, and what it cost in CPU
and memory. No worker may hear of any of them: their counters say so, which a good request moves."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path

from support.stack import API_KEY, Stack

from .client import head_and
from .story import Figure

CPU_MS = 5.0
SPARE = b'{"model":"tiny","prompt":"x","max_tokens":1,'
CHAT = b'{"model":"tiny","messages":'
MIB = 1 << 20
SETTINGS = {"max_body_bytes": 16 * MIB}  # the default
MEMORY_MIB = 2 * SETTINGS["max_body_bytes"] / MIB


@dataclass(frozen=True, slots=True)
class Attack:
    """One request as bytes, and the statuses that are right; 0 is a connection closed without an answer."""

    name: str
    row: str
    request: bytes
    statuses: frozenset[int]


def attacks(max_model_len: int) -> list[Attack]:
    """`max_model_len` in tokens: the prompts of row 31 exceed it."""
    return [*large(), *long_prompts(max_model_len), *malformed(), *smuggled()]


def large() -> list[Attack]:
    deep = b"[" * 10_000 + b"]" * 10_000
    messages = b"[" + b",".join([b'{"role":"user","content":"a"}'] * 100_000) + b"]}"
    nest = b"[" * 60 + b"]" * 60 + b","
    biases = json.dumps({str(i): 1 for i in range(5000)}).encode()
    too_large = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n".encode()
    return [
        Attack("200 MB announced", "30", too_large + b"content-length: 200000000\r\n\r\n", frozenset({413})),
        Attack("1 MB header", "30", b"GET /health HTTP/1.1\r\nx: " + b"a" * MIB + b"\r\n\r\n", frozenset({431, 400})),
        refused("100 000 messages", "30", CHAT + messages, "/v1/chat/completions"),
        refused("JSON depth 10 000", "30", SPARE + b'"user":' + deep + b"}"),
        refused("128 000 nests of depth 60", "30", SPARE + b'"user":[' + nest * 128_000 + b"1]}"),
        refused("1.2 million empty arrays", "30", SPARE + b'"user":[' + b"[]," * 1_200_000 + b"1]}"),
        refused("250 000 names", "30", SPARE + b",".join(b'"%d":1' % i for i in range(250_000)) + b"}"),
        refused("a million token ids", "30", b'{"model":"tiny","prompt":[' + b"123456," * 999_999 + b"1]}"),
        refused("a million digits", "30", SPARE + b'"seed":' + b"9" * 1_000_000 + b"}"),
        refused("n = 100 000", "30", SPARE + b'"n":100000}'),
        refused("max_tokens = 10^15", "30", b'{"model":"tiny","prompt":"x","max_tokens":1000000000000000}'),
        refused("5000 logit biases", "30", SPARE + b'"logit_bias":' + biases + b"}"),
        refused("10 000 stop strings", "30", SPARE + b'"stop":' + json.dumps(["a"] * 10_000).encode() + b"}"),
    ]


def long_prompts(max_model_len: int) -> list[Attack]:
    ids = list(range(3, 600)) * (max_model_len // 500 + 1)
    return [
        refused("token ids beyond the context", "31", json.dumps({"model": "tiny", "prompt": ids}).encode()),
        refused(
            "text beyond the context", "31", json.dumps({"model": "tiny", "prompt": "a b " * max_model_len}).encode()
        ),
    ]


def malformed() -> list[Attack]:
    bodies = {
        "cut off": b'{"model":"tiny","prompt":"x"',
        "not UTF-8": b'{"model":"tiny","prompt":"\xff\xfe"}',
        "a lone surrogate": b'{"model":"tiny","prompt":"\\ud800"}',
        "NaN": SPARE + b'"temperature":NaN}',
        "Infinity": SPARE + b'"temperature":1e999}',
        "wrong type": b'{"model":"tiny","prompt":{"a":1}}',
        "no object": b"[1,2,3]",
        "nothing": b"",
        "NUL bytes": b"\0" * 100,
    }
    return [refused(name, "32", body) for name, body in bodies.items()]


def smuggled() -> list[Attack]:
    start = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n".encode()
    cases = {
        "both lengths": start + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": start + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "folded header": start + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        "bare LF": start.replace(b"\r\n", b"\n") + b"content-length: 2\n\n{}",
        "underscore": start + b"content_length: 100\r\ncontent-length: 2\r\n\r\n{}",
        "chunk size that is none": start + b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        "space before the colon": start + b"content-length : 2\r\n\r\n{}",
        "minus length": start + b"content-length: -1\r\n\r\n",
    }
    return [Attack(name, "32", request, frozenset({400, 0})) for name, request in cases.items()]


def refused(name: str, row: str, body: bytes, path: str = "/v1/completions") -> Attack:
    return Attack(name, row, head_and(body, path), frozenset({400, 413}))


def hostile(stack: Stack, times: int) -> list[Figure]:
    """Every attack so many times; the median CPU of each, the worst of these; what memory grew by."""
    assert stack.gateway is not None
    pid, port = stack.gateway.process.pid, int(stack.gateway.ready["port"])
    found = attacks(2048)
    before = reached(stack)
    ask_well(stack)
    counted = reached(stack) - before
    before, routed = reached(stack), routes(stack)
    base_kib, worst, wrong = _memory_kib(pid, "VmRSS"), {}, []
    for attack in found:
        _send(port, attack.request)  # a process that has never seen such a body pays for its first memory
        spent_ms = []
        for _ in range(times):
            before_ns = _cpu_ns(pid)
            status = _send(port, attack.request)
            spent_ms.append((_cpu_ns(pid) - before_ns) / 1e6)
            if status not in attack.statuses:
                wrong.append(f"{attack.name}: {status}")
        worst[attack.name] = sorted(spent_ms)[len(spent_ms) // 2]
    heard, routed = reached(stack) - before, routes(stack) - routed
    alive = stack.gateway.process.poll() is None
    for told in wrong:
        print(f"  wrong status: {told}")
    figures = [_cpu_figure(row, found, worst, times) for row in ("30", "31", "32")]
    return [
        *figures,
        Figure("30", "answers other than 400, 413, 431 or a closed connection", "count", len(wrong), 0, times=times),
        Figure("30", "memory peak above the start", "MiB", (_memory_kib(pid, "VmHWM") - base_kib) / 1024, MEMORY_MIB),
        Figure("30", "legs that a good request makes, as counted", "count", counted, 1, "higher"),
        Figure("30", "requests for which a worker was chosen", "count", routed, 0, times=times),
        Figure("30", "legs that reached a worker", "count", heard, 0, times=times),
        Figure("30", "gateway alive", "processes", float(alive), 1, "higher"),
    ]


def reached(stack: Stack) -> float:
    """Legs that the workers have begun, those included that have not ended. What a worker refuses unread is not among
    them: `routes` has that."""
    stack.wait_quiet()
    return sum(stack.metric(name, "baton_worker_requests_total") for name in stack.workers)


def routes(stack: Stack) -> float:
    return stack.metric("gateway", "baton_gateway_routes_total")


def ask_well(stack: Stack) -> None:
    status, answer = stack.post("/v1/completions", {"model": "tiny", "prompt": "a b c", "max_tokens": 2})
    assert status == 200, answer


def _cpu_figure(row: str, found: list[Attack], worst_ms: dict[str, float], times: int) -> Figure:
    name, spent_ms = max(((a.name, worst_ms[a.name]) for a in found if a.row == row), key=lambda pair: pair[1])
    return Figure(row, f"most CPU ({name})", "ms", spent_ms, CPU_MS if row == "30" else None, times=times)


def _send(port: int, request: bytes) -> int:
    """The answer's status; 0 when the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(request)
        except OSError:
            pass  # it answered and closed before it had read all
        try:
            answer = connection.recv(65536)
        except ConnectionError:
            return 0
    return int(answer.split(b" ", 2)[1]) if answer else 0


def _cpu_ns(pid: int) -> int:
    """CPU time of all threads, in the kernel's nanoseconds (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def _memory_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
