"""The prefill process of bench.kv: opens a finished lease on command. Commands and answers are JSON lines."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc.aio
import uvloop

from baton_api.sampling import SampledToken
from baton_api.timing import PrefillTimeline
from baton_kv import checksums, send
from baton_kv.server import KvServer
from baton_kv.settings import PrefillIdentity
from baton_kv.transport import make_transport
from baton_wire.pb import control_pb2_grpc as rpc

from .kv_store import KEY, LAYOUTS, WrappedStore, settings, source_memory

DIGESTS = checksums.block_digests


def no_digests(views: list[memoryview]) -> list[int]:
    """What a transfer without checksums would say; only the benchmark's control rounds use it."""
    return [0] * len(views)


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def main(transport: str, layout_name: str) -> None:
    layout, chosen = LAYOUTS[layout_name], settings(transport)
    store = WrappedStore(layout, 1 << 20, source_memory())
    server = KvServer(store, PrefillIdentity("prefill", "e"), make_transport(transport, chosen), KEY, chosen)
    grpc_server = grpc.aio.server()
    rpc.add_KvTransferServicer_to_server(server.servicer, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await grpc_server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    reader = await commands()
    while line := await reader.readline():
        command, began_s = json.loads(line), time.process_time()
        if "open" in command:
            setattr(send, "block_digests", DIGESTS if command["checksums"] else no_digests)  # noqa: B010
            lease = server.open(command["open"], "ab" * 16, command["tokens"], 120.0, lambda _: None)
            blocks = range(-(-command["tokens"] // layout.block_tokens))
            lease.finish(blocks, [SampledToken(1)], PrefillTimeline(0.0, 0.0, 1, 0))
            while len(lease._sending._digests) < len(blocks):
                await asyncio.sleep(0.001)
        print(json.dumps({"began_s": began_s, "cpu_s": time.process_time()}), flush=True)
    await server.close()
    await grpc_server.stop(None)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
