"""A provider of tokens, on this machine: an HTTP server with a JWKS, which fails and hangs as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Provider:
    """The answers of the server, and the count of requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = 0
        #: Sent instead of the keys.
        self.body: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.keys: list[dict[str, Any]] = []
        #: Whether requests are answered; if not, they wait.
        self.answers = threading.Event()
        self.answers.set()
        #: Set when a request has come.
        self.asked = threading.Event()

    @property
    def document(self) -> bytes:
        return json.dumps({"keys": self.keys}).encode() if self.body is None else self.body


@contextmanager
def provider() -> Iterator[Provider]:
    """Run a provider during the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            state.asked.set()
            state.answers.wait(60)
            body = state.document
            # The client may have given up.
            with suppress(OSError):
                self.send_response(state.status)
                for name, value in state.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = Provider(f"http://127.0.0.1:{server.server_port}/keys.json")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        state.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()
