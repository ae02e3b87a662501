"""Where worker processes come from: forked, where that is safe, from one process that has imported what they load with.

Contract: a process has one fork server at most, for as long as somebody holds it (``hold``, ``release``), and it ends
with this process, however that ends; what was forked from it ends with it. ``start`` returns when the worker runs,
after what it was to have imported is. Where there is no fork server a worker is a fresh interpreter.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import NoReturn, Protocol

from deeprec.forking import ENVIRONMENT, import_all, receive, send

FORKS = sys.platform == "linux"
TRANSFORMERS = ("torch", "transformers.models.qwen2.modeling_qwen2")
"""What a policy that is a Qwen2 loads with, and most of what any text encoder but hashing does."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

_lock = threading.Lock()
_held = 0
_server: _ForkServer | None = None


class Started(Protocol):
    """A worker process."""

    pid: int

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""


def hold(imports: Sequence[str] = ()) -> None:
    """Have a fork server until ``release``; it begins to import."""
    global _held
    with _lock:
        _held += 1
        if FORKS and imports:
            with suppress(OSError):  # whoever starts a process is told
                _running().import_first(imports)


def release() -> None:
    """Undo one ``hold``; the last ends the server and what was forked from it."""
    global _held, _server
    with _lock:
        _held -= 1
        if _held == 0 and _server is not None:
            _server.end()
            _server = None


def start(name: str, imports: Sequence[str], fd: int) -> Started:
    """A process that lives by what it is sent over the connection ``fd``: see ``be``.

    Raises:
        OSError: it cannot be started.
    """
    if not FORKS:
        return _Fresh(fd)
    with _lock:
        if _held == 0:
            raise OSError("it was shut down")
        server = _running()
    return server.fork(name, imports, fd)


def _running() -> _ForkServer:
    global _server
    if _server is None or _server.ended:
        _server = _ForkServer()
    return _server


def _command(call: str) -> list[str]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import be, serve; {call}"
    return [sys.executable, "-c", code]


class _ForkServer:
    """The process, from its parent's side."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                _command(f"serve({number})"), pass_fds=[number], env=ENVIRONMENT | os.environ, stdin=subprocess.DEVNULL
            )
        self._sending, self._asking = threading.Lock(), threading.Lock()
        atexit.register(self.end)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def import_first(self, names: Sequence[str]) -> None:
        """Have modules imported; returns at once."""
        with self._sending:
            send(self._connection, {"import": list(names)})

    def fork(self, name: str, imports: Sequence[str], fd: int) -> _Forked:
        """Have them imported, and a process forked."""
        try:
            with self._asking:
                with self._sending:
                    send(self._connection, {"import": list(imports), "name": name}, [fd])
                found, descriptors = receive(self._connection)
        except EOFError as error:
            self.end()
            raise OSError("the process that it is forked from is gone") from error
        if "error" in found:
            raise OSError(found["error"])
        return _Forked(found["pid"], descriptors[0])

    def end(self) -> None:
        """End it, and with it what was forked from it; whoever waits for a fork is told."""
        atexit.unregister(self.end)
        self._process.kill()
        self._process.wait()


class _Forked:
    """A process that was forked from the server; ``descriptor`` is its pidfd."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid, self._descriptor = pid, descriptor
        weakref.finalize(self, os.close, descriptor)

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)


class _Fresh:
    """A process of its own interpreter."""

    def __init__(self, fd: int) -> None:
        self._process = subprocess.Popen(_command(f"be({fd})"), pass_fds=[fd], stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        threading.Thread(target=self._process.wait, daemon=True).start()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


# What follows runs in the fork server and in what is forked from it.


def serve(fd: int) -> None:
    """Import and fork as asked, until the process that asks is gone."""
    for told in (signal.SIGINT, signal.SIGTERM):  # to the whole group, they are not for this process
        signal.signal(told, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what was forked
    _entitle("deeprec-forks")
    with socket.socket(fileno=fd) as connection, suppress(EOFError, ConnectionError):
        connection.set_inheritable(False)
        while True:
            asked, fds = receive(connection)
            missing = [name for name in asked["import"] if name not in sys.modules]
            if missing:
                import_all(missing)
            for number in fds:
                _fork(connection, asked["name"], number)


def _fork(connection: socket.socket, name: str, fd: int) -> None:
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:  # no process or memory left: those that run go on
        os.close(fd)
        send(connection, {"error": str(error)})
        return
    if pid == 0:
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent(server)
        _entitle(f"deeprec-{name}")
        be(fd)
    os.close(fd)
    process = os.pidfd_open(pid)
    send(connection, {"pid": pid}, [process])
    os.close(process)


def be(fd: int) -> NoReturn:
    """Be a worker: take over this process's parent's ways, call what it sends, and end."""
    status = 1
    try:
        connection = Connection(fd)
        spawn.prepare(connection.recv())
        run, make = connection.recv()
        run(connection, make)
        status = 0
    except BaseException:
        traceback.print_exc()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _die_with_parent(parent: int) -> None:
    """Even a process that holds the interpreter's lock for ever ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _entitle(name: str) -> None:
    """Show this name, of at most fifteen characters, to those who list processes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
