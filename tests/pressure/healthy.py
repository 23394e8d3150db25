"""A well-behaved client on one connection: how long its small requests take, one after another."""

from __future__ import annotations

import asyncio
import json
import time

from faults.client import head_and

Address = tuple[str, int]
SMALL = head_and(json.dumps({"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0}).encode())
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def metric(server: Address, series: str, address: str) -> int:
    """Of the gateway; `series` with its labels. 0 if there is none. This question counts too."""
    reader, writer = await asyncio.open_connection(*server, local_addr=(address, 0))
    try:
        writer.write(METRICS)
        lines = (await reader.read()).decode().splitlines()
    finally:
        writer.close()
    return next((int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(f"{series} ")), 0)


async def latencies_ms(server: Address, request: bytes, for_s: float, pause_s: float, address: str) -> list[float]:
    """Every answer must be a 200. Raises AssertionError."""
    reader, writer = await asyncio.open_connection(*server, local_addr=(address, 0))
    took: list[float] = []
    end_s = time.monotonic() + for_s
    try:
        while time.monotonic() < end_s:
            began_s = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head[:200]
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            took.append((time.perf_counter() - began_s) * 1e3)
            await asyncio.sleep(pause_s)
    finally:
        writer.close()
    return took
