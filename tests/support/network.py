"""Network namespaces on one bridge: processes with addresses of their own, whose ways to each other can be cut.

This kernel may lack netem; what is used is nftables for cuts and `support.bad_wire` for loss, delay, reordering and
rate. Needs root. Everything that was made is removed on the way out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.processes import Launch

TABLE = "baton_cut"


def available() -> str | None:
    """Why there is no network to be had here, None when there is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["ip", "netns", "list"], capture_output=True, check=False)
    ruled = subprocess.run(["nft", "list", "tables"], capture_output=True, check=False)
    return None if tried.returncode == ruled.returncode == 0 else "ip netns or nft does not work here"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    namespace: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def run(self, *command: str) -> None:
        _run(*self.prefix, *command)


class Network:
    """`hosts` by name; the process that made it is on the bridge, too."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"bt{os.getpid()}"
        subnet = f"10.213.{os.getpid() % 250}"
        self._subnet = subnet
        self.hosts = {name: Host(name, f"{self._tag}-{name}", f"{subnet}.{i}") for i, name in enumerate(names, 10)}
        self._wires: list[subprocess.Popen[bytes]] = []

    @classmethod
    @contextmanager
    def of(cls, names: Sequence[str]) -> Iterator[Network]:
        network = cls(names)
        try:
            network._make()
            yield network
        finally:
            network._remove()

    def launch(self, name: str) -> Launch:
        """A process in the namespace of that name."""
        host = self.hosts[name]
        return Launch(prefix=host.prefix, address=host.address, settings={"host": host.address})

    def cut(self, at: str, peers: Sequence[str], *, incoming: bool = True, outgoing: bool = True) -> None:
        """From now on packets between `at` and its peers are dropped, in silence, in these directions."""
        host = self.hosts[at]
        host.run("nft", "add", "table", "inet", TABLE)
        for hook, field, wanted in (("input", "saddr", incoming), ("output", "daddr", outgoing)):
            if wanted:
                host.run(
                    "nft", f"add chain inet {TABLE} {hook} {{ type filter hook {hook} priority 0; policy accept; }}"
                )
                for peer in peers:
                    host.run("nft", f"add rule inet {TABLE} {hook} ip {field} {self.hosts[peer].address} drop")

    def heal(self, at: str) -> None:
        self.hosts[at].run("nft", "delete", "table", "inet", TABLE)

    def wire(self, one: str, other: str, log: Path, *options: str) -> tuple[str, str]:
        """A second way between two hosts over which packets are lost, delayed and reordered (support.bad_wire).
        Returns the addresses of the two on it."""
        number = len(self._wires)
        addresses = (f"10.214.{number}.1", f"10.214.{number}.2")
        ends = [
            f"{self.hosts[name].namespace},{address}" for name, address in zip((one, other), addresses, strict=True)
        ]
        command = [sys.executable, "-m", "support.bad_wire", *ends, f"bw{number}", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        with log.open("ab") as stderr:
            wire = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)
        self._wires.append(wire)
        assert wire.stdout is not None and wire.stdout.readline(), f"the wire did not start:\n{log.read_text()}"
        return addresses

    def _make(self) -> None:
        _run("ip", "link", "add", self._tag, "type", "bridge")
        _run("ip", "addr", "add", f"{self._subnet}.1/24", "dev", self._tag)
        _run("ip", "link", "set", self._tag, "up")
        for number, host in enumerate(self.hosts.values()):
            outer = self._outer(number)
            _run("ip", "netns", "add", host.namespace)
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _run("ip", "link", "set", outer, "master", self._tag, "up")
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
            host.run("ip", "link", "set", "lo", "up")

    def _outer(self, number: int) -> str:
        return f"{self._tag}v{number}"

    def _remove(self) -> None:
        for wire in self._wires:
            wire.kill()
            wire.wait()
            if wire.stdout is not None:
                wire.stdout.close()
        for number, host in enumerate(self.hosts.values()):
            # Not only with its namespace: that lives as long as a socket in it that has something left to send.
            subprocess.run(["ip", "link", "del", self._outer(number)], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._tag], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
