"""The standard gRPC health service, grpc.health.v1 (grpc/doc/health-checking.md), without its package.

Two fields travel: the request's `string service = 1` and the answer's `ServingStatus status = 1`; protobuf's own
wrapper types have the same wire form (`StringValue`, `Int32Value`), so no stub needs to be generated.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

SERVICE = "grpc.health.v1.Health"


class ServingStatus(enum.IntEnum):
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def encode_status(status: ServingStatus) -> bytes:
    return Int32Value(value=status).SerializeToString()


def decode_status(answer: bytes) -> ServingStatus:
    return ServingStatus(Int32Value.FromString(answer).value)


def encode_service(service: str) -> bytes:
    return StringValue(value=service).SerializeToString()


class Health:
    """Statuses by service name; "" is the whole server."""

    def __init__(self) -> None:
        self._statuses = {"": ServingStatus.SERVING}
        self._changed = asyncio.Condition()
        self._stopped = False

    def status(self, service: str) -> ServingStatus | None:
        return self._statuses.get(service)

    async def set(self, status: ServingStatus, service: str = "") -> None:
        async with self._changed:
            self._statuses[service] = status
            self._changed.notify_all()

    async def stop(self) -> None:
        """Everything becomes NOT_SERVING, and the watchers are told and dismissed."""
        async with self._changed:
            self._statuses = dict.fromkeys(self._statuses, ServingStatus.NOT_SERVING)
            self._stopped = True
            self._changed.notify_all()

    async def check(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        service = _service(request)
        status = None if service is None else self.status(service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return encode_status(status)

    async def watch(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        service = _service(request) or ""
        told = None
        while True:
            async with self._changed:
                status = self._statuses.get(service, ServingStatus.SERVICE_UNKNOWN)
                if status is told:
                    if self._stopped:
                        return
                    await self._changed.wait()
                    continue
            told = status
            yield encode_status(status)

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            },
        )


def _service(request: bytes) -> str | None:
    try:
        return StringValue.FromString(request).value
    except ValueError:  # DecodeError is one
        return None
