"""The measurements: slow sockets, a long queue, hostile bodies; each with what it must keep to."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median, quantiles

from bench.rows import Row, single

from faults.client import head_and
from support.stack import Stack

from .healthy import HEALTH, SMALL, latencies_ms, metric
from .process import Watched
from .slow import slow_crowd

HEALTHY = "127.0.0.2"
SLOW_S = 30.0
KIB = 1024
REFUSED = 'baton_gateway_unread_total{reason="too_many_connections_of_address"}'
SLOTS = 64
"""`max_in_flight` of the gateway with the long queue."""


def address(stack: Stack) -> tuple[str, int]:
    assert stack.gateway is not None
    return "127.0.0.1", int(stack.gateway.ready["port"])


def watched(stack: Stack) -> Watched:
    assert stack.gateway is not None
    return Watched(stack.gateway.process.pid)


async def slow_sockets(stack: Stack, count: int, *, held: int) -> list[Row]:
    """`held`: as many of one address the server holds, all of them or fewer than there are."""
    server, gateway = address(stack), watched(stack)
    alone = await latencies_ms(server, SMALL, SLOW_S / 3, 0.02, HEALTHY)
    before = gateway.rss_mib()
    gateway.forget_peak()
    async with slow_crowd(server, count) as met:
        await asyncio.sleep(8.0)
        computing_s = await _computed(stack)
        opened = await _connections(server)
        beside = await latencies_ms(server, SMALL, SLOW_S, 0.02, HEALTHY)
        opened += await _connections(server)
        refused = await metric(server, REFUSED, HEALTHY)
    peak = gateway.peak_mib()
    case = f"{count} slow sockets of one address, {'all held' if held == count else 'capped'}"
    print(f"{case}: their answers made after {8 + computing_s:.0f} s; open then {opened}; {dict(met)}")
    base = ("alone", median(alone))
    return [
        single(case, "sockets", median(opened), ("held", held), bar=0.9, metric="open, median", better="higher"),
        _refused(case, refused, count - held),
        single(case, "ms", median(beside), base, bar=None, metric="healthy client, p50"),
        single(case, "ms", _p99(beside), ("alone", _p99(alone)), bar=1.2, metric="healthy client, p99"),
        single(case, "MiB", peak, ("before", before), bar=None, metric="RSS peak"),
        single(case, "KiB", max(0.0, peak - before) * KIB / held, ("bar", 64.0), bar=1.0, metric="RSS per socket"),
    ]


def _refused(case: str, refused: int, too_many: int) -> Row:
    """Whoever is too many is refused at least once; nobody is where all are held."""
    if too_many:
        return single(case, "sockets", refused, ("too many", too_many), bar=1.0, metric="refused", better="higher")
    return single(case, "sockets", refused + 1, ("none", 1), bar=1.0, metric="refused, + 1")


async def _connections(server: tuple[str, int], times: int = 5) -> list[int]:
    """What the server itself says is open, once a second: a socket is open to its client before it is accepted. Those
    that are just told why they are refused (linger_s) count too."""
    seen = []
    for _ in range(times):
        seen.append(await metric(server, "baton_gateway_connections", HEALTHY) - 1)
        await asyncio.sleep(1.0)
    return seen


async def _computed(stack: Stack, at_most_s: float = 40.0) -> float:
    """Waits until the workers are done with what the slow readers asked for: that they share the model is no news."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + at_most_s:
        loads = [(await asyncio.to_thread(stack.info, name)).load for name in stack.workers]
        if not any(load.running or load.waiting for load in loads):
            break
        await asyncio.sleep(0.5)
    return time.monotonic() - began_s


@dataclass(frozen=True, slots=True)
class Queue:
    """What `long_queue` must see: requests that wait at once, and 200s among the answers."""

    name: str
    wait_least: int
    wait_most: int
    answered: int


async def long_queue(stack: Stack, count: int, queue: Queue) -> list[Row]:
    """So many requests at once, each on a connection of its own, with 1.5 kB prompts: every one is answered."""
    server, gateway = address(stack), watched(stack)
    prompt = " ".join(["baton relay prefill decode"] * 55)
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 1}).encode()
    before = gateway.rss_mib()
    gateway.forget_peak()
    began_s = time.monotonic()
    met: Counter[str] = Counter()
    connecting = asyncio.Semaphore(512)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_most_waiting(server, lambda: met.total() == count))
        for number in range(count):
            group.create_task(_asked(server, head_and(body), number, connecting, met))
    waited = watching.result()
    peak = gateway.peak_mib()
    print(f"{count} at once: {dict(met)}, at most {waited} waiting, in {time.monotonic() - began_s:.1f} s")
    case = f"{count} requests at once, {queue.name}"
    unanswered = count - sum(told for code, told in met.items() if code in ("200", "429", "503"))
    return [
        single(case, "MiB", peak, ("before", before), bar=None, metric="RSS peak"),
        single(case, "KiB", max(0.0, peak - before) * KIB / count, ("bar", 64.0), bar=1.0, metric="RSS per request"),
        single(case, "requests", unanswered + 1, ("none", 1), bar=1.0, metric="neither 200, 429 nor 503, + 1"),
        single(case, "requests", met["200"], ("wanted", queue.answered), bar=1.0, metric="200", better="higher"),
        single(case, "requests", waited, ("least", queue.wait_least), bar=1.0, metric="waiting, peak", better="higher"),
        single(case, "requests", waited, ("most", queue.wait_most), bar=1.0, metric="waiting, peak at most"),
    ]


async def _most_waiting(server: tuple[str, int], over: Callable[[], bool]) -> int:
    """For the tokeniser or for a slot: what is in flight, less the slots and this very question."""
    most = 0
    while not over():
        in_flight = await metric(server, "baton_gateway_in_flight", HEALTHY)
        most = max(most, in_flight - 1 - SLOTS)
        await asyncio.sleep(0.2)
    return most


async def _asked(
    server: tuple[str, int], request: bytes, number: int, connecting: asyncio.Semaphore, met: Counter[str]
) -> None:
    try:
        async with connecting:
            source = (f"127.0.1.{number % 16 + 1}", 0)
            reader, writer = await asyncio.open_connection(*server, local_addr=source)
            writer.write(request)
        try:
            met[(await reader.readuntil(b"\r\n\r\n"))[9:12].decode()] += 1
        finally:
            writer.close()
    except (OSError, asyncio.IncompleteReadError) as error:
        met[type(error).__name__] += 1


def bodies() -> Iterator[tuple[str, bytes, int]]:
    """(name, body, status): what costs most to read."""
    start = b'{"model":"tiny","max_tokens":1,'
    messages = b",".join([b'{"role":"user","content":"a"}'] * 100_000)
    yield "1 MB of text", start + b'"prompt":"' + b"a b " * 250_000 + b'"}', 400
    yield "5 MB of text", start + b'"prompt":"' + b"a b " * 1_250_000 + b'"}', 400
    yield "15 MB of text", start + b'"prompt":"' + b"a b " * 3_750_000 + b'"}', 400
    yield "a million token ids", start + b'"prompt":[' + b"123456," * 999_999 + b"1]}", 400
    yield "100 000 messages", b'{"model":"tiny","messages":[' + messages + b"]}", 400
    yield "depth 10 000", start + b'"user":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400
    yield "depth 1 000 000", start + b'"user":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", 400
    yield "a million digits", start + b'"seed":' + b"9" * 1_000_000 + b"}", 400
    yield "a million names", start + b",".join(b'"a%d":1' % n for n in range(1_000_000)) + b"}", 400
    yield "200 MB announced", b"", 413


async def hostile_bodies(stack: Stack, times: int = 5) -> list[Row]:
    """CPU per body, and how long another client waited meanwhile (on a machine that others use too)."""
    rows = []
    for name, body, status in bodies():
        request = head_and(body) if body else head_and(b"").replace(b"content-length: 0", b"content-length: 200000000")
        if b'"messages"' in body[:40]:
            request = head_and(body, "/v1/chat/completions")
        rows += await _hostile(stack, f"body: {name}", request, status, times)
    return rows


async def _hostile(stack: Stack, case: str, request: bytes, status: int, times: int) -> list[Row]:
    server, gateway = address(stack), watched(stack)
    on_loop, everywhere, waits, peaks = [], [], [], []
    for _ in range(times):
        gateway.forget_peak()
        before, loop_ms, all_ms = gateway.rss_mib(), gateway.loop_ms(), gateway.all_ms()
        await _send(server, request, status)
        on_loop.append(max(0.001, gateway.loop_ms() - loop_ms))
        everywhere.append(max(0.001, gateway.all_ms() - all_ms))
        peaks.append(max(0.01, gateway.peak_mib() - before))
        beside = asyncio.create_task(latencies_ms(server, HEALTH, 0.4, 0.001, HEALTHY))
        await asyncio.sleep(0.1)
        await _send(server, request, status)
        waits.append(max(await beside))
    size_mib = max(0.1, len(request) / 2**20)
    bar = ("bar", 5.0)
    return [
        single(case, "ms", median(on_loop), bar, bar=1.0, metric="CPU on the loop, reading it included"),
        single(case, "ms", median(everywhere), bar, bar=None, metric="CPU in all"),
        single(case, "ms", median(waits), bar, bar=None, metric="longest wait of another client"),
        single(case, "MiB", median(peaks), ("the body", size_mib), bar=None, metric="RSS above before"),
    ]


async def _send(server: tuple[str, int], request: bytes, status: int) -> None:
    """On a thread: the client's own work must not delay the one who measures the wait."""
    told = await asyncio.to_thread(_blocking, server, request)
    assert told == status, (told, status, request[:100])


def _blocking(server: tuple[str, int], request: bytes) -> int:
    with socket.create_connection(server, timeout=30) as sock:
        try:
            sock.sendall(request)
        except OSError:
            pass  # it answered, and closed before it had read all
        return int(sock.recv(65536).split(b" ", 2)[1])


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]
