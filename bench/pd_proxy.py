"""A vLLM prefill and a vLLM decode server behind one port, one leg after the other: `pd_proxy PORT PREFILL DECODE`.

What vLLM's own P/D proxies do: the prefill leg answers one token and `kv_transfer_params`, which the decode leg's
request carries. Standard library, a thread a request.
"""

from __future__ import annotations

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ASK = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
    "remote_host": None, "remote_port": None,
}  # fmt: skip


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    prefill_port = decode_port = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        first = {**body, "max_tokens": 1, "stream": False, "kv_transfer_params": ASK}
        with_prefill = http.client.HTTPConnection("127.0.0.1", self.prefill_port, timeout=120)
        with_decode = http.client.HTTPConnection("127.0.0.1", self.decode_port, timeout=120)
        try:
            with self._ask(with_prefill, first) as answer:
                if answer.status != 200:
                    self._relay(answer)
                    return
                given = json.loads(answer.read())["kv_transfer_params"]
            with self._ask(with_decode, {**body, "kv_transfer_params": given}) as answer:
                self._relay(answer)
        finally:
            with_prefill.close()
            with_decode.close()

    def _ask(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> http.client.HTTPResponse:
        connection.request("POST", self.path, json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse()

    def _relay(self, answer: http.client.HTTPResponse) -> None:
        """Each piece as it comes; the end of the connection is the end of the answer."""
        self.close_connection = True
        self.send_response(answer.status)
        self.send_header("content-type", answer.getheader("content-type", "application/json"))
        self.send_header("connection", "close")
        self.end_headers()
        while piece := answer.read1(1 << 16):
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64


def main(port: int, prefill_port: int, decode_port: int) -> None:
    Proxy.prefill_port, Proxy.decode_port = prefill_port, decode_port
    Server(("127.0.0.1", port), Proxy).serve_forever()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
