"""Processes forked from one that has imported what they need: what both ends of such a fork server share.

Importing torch, Transformers and Sentence Transformers takes a process up to ten seconds of a core, and a fork takes
some 30 ms. Only what starts no threads of its own may be imported before a fork, so neither Polars nor what imports it
(tests look at the threads). Linux only: elsewhere forking such a process is not safe.

Messages are JSON objects, with the file descriptors that go along with them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import socket
from collections.abc import Iterable, Sequence
from typing import Any

ENVIRONMENT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Of the process that is forked: asked by the CUDA runtime whether there is a GPU, none of its forks could use one."""


def import_all(names: Iterable[str]) -> None:
    """Import modules for the forks to have; one that cannot be imported is left out, and whoever needs it says why."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send a message.

    Raises:
        ConnectionError: the other end is gone.
    """
    content = json.dumps(message).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], list(fds))
    connection.sendall(content)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, and the file descriptors that came with it.

    Raises:
        EOFError: the other end is gone.
    """
    head, fds, _, _ = socket.recv_fds(connection, 8, 64)
    content = b""
    while len(head) == 8 and len(content) < int.from_bytes(head, "big"):
        more = connection.recv(int.from_bytes(head, "big") - len(content))
        if not more:
            break
        content += more
    if not content:
        raise EOFError("the other end is gone")
    return json.loads(content), fds
