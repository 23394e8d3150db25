"""The gRPC shell: health, limits, an orderly stop; on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest

from baton_wire.grpc_health import SERVICE, ServingStatus, decode_status, encode_service
from baton_wire.grpc_server import GrpcLimits, start_grpc
from support.wire import on_both_loops_with_grpc


def service_of(behaviour: Callable[..., object]) -> Callable[[grpc.aio.Server], None]:
    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Call": grpc.unary_unary_rpc_method_handler(behaviour)}
    )
    return lambda server: server.add_generic_rpc_handlers((handler,))


@on_both_loops_with_grpc
async def test_health_is_checked_watched_and_changed() -> None:
    server = await start_grpc("127.0.0.1", 0, [])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        check = channel.unary_unary(f"/{SERVICE}/Check")
        assert decode_status(await check(encode_service(""))) is ServingStatus.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(encode_service("nobody"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError):
            await check(b"\xff\xff")

        watch = channel.unary_stream(f"/{SERVICE}/Watch")(encode_service("engine"))
        assert decode_status(await watch.read()) is ServingStatus.SERVICE_UNKNOWN
        for status in (ServingStatus.NOT_SERVING, ServingStatus.SERVING):
            await server.health.set(status, "engine")
            assert decode_status(await watch.read()) is status
            assert decode_status(await check(encode_service("engine"))) is status
        stopping = asyncio.create_task(server.stop(grace_s=5))
        assert decode_status(await watch.read()) is ServingStatus.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        async with asyncio.timeout(4):
            await stopping


@on_both_loops_with_grpc
async def test_running_calls_finish_within_the_grace_and_are_cut_after_it() -> None:
    started = asyncio.Semaphore(0)

    async def slow(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        started.release()
        await asyncio.sleep(float(request))
        return b"done"

    server = await start_grpc("127.0.0.1", 0, [service_of(slow)])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/test.Echo/Call")
        short, long = asyncio.ensure_future(call(b"0.05")), asyncio.ensure_future(call(b"60"))
        await started.acquire()
        await started.acquire()
        async with asyncio.timeout(5):
            await server.stop(grace_s=0.3)
        assert await short == b"done"
        with pytest.raises(grpc.aio.AioRpcError):
            await long


@on_both_loops_with_grpc
async def test_messages_have_a_largest_size() -> None:
    async def length(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return b"%d" % len(request)

    server = await start_grpc("127.0.0.1", 0, [service_of(length)], limits=GrpcLimits(max_message_bytes=1000))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/test.Echo/Call")
        assert await call(b"x" * 1000) == b"1000"
        with pytest.raises(grpc.aio.AioRpcError) as too_large:
            await call(b"x" * 1001)
        assert too_large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(grace_s=0)


@on_both_loops_with_grpc
async def test_a_taken_port_is_an_os_error() -> None:
    server = await start_grpc("127.0.0.1", 0, [])
    with pytest.raises(OSError, match="cannot bind"):
        await start_grpc("127.0.0.1", server.port, [])
    await server.stop(grace_s=0)
