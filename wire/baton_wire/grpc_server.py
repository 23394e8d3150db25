"""Starts a grpc.aio server with health service, limits and an orderly stop.

server = await start_grpc("127.0.0.1", 0, [lambda s: control_pb2_grpc.add_ControlServicer_to_server(control, s)])
...
await server.stop(grace_s=5)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from baton_wire.grpc_health import Health
from baton_wire.http_limits import MIB

Register = Callable[[grpc.aio.Server], object]


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    max_message_bytes: int = 4 * MIB
    max_concurrent_rpcs: int = 1024
    """Beyond it an RPC gets RESOURCE_EXHAUSTED at once."""
    keepalive_time_s: float = 30.0
    keepalive_timeout_s: float = 10.0

    def options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(self.keepalive_time_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            ("grpc.so_reuseport", 0),
        ]


class GrpcServer:
    """A started server: `port`, `health`, `stop`."""

    def __init__(self, server: grpc.aio.Server, port: int, health: Health) -> None:
        self._server = server
        self.port = port
        self.health = health

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, refuses new RPCs, waits up to `grace_s` for running ones, then cancels them."""
        await self.health.stop()
        await self._server.stop(grace_s)


async def start_grpc(
    host: str, port: int, services: Sequence[Register], *, limits: GrpcLimits | None = None
) -> GrpcServer:
    """Registers `services` and listens; port 0 takes a free one. Raises OSError if the address cannot be bound."""
    limits = limits if limits is not None else GrpcLimits()
    server = grpc.aio.server(options=limits.options(), maximum_concurrent_rpcs=limits.max_concurrent_rpcs)
    health = Health()
    server.add_generic_rpc_handlers((health.handlers(),))
    for register in services:
        register(server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot bind gRPC to {host}:{port}: {error}") from error
    await server.start()
    return GrpcServer(server, bound, health)
