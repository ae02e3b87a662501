"""A worker process as its parent holds it: started, asked, listened to, and ended, without ever waiting on it.

A thread writes what is put and another reads what comes back, so that a process that neither reads nor writes holds up
nobody. The process ends with its parent, however that ends: see ``worker.loop``.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from deeprec.recommender.worker.loop import Answer, Ask, Make, Ping, run

_ABORT_SECONDS = 1.0
"""Time for a stuck process to write down where it is."""


@contextmanager
def _main_left_out(make: Make) -> Iterator[None]:
    """Within this block a spawned process does not run this one's program again, as it would to find what is defined
    in it: a script that opens a recommender without ``if __name__ == "__main__"`` would do so once more.
    """
    main = sys.modules["__main__"]
    if type(make).__module__ == "__main__" or getattr(make, "__module__", "") == "__main__":
        yield
        return
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class WorkerProcess:
    """Runs ``loop.run(make)`` in a new interpreter, once it is started.

    Attributes:
        ended: set once nothing more comes back.
        sign: when something last came back, ``time.monotonic`` seconds.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._process: SpawnProcess | None = None
        self._outgoing: queue.SimpleQueue[Ask | Ping | None] = queue.SimpleQueue()
        self.ended, self.sign = threading.Event(), time.monotonic()

    def start(self, on_answer: Callable[[Answer], None]) -> None:
        """Start it; ``on_answer`` is called with everything it says, from one thread."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run, args=(theirs, self._make), name="deeprec-policy", daemon=True)
        with _main_left_out(self._make):
            process.start()
        theirs.close()
        self._process = process
        threading.Thread(target=self._read, args=(process, ours, on_answer), name="policy-answers", daemon=True).start()
        threading.Thread(target=self._write, args=(ours,), name="policy-asked", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is started."""
        return self._process.pid if self._process is not None else None

    def put(self, message: Ask | Ping) -> None:
        """Say something; returns at once."""
        self._outgoing.put(message)

    def abort(self) -> None:
        """Let it write the traces of its threads to its standard error, if it still can, and end it."""
        if self.pid is not None and not self.ended.is_set():
            with suppress(OSError):
                os.kill(self.pid, signal.SIGABRT)
            self.ended.wait(_ABORT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it now; returns at once."""
        if self._process is not None:
            self._process.kill()
        self._outgoing.put(None)

    def _read(self, process: SpawnProcess, connection: Connection, on_answer: Callable[[Answer], None]) -> None:
        with suppress(EOFError, OSError):
            while True:
                answer = connection.recv()
                self.sign = time.monotonic()
                on_answer(answer)
        self.ended.set()
        process.join()

    def _write(self, connection: Connection) -> None:
        with suppress(OSError):
            while (message := self._outgoing.get()) is not None:
                connection.send(message)
