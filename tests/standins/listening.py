"""HTTP servers of the stand-ins: each in threads of this process, on a port of its own."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, sends an answer at once, and logs nothing."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


class Listening(ThreadingHTTPServer):
    """Serves until it is closed; a client that goes away in the middle, as a killed one does, is no error."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """It is its client's to notice."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()
