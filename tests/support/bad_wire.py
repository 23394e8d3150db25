"""A bad wire between two network namespaces, in user space: every packet is lost, late or out of order by the seed.

python -m support.bad_wire NAMESPACE,ADDRESS NAMESPACE,ADDRESS DEVICE --loss 0.01 --jitter 0.05 --rate 10e6 --seed 1

A TUN device on either side (Linux, Documentation/networking/tuntap.rst); packets that come out of one are written to
the other when their time has come. One queue per direction with a fixed rate and a tail drop, then a delay drawn evenly
from [0, jitter] for each packet by itself: that reorders them.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
MTU = 1500
BUFFER_S = 0.25
"""What waits longer than this for its turn is dropped, as a router with a bounded buffer does."""


def open_tun(namespace: str, address: str, device: str) -> int:
    """The file descriptor of a new TUN device in that namespace, up, with /30 address."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(Path("/var/run/netns") / namespace, os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
        for command in (f"addr add {address}/30 dev {device}", f"link set {device} mtu {MTU} up"):
            subprocess.run(["ip", *command.split()], check=True)
        return tun
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)


class Direction:
    """Packets on their way to `out`."""

    def __init__(self, out: int, wanted: argparse.Namespace, rng: random.Random) -> None:
        self._out, self._wanted, self._rng = out, wanted, rng
        self._free_s = 0.0
        self._numbers = 0
        self._late: list[tuple[float, int, bytes]] = []

    @property
    def due_s(self) -> float:
        return self._late[0][0] if self._late else float("inf")

    def take(self, packet: bytes, now_s: float) -> None:
        self._free_s = max(self._free_s, now_s)
        if self._rng.random() < self._wanted.loss or self._free_s - now_s > BUFFER_S:
            return
        self._free_s += len(packet) * 8 / self._wanted.rate
        self._numbers += 1
        heapq.heappush(self._late, (self._free_s + self._rng.uniform(0, self._wanted.jitter), self._numbers, packet))

    def give(self, now_s: float) -> None:
        while self.due_s <= now_s:
            try:
                os.write(self._out, heapq.heappop(self._late)[2])
            except BlockingIOError:
                return  # lost, as on any full queue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ends", nargs=2)
    parser.add_argument("device")
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    rng = random.Random(wanted.seed)
    tuns = [open_tun(*end.split(","), wanted.device) for end in wanted.ends]
    ways = {tuns[0]: Direction(tuns[1], wanted, rng), tuns[1]: Direction(tuns[0], wanted, rng)}
    print("ready", flush=True)
    while True:
        due_s = min(way.due_s for way in ways.values())
        left_s = None if due_s == float("inf") else max(0.0, due_s - time.monotonic())
        readable, _, _ = select.select(tuns, [], [], left_s)
        now_s = time.monotonic()
        for tun in readable:
            ways[tun].take(os.read(tun, MTU + 64), now_s)
        for way in ways.values():
            way.give(now_s)


if __name__ == "__main__":
    sys.exit(main())
