"""When a request's first bytes were read, which on a busy server is well before anybody comes to answer it."""

from __future__ import annotations

import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deeprec.serving.http.guard import ARRIVED


class ArrivalProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's HTTP/1.1 protocol, which also notes when a request came."""

    def on_message_begin(self) -> None:
        """Called by the parser at a request's first bytes."""
        super().on_message_begin()
        self.scope["state"][ARRIVED] = time.monotonic()
