"""Every transport keeps the promises of baton_kv/transport.py: bytes are checked, and so are their neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from baton_api.errors import PeerLost, SettingError
from baton_kv.settings import KvSettings
from baton_kv.transport import TOKEN_BYTES, Link, Transport, make_transport

SETTINGS = KvSettings(connect_timeout_s=3.0)
NAMES = ("inproc", "tcp", "cma", "ucx/tcp", "ucx/shm")
needs_ucx = pytest.mark.skipif(
    importlib.util.find_spec("ucxx") is None, reason="ucxx IS NOT INSTALLED: the ucx transports were NOT tested"
)
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_ucx) if name.startswith("ucx") else name for name in NAMES]
)


@asynccontextmanager
async def joined(name: str) -> AsyncIterator[tuple[Link, Link, Transport, Transport]]:
    """(sending end, receiving end, listening transport, connecting transport)"""
    far, near = make_transport(name, SETTINGS), make_transport(name, SETTINGS)
    try:
        await far.listen()
        yield *await link(far, near), far, near
    finally:
        await near.close()
        await far.close()


async def link(far: Transport, near: Transport) -> tuple[Link, Link]:
    token = secrets.token_bytes(TOKEN_BYTES)
    expected = await far.expect(token)
    receiver = await near.connect(expected.address, token, 3.0)
    return await expected.link, receiver


async def done(futures: list[asyncio.Future[None]], within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        for future in futures:
            await future


async def move(sender: Link, receiver: Link, size: int, count: int, order: list[int], post_order: list[int]) -> None:
    """Moves `count` messages of `size` random bytes between guard bytes, and checks every byte of both."""
    source = random.Random(size).randbytes(size * count)
    room = size + 2
    destination = bytearray(b"\xa5" * (room * count))
    view = memoryview(destination)
    received = [receiver.recv(tag, view[tag * room + 1 : tag * room + 1 + size]) for tag in post_order]
    sent = [sender.send(tag, memoryview(source)[tag * size : (tag + 1) * size]) for tag in order]
    await done(received + sent)
    for tag in range(count):
        guarded = bytes(view[tag * room : (tag + 1) * room])
        assert guarded == b"\xa5" + source[tag * size : (tag + 1) * size] + b"\xa5"


@every
@pytest.mark.parametrize("size", [1, 7, 4096, 8193, 65536, 1 << 20, 4 << 20])
async def test_every_byte_arrives_and_no_neighbour_is_touched(name: str, size: int) -> None:
    async with joined(name) as (sender, receiver, _, _):
        await move(sender, receiver, size, 3, [0, 1, 2], [0, 1, 2])


@every
async def test_bytes_flow_both_ways(name: str) -> None:
    async with joined(name) as (sender, receiver, _, _):
        await asyncio.gather(
            move(sender, receiver, 65536, 8, list(range(8)), list(range(8))),
            move(receiver, sender, 65537, 8, list(range(8)), list(range(8))),
        )


@every
async def test_thousands_of_tags_posted_and_sent_in_any_order(name: str) -> None:
    shuffle = random.Random(5)
    order, post_order = list(range(3000)), list(range(3000))
    shuffle.shuffle(order)
    shuffle.shuffle(post_order)
    async with joined(name) as (sender, receiver, _, _):
        await move(sender, receiver, 512, 3000, order, post_order)


@every
async def test_an_empty_message_ends_a_receive_without_a_byte(name: str) -> None:
    async with joined(name) as (sender, receiver, _, _):
        destination = bytearray(b"z" * 100_000)
        received = receiver.recv(5, memoryview(destination))
        await done([sender.send(5, memoryview(b"")), received])
        assert destination == b"z" * 100_000


@every
async def test_two_links_of_one_transport_never_mix_equal_tags(name: str) -> None:
    far, near = make_transport(name, SETTINGS), make_transport(name, SETTINGS)
    await far.listen()
    (one, to_one), (two, to_two) = await link(far, near), await link(far, near)
    first, second = bytearray(1000), bytearray(1000)
    received = [to_one.recv(1, memoryview(first)), to_two.recv(1, memoryview(second))]
    sent = [two.send(1, memoryview(b"2" * 1000)), one.send(1, memoryview(b"1" * 1000))]
    await done(received + sent)
    assert (first, second) == (b"1" * 1000, b"2" * 1000)
    await near.close()
    await far.close()


@every
async def test_abort_ends_posted_receives_for_good(name: str) -> None:
    async with joined(name) as (sender, receiver, _, _):
        destination = bytearray(1 << 20)
        received = receiver.recv(1, memoryview(destination))
        await asyncio.wait_for(receiver.abort(), 5)
        assert received.done()
        with pytest.raises(PeerLost):
            await received
        # Whether the late message is refused or lost, it may not land.
        with contextlib.suppress(PeerLost):
            await asyncio.wait_for(asyncio.shield(sender.send(1, memoryview(b"x" * (1 << 20)))), 2)
        await asyncio.sleep(0.1)
        assert not any(destination)


@every
async def test_abort_in_the_middle_of_a_stream_of_messages_leaves_nothing_landing(name: str) -> None:
    async with joined(name) as (sender, receiver, _, _):
        size, count = 1 << 20, 32
        destination = bytearray(size * count)
        view, source = memoryview(destination), os.urandom(size)
        received = [receiver.recv(tag, view[tag * size : (tag + 1) * size]) for tag in range(count)]
        sent = [sender.send(tag, memoryview(source)) for tag in range(count)]
        await received[0]
        await asyncio.wait_for(receiver.abort(), 5)
        assert all(future.done() for future in received)
        frozen = bytes(destination)
        async with asyncio.timeout(5):
            results = await asyncio.gather(*sent, return_exceptions=True)
        assert all(result is None or isinstance(result, PeerLost) for result in results)
        assert destination == frozen
        assert await asyncio.gather(*received, return_exceptions=True)


@every
async def test_both_sides_hear_once_that_the_link_is_lost_and_refuse_more(name: str) -> None:
    async with joined(name) as (sender, receiver, _, _):
        heard: list[str] = []
        sender.on_lost(lambda why: heard.append("sender"))
        receiver.on_lost(lambda why: heard.append("receiver"))
        await receiver.abort()
        await receiver.abort()
        async with asyncio.timeout(5):
            while len(heard) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert sorted(heard) == ["receiver", "sender"]
        for refused in (sender.send(9, memoryview(b"x")), receiver.recv(9, memoryview(bytearray(1)))):
            with pytest.raises(PeerLost):
                await refused
        late: list[str] = []
        sender.on_lost(late.append)
        await asyncio.sleep(0.05)
        assert len(late) == 1


@every
async def test_a_link_with_an_unknown_token_is_refused_within_its_deadline(name: str) -> None:
    far, near = make_transport(name, SETTINGS), make_transport(name, SETTINGS)
    await far.listen()
    cancelled = await far.expect(b"c" * TOKEN_BYTES)
    cancelled.link.cancel()
    expected = await far.expect(b"e" * TOKEN_BYTES)
    for address, token in ((expected.address, b"u" * TOKEN_BYTES), (cancelled.address, b"c" * TOKEN_BYTES)):
        with pytest.raises(PeerLost):
            await asyncio.wait_for(near.connect(address, token, 1.0), 4)
    link = await near.connect(expected.address, b"e" * TOKEN_BYTES, 3.0)
    assert await expected.link is not link
    await near.close()
    await far.close()


@every
async def test_nobody_listening_is_peer_lost(name: str) -> None:
    transport = make_transport(name, SETTINGS)
    with pytest.raises(PeerLost):
        await asyncio.wait_for(transport.connect("127.0.0.1|1", b"t" * TOKEN_BYTES, 1.0), 4)
    await transport.close()


@every
async def test_the_negotiated_transport_is_the_one_asked_for(name: str) -> None:
    async with joined(name) as (sender, receiver, far, near):
        assert {sender.negotiated, receiver.negotiated, far.negotiated, near.negotiated} == {name}
        assert {far.name, near.name} == {name}


async def test_tcp_refuses_a_message_of_another_size_than_its_receive() -> None:
    async with joined("tcp") as (sender, receiver, _, _):
        destination = bytearray(10)
        received = receiver.recv(1, memoryview(destination))
        sender.send(1, memoryview(b"x" * 11))
        with pytest.raises(PeerLost, match="11 bytes"):
            await received
        assert not any(destination)


async def test_tcp_survives_strangers_that_say_nothing_or_nonsense() -> None:
    far = make_transport("tcp", KvSettings(connect_timeout_s=0.2))
    await far.listen()
    host, port = (await far.expect(b"e" * TOKEN_BYTES)).address.split("|")
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(greeting)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()
    await far.close()


def test_an_unknown_transport_is_a_setting_error() -> None:
    with pytest.raises(SettingError, match="pigeon"):
        make_transport("pigeon", SETTINGS)
