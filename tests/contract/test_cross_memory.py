"""Transport `cma`: what is lent is read in place; where that is not allowed the link is plain tcp and says so."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import struct
import subprocess
import sys

import pytest

from baton_kv.settings import KvSettings
from baton_kv.transport import TOKEN_BYTES, make_transport
from baton_kv.transports import cross_memory

TOKEN = b"t" * TOKEN_BYTES


def test_memory_of_this_process_is_read_byte_for_byte() -> None:
    source = random.Random(1).randbytes(3_000_001)
    found = bytearray(b"z" * (len(source) + 2))
    cross_memory.read(os.getpid(), cross_memory.address_of(memoryview(source)), memoryview(found)[1:-1])
    assert bytes(found) == b"z" + source + b"z"


def test_memory_of_another_process_is_read() -> None:
    script = (
        "import ctypes, sys; held = ctypes.create_string_buffer(b'baton' * 9);"
        "print(ctypes.addressof(held), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        address = int(child.stdout.readline())
        found = bytearray(45)
        cross_memory.read(child.pid, address, memoryview(found))
        child.communicate()
    assert found == b"baton" * 9


def test_a_process_that_is_gone_and_an_address_that_is_not_mapped_are_errors() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for pid, address in ((child.pid, 4096), (os.getpid(), 4096)):
        with pytest.raises(OSError, match="process_vm_readv"):
            cross_memory.read(pid, address, memoryview(bytearray(8)))


@pytest.mark.parametrize("why", ["another probe", "no such process", "no such address"])
async def test_a_listener_whose_memory_cannot_be_read_gets_a_plain_tcp_link(
    why: str, caplog: pytest.LogCaptureFixture
) -> None:
    probe = bytearray(b"p" * TOKEN_BYTES)
    pid = 2**31 - 1 if why == "no such process" else os.getpid()
    address = 8 if why == "no such address" else cross_memory.address_of(memoryview(probe))
    said = b"q" * TOKEN_BYTES if why == "another probe" else bytes(probe)
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        token = await reader.readexactly(TOKEN_BYTES)
        writer.write(token + struct.pack("<QQ", pid, address) + said)
        answers.put_nowait(await reader.readexactly(1))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listener, "127.0.0.1", 0) as server:
        near = make_transport("cma", KvSettings())
        with caplog.at_level(logging.WARNING, "baton.kv"):
            link = await near.connect(f"127.0.0.1|{server.sockets[0].getsockname()[1]}", TOKEN, 5.0)
        assert (link.negotiated, await answers.get()) == ("tcp", b"S")
        assert "runs on tcp, cma was asked for" in caplog.text
        await near.close()


async def test_a_link_that_does_not_read_memory_is_lost_when_it_is_asked_to() -> None:
    """A frame that names an address, on plain tcp: the peer broke the protocol."""
    far, near = make_transport("tcp", KvSettings()), make_transport("tcp", KvSettings())
    await far.listen()
    expected = await far.expect(TOKEN)
    link = await near.connect(expected.address, TOKEN, 5.0)
    received = link.recv(1, memoryview(bytearray(100_000)))
    (await expected.link)._sock.sendall(struct.pack("<IIQQ", 1, 1, 100_000, 4096))  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="kind 1"):
        await received
    await near.close()
    await far.close()
