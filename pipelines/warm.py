"""Tasks' processes without the seconds that importing torch, Transformers, TRL, Feast and Great Expectations takes.

A process that imports these spends up to ten seconds before it does anything, and a run has a dozen. ``WarmProcess``
imports them once, beside the first tasks; once it is ``ready``, each further task is forked from it, and is otherwise a
process of its own, in a session of its own. One task at a time.

See ``deeprec.forking`` for what may be imported before a fork.
"""

import atexit
import contextlib
import fcntl
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprec.forking import ENVIRONMENT, import_all, receive, send

PRELOADED = (
    "pydantic", "yaml", "numpy", "pandas", "pyarrow.parquet", "minio", "plotly.graph_objects", "faiss", "torch",
    "transformers.models.qwen2.modeling_qwen2", "datasets", "trl.trainer.grpo_trainer",
    "feast", "great_expectations", "kfp.dsl.executor_main",
)  # fmt: skip
"""What a forked task has already imported; what is not installed is left out."""

_EXECUTOR = "kfp.dsl.executor_main"


def forkable(command: Sequence[str]) -> bool:
    """Whether the command is the shell line of a KFP task: ``sh -ec LINE SOURCE ARGUMENT…``."""
    return len(command) > 3 and tuple(command[:2]) == ("sh", "-ec") and f"-m {_EXECUTOR}" in command[2]


class Forked:
    """A task's process, waited for as one of ``subprocess``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._status: int | None = None
        self.pid = int(receive(connection)[0]["pid"])

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. ``timeout``: seconds.

        Raises:
            subprocess.TimeoutExpired: the process has not ended by then.
        """
        if self._status is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("task", timeout or 0)
            try:
                self._status = int(receive(self._connection)[0]["status"])
            except EOFError:  # the process it was forked from was killed
                self._status = -signal.SIGKILL
        return self._status


class WarmProcess:
    """The process from which tasks are forked; a child of this one that ends with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it. ``environment``: all its variables, which what it imports reads."""
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._ready = False

    def ready(self) -> bool:
        """Whether everything is imported."""
        if not self._ready and select.select([self._connection], [], [], 0)[0]:
            with contextlib.suppress(EOFError, ConnectionError):
                self._ready = bool(receive(self._connection)[0])
        return self._ready and self._process.poll() is None

    def start(self, command: Sequence[str], environment: Mapping[str, str], stdin: int, output: int) -> Forked:
        """Start a KFP task whose standard streams are the file descriptors ``stdin`` and ``output``.

        Raises:
            OSError: it could not be started: its parent is gone.
        """
        wish = {"command": list(command), "environment": dict(environment), "directory": os.getcwd()}
        try:
            send(self._connection, wish, [stdin, output])
            return Forked(self._connection)
        except (EOFError, ConnectionError) as error:
            raise OSError("the process that tasks are forked from is gone") from error

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


# What follows runs in the warm process and in what is forked from it.


def main() -> None:
    """Import everything, say so, and fork tasks until the runner is gone."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    import_all(PRELOADED)
    with contextlib.suppress(EOFError, ConnectionError):
        send(connection, {"ready": True})
        while True:
            wish, fds = receive(connection)
            if not (pid := os.fork()):
                connection.close()
                _take(wish, fds)
                _leave(_run(wish["command"]))
            for number in fds:
                os.close(number)
            send(connection, {"pid": pid})
            _, status = os.waitpid(pid, 0)
            send(connection, {"status": os.waitstatus_to_exitcode(status)})


def _take(wish: dict[str, Any], fds: Sequence[int]) -> None:
    """The session, directory, environment and standard streams of the task."""
    os.setsid()
    os.chdir(wish["directory"])
    os.environ.clear()
    os.environ.update(wish["environment"])
    tempfile.tempdir = None
    stdin, output = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in fds)
    for number, target in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(number, target)
    for number in {stdin, output, *fds}:
        os.close(number)


def _run(command: Sequence[str]) -> int:
    """What the shell line of a task does: keep its source in a file and run KFP's executor on it; the exit status."""
    source = Path(tempfile.mkdtemp()) / "ephemeral_component.py"
    source.write_text(command[3], encoding="utf-8")
    os.environ["_KFP_RUNTIME"] = "true"
    sys.argv = [_EXECUTOR, "--component_module_path", str(source), *command[4:]]
    try:
        runpy.run_module(_EXECUTOR, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(status: int) -> None:
    """End as the interpreter does, but for taking to pieces what was imported, which takes it three seconds."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
