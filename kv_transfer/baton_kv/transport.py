"""How KV bytes move between two processes: the seam, one page wide. `make_transport` picks one by name.

A link joins one decode process and one prefill process, beside their gRPC stream. Messages are matched by tag: a
number that is used once per link. **The receiver posts first, then asks the sender to send**; a message whose receive
is not posted may cost the link. Bytes go straight from the sent view into the posted view, with no buffer between.

send() and recv() return at once; await the futures in any order. They fail with PeerLost and with nothing else.
A posted receive cannot be cancelled: it ends when its message comes, or with abort(). abort() is final: once it
returned, every future of the link is done and no byte can land in, or be read from, any view (invariant I5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .settings import KvSettings

TOKEN_BYTES = 16
MAX_TAG = 1 << 31


class Link(Protocol):
    @property
    def negotiated(self) -> str:
        """What this link really runs on: "ucx/tcp", "ucx/shm", "ucx/rdma", "tcp", "cma", "inproc"."""

    def send(self, tag: int, view: memoryview) -> asyncio.Future[None]:
        """`tag` is in [0, MAX_TAG). An empty view ends the peer's receive without a byte."""

    def recv(self, tag: int, view: memoryview) -> asyncio.Future[int | None]:
        """Done when the message with `tag` is in `view`, which is exactly as long, or when an empty one came.

        The result is the digest (checksums.py) of what landed, or None where the caller is to take it.
        """

    def on_lost(self, heard: Callable[[str], None]) -> None:
        """`heard(why)` is called once, on the event loop, when the peer or the link is gone (abort() included)."""

    async def abort(self) -> None:
        """Drops the link. Safe to call again, and while another call runs."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """`address` is for the peer's connect(); `link` is done when it came. Cancel `link` to stop waiting."""

    address: str
    link: asyncio.Future[Link]


class Transport(Protocol):
    @property
    def name(self) -> str:
        """What was asked for; both sides have to ask for the same."""

    @property
    def negotiated(self) -> str:
        """What the last link really runs on; before the first link, what is expected."""

    async def listen(self) -> None:
        """Gets ready to take links. Raises OSError when that is impossible."""

    async def expect(self, token: bytes) -> Expectation:
        """Waits for the link whose connect() comes with `token` (TOKEN_BYTES random bytes)."""

    async def connect(self, address: str, token: bytes, timeout_s: float) -> Link:
        """Raises PeerLost when the peer does not take the link in time."""

    async def close(self) -> None:
        """Aborts every link and stops listening."""


class Expected:
    """Links that the listening side waits for, by token."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, asyncio.Future[Link]] = {}

    def add(self, token: bytes) -> asyncio.Future[Link]:
        future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        future.add_done_callback(lambda _: self._waiting.pop(token, None))
        return future

    def has(self, token: bytes) -> bool:
        return token in self._waiting

    def arrived(self, token: bytes, link: Link) -> bool:
        """False: nobody expects this token (any more)."""
        future = self._waiting.pop(token, None)
        if future is None or future.done():
            return False
        future.set_result(link)
        return True

    def cancel_all(self) -> None:
        for future in list(self._waiting.values()):
            future.cancel()

    def __len__(self) -> int:
        return len(self._waiting)


def make_transport(name: str, settings: KvSettings) -> Transport:
    """The transport called `name`. ucxx is imported only when a ucx one is asked for.

    Raises SettingError for an unknown name, and when ucx is asked for and cannot be loaded.
    """
    from baton_api.errors import SettingError

    if name == "inproc":
        from .transports.inproc import InprocTransport

        return InprocTransport()
    if name in ("tcp", "cma"):
        from .transports.tcp import TcpTransport

        return TcpTransport(name, settings.data_host, settings.data_port, settings.connect_timeout_s)
    if name in ("ucx", "ucx/tcp", "ucx/shm"):
        from .transports.ucx import UcxTransport

        return UcxTransport(name, settings.data_host, settings.connect_timeout_s)
    raise SettingError("kv.transport", name, "is unknown", "use ucx, ucx/tcp, ucx/shm, tcp, cma or inproc")
