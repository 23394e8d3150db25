"""Runs in .venv-bench-kv: a NIXL target process and a reader. `nixl_pair.py BLOCK_BYTES BLOCKS`, then a count a line.

Answers {"wall_s", "cpu_s"} of a READ of that many blocks, both processes' CPU, bytes compared. Raises on a wrong byte.
"""

import json
import multiprocessing
import os
import sys
import time

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

SOURCE_BYTES = 512 << 20  # block i lies at i modulo what fits, as in Baton's half


def source():
    return np.frombuffer(np.random.default_rng(7).bytes(SOURCE_BYTES), np.uint8)


def make_agent(name, memory):
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
    return agent


def target(pipe):
    memory = source().copy()
    agent = make_agent("target", memory)
    pipe.send((agent.get_agent_metadata(), memory.ctypes.data))
    while pipe.recv() != "end":
        pipe.send(time.process_time())
    os._exit(0)  # NIXL has been seen to crash at interpreter exit


def cpu_of(pipe):
    pipe.send("cpu")
    return pipe.recv()


def read(agent, handle):
    began_s = time.perf_counter()
    state = agent.transfer(handle)
    while state == "PROC":
        time.sleep(20e-6)
        state = agent.check_xfer_state(handle)
    assert state == "DONE", state
    return time.perf_counter() - began_s


def main(block_bytes, blocks):
    near, far = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=target, args=(far,), daemon=True)
    child.start()
    memory, expected = np.zeros(block_bytes * blocks, np.uint8), source()
    agent = make_agent("reader", memory)
    metadata, base = near.recv()
    peer = agent.add_remote_agent(metadata)
    fits = SOURCE_BYTES // block_bytes
    local = agent.prep_xfer_dlist("NIXL_INIT_AGENT", dlist(memory.ctypes.data, block_bytes, blocks), "DRAM")
    remote = agent.prep_xfer_dlist(peer, dlist(base, block_bytes, fits), "DRAM")
    for line in sys.stdin:
        count = int(line)
        memory[: count * block_bytes] = 0xEE
        ids = np.arange(count, dtype=np.int32)
        child_s, own_s = cpu_of(near), time.process_time()
        handle = agent.make_prepped_xfer("READ", local, ids, remote, ids % fits)
        wall_s = read(agent, handle)
        own_s = time.process_time() - own_s
        agent.release_xfer_handle(handle)
        cpu_s = own_s + cpu_of(near) - child_s
        landed = memory[: count * block_bytes].reshape(-1, block_bytes)
        assert all(np.array_equal(landed[i], expected.reshape(-1, block_bytes)[i % fits]) for i in range(count))
        print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}), flush=True)
    near.send("end")
    os._exit(0)


def dlist(base, block_bytes, count):
    """addr, len, device, stride, count"""
    return np.array([[base, block_bytes, 0, block_bytes, count]], np.uint64)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
