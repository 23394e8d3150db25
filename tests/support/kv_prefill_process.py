"""A prefill process for tests that kill or stop it: `python -m support.kv_prefill_process TRANSPORT BLOCK_BYTES`.

It prints its gRPC port and then every lease outcome, one per line. Commands on stdin: `open ID BLOCKS` opens a lease
and computes all blocks but the last, `finish ID` finishes it. Block i of the store is filled from random.Random(1).
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import grpc

from baton_kv.server import KvServer, SendLease
from baton_kv.settings import PrefillIdentity
from baton_kv.transport import make_transport
from baton_wire.pb import control_pb2_grpc as rpc
from support.kv_pair import BLOCK_TOKENS, FAST, FIRST, KEY, PREFILL, BytesStore, layout_of


async def main(transport: str, block_bytes: int, epoch: str) -> None:
    store = BytesStore(64, layout_of(block_bytes), 1)
    settings = replace(FAST, transport=transport)
    server = KvServer(store, PrefillIdentity("prefill-0", epoch), make_transport(transport, settings), KEY, settings)
    grpc_server = grpc.aio.server()
    rpc.add_KvTransferServicer_to_server(server.servicer, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await grpc_server.start()
    print(port, flush=True)
    leases: dict[str, tuple[SendLease, int]] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, name, *rest = line.split()
        if command == "open":
            blocks = int(rest[0])

            def ended(outcome: str, name: str = name) -> None:
                print(name, outcome, flush=True)

            lease = server.open(name, "ab" * 16, blocks * BLOCK_TOKENS, 20.0, ended)
            lease.computed(range(blocks - 1))
            leases[name] = (lease, blocks)
        else:
            lease, blocks = leases.pop(name)
            lease.finish(range(blocks), FIRST, PREFILL)
    await server.close()
    await grpc_server.stop(None)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
