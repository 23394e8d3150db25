"""A child program that speaks the supervisor's protocol and then does as its settings say: python -m support.stand_in

{"events": FILE, "name": ..., "start": "ready" | "crash" | "bad_setting" | "silent" | "noise", "crash_after_s": ...,
 "on_term": "exit" | "hang", "port": ..., "health": STATUS}. With `health` it answers every GET with that. It appends
what happens to it to the events file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


def main() -> int:
    settings: dict[str, Any] = json.loads(Path(sys.argv[2]).read_bytes())

    def note(what: str) -> None:
        with open(settings["events"], "a") as events:
            events.write(f"{settings['name']} {what} {os.getpid()}\n")

    def on_term(number: int, _: object) -> None:
        note("term")
        if settings.get("on_term", "exit") == "exit":
            note("exit")
            os._exit(0)

    signal.signal(signal.SIGTERM, on_term)
    note("spawned")
    print(f"{settings['name']} says this on stderr", file=sys.stderr, flush=True)
    start = settings.get("start", "ready")
    if start in ("crash", "bad_setting"):
        return 2 if start == "bad_setting" else 7
    if start == "noise":
        for line in ("not JSON", "[1]", '{"ready": true}', '{"ready": true, "port": "x"}', "null", "x" * (3 << 20)):
            print(line, flush=True)
    for done in range(3):
        print(json.dumps({"progress": "loading weights", "done": done + 1, "total": 3}), flush=True)
    if start != "silent":
        port = settings.get("port") or 20000 + os.getpid() % 40000
        if "health" in settings:
            port = answer_all(settings["health"])
        print(json.dumps({"ready": True, "port": port, "epoch": f"epoch-{os.getpid()}"}), flush=True)
        note("ready")
    end_s = time.monotonic() + settings.get("crash_after_s", 120.0)
    while time.monotonic() < end_s:
        time.sleep(0.01)
    return 9


def answer_all(status: int) -> int:
    """Returns the port."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)


if __name__ == "__main__":
    sys.exit(main())
