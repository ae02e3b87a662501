"""A worker process, from both sides: what its parent holds, and how the process itself settles in.

Its parent starts it, asks it, listens to it and ends it without ever waiting on it: a thread writes what is put and
another reads what comes back, so that a process that neither reads nor writes holds up nobody. It ends with its parent,
on Linux however that ends (``fork_server``).
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from deeprec.recommender.worker import fork_server

_ABORT_SECONDS = 1.0
"""Time for a stuck process to write down where it is."""
_starting = threading.Lock()

Make = TypeVar("Make")
Message = TypeVar("Message")
Answer = TypeVar("Answer")


def settle_in(nice: int) -> None:
    """In the process: leave signals to the parent, and come after it where cores are scarce.

    A signal to the whole group is not for this process: the parent answers what it has accepted first. Libraries' locks
    between processes have no names, as in forked ones: a name that is left when the process is killed would be reported
    when the parent ends.
    """
    multiprocessing.set_start_method("fork", force=True)
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(nice)
    faulthandler.enable()


def _ways(name: str) -> dict[str, Any]:
    """What a process takes over from this one: module path, directory, arguments and, where it is needed, program."""
    ways = spawn.get_preparation_data(name)
    del ways["authkey"]
    return ways


@contextmanager
def _main_left_out(make: Any) -> Iterator[None]:
    """Within this block a spawned process does not run this one's program again, as it would to find what is defined
    in it: a script that opens a recommender without ``if __name__ == "__main__"`` would do so once more.
    """
    if type(make).__module__ == "__main__" or getattr(make, "__module__", "") == "__main__":
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class WorkerProcess(Generic[Make, Message, Answer]):
    """Runs ``run(connection, make)`` in a process with these modules imported, once it is started.

    Attributes:
        ended: set once nothing more comes back.
        sign: when something last came back, ``time.monotonic`` seconds.
    """

    def __init__(
        self, run: Callable[[Connection, Make], None], make: Make, name: str, imports: Sequence[str] = ()
    ) -> None:
        self._run, self._make, self._name, self._imports = run, make, name, imports
        self._process: fork_server.Started | None = None
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.ended, self.sign = threading.Event(), time.monotonic()

    def start(self, on_answer: Callable[[Answer], None]) -> None:
        """Start it; ``on_answer`` is called with everything it says, from one thread.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = fork_server.start(self._name, self._imports, theirs.fileno())
        with _starting, _main_left_out(self._make):
            ours.send(_ways(f"deeprec-{self._name}"))
        ours.send((self._run, self._make))
        reading = threading.Thread(target=self._read, args=(ours, on_answer), daemon=True)
        reading.name = f"{self._name}-answers"
        reading.start()
        threading.Thread(target=self._write, args=(ours,), name=f"{self._name}-asked", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is started."""
        return self._process.pid if self._process is not None else None

    def put(self, message: Message) -> None:
        """Say something; returns at once."""
        self._outgoing.put(message)

    def abort(self) -> None:
        """Let it write the traces of its threads to its standard error, if it still can, and end it."""
        if self._process is not None and not self.ended.is_set():
            self._process.send_signal(signal.SIGABRT)
            self.ended.wait(_ABORT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it now; returns at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
        self._outgoing.put(None)

    def _read(self, connection: Connection, on_answer: Callable[[Answer], None]) -> None:
        with suppress(EOFError, OSError):
            while True:
                answer = connection.recv()
                self.sign = time.monotonic()
                on_answer(answer)
        self.ended.set()

    def _write(self, connection: Connection) -> None:
        with suppress(OSError):
            while (message := self._outgoing.get()) is not None:
                connection.send(message)
