"""Runs in .venv-bench-kv: a NIXL target process and a reader. `nixl_pair.py BLOCK_BYTES BLOCKS`, then a count a line.

Answers {"wall_s", "cpu_s"} of a READ of that many blocks, both processes' CPU, bytes compared. Raises on a wrong byte.
BLOCKS are what the destination holds: more are read in several READs, and the comparing between them is not timed.
"""

import json
import multiprocessing
import os
import sys
import time

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

SOURCE_BYTES = 128 << 20  # block i lies at i modulo what fits, as in Baton's half


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


class Reader:
    def __init__(self, block_bytes, room):
        near, far = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(target=target, args=(far,), daemon=True)
        child.start()
        self.pipe, self.block_bytes, self.room, self.fits = near, block_bytes, room, SOURCE_BYTES // block_bytes
        self.memory, self.expected = np.zeros(block_bytes * room, np.uint8), source().reshape(-1, block_bytes)
        self.agent = make_agent("reader", self.memory)
        metadata, base = near.recv()
        peer = self.agent.add_remote_agent(metadata)
        self.local = self.agent.prep_xfer_dlist(
            "NIXL_INIT_AGENT", dlist(self.memory.ctypes.data, block_bytes, room), "DRAM"
        )
        self.remote = self.agent.prep_xfer_dlist(peer, dlist(base, block_bytes, self.fits), "DRAM")

    def read(self, count):
        """Seconds of wall and of CPU for `count` blocks, no more than there is room for."""
        self.memory[: count * self.block_bytes] = 0xEE
        ids = np.arange(count, dtype=np.int32)
        child_s, own_s = cpu_of(self.pipe), time.process_time()
        handle = self.agent.make_prepped_xfer("READ", self.local, ids, self.remote, ids % self.fits)
        wall_s = read(self.agent, handle)
        own_s = time.process_time() - own_s
        self.agent.release_xfer_handle(handle)
        cpu_s = own_s + cpu_of(self.pipe) - child_s
        landed = self.memory[: count * self.block_bytes].reshape(-1, self.block_bytes)
        assert all(np.array_equal(landed[i], self.expected[i % self.fits]) for i in range(count))
        return wall_s, cpu_s


def main(block_bytes, room):
    reader = Reader(block_bytes, room)
    for line in sys.stdin:
        left, wall_s, cpu_s = int(line), 0.0, 0.0
        while left:
            count = min(left, room)
            wall, cpu = reader.read(count)
            left, wall_s, cpu_s = left - count, wall_s + wall, cpu_s + cpu
        print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}), flush=True)
    reader.pipe.send("end")
    os._exit(0)


def dlist(base, block_bytes, count):
    """addr, len, device, stride, count"""
    return np.array([[base, block_bytes, 0, block_bytes, count]], np.uint64)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
