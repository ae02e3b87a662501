"""Python processes without the seconds that importing torch, TRL, Feast and KServe takes: forked from one that has.

A process that imports these spends 7 to 25 CPU seconds before it does anything. Here one process per test process (per
worker of pytest-xdist) imports them once; every further one is forked from it in some 30 ms and is otherwise a process
of its own: its own standard streams, environment, working directory, session or process group, command line and exit
status, and **a child of the process that asked for it**, so that it is waited for, signalled and killed as any other.

How to use it::

    from tests import forkserver

    forkserver.run([sys.executable, "-m", "deeprec.policy.job", job], capture_output=True, text=True)
    process = forkserver.Popen([sys.executable, "-c", code, "serve", "trm", bundle], stdout=log, stderr=log)
    forkserver.run(forkserver.deeprec("run", "--config", "small.yaml"), cwd=place)

    with forkserver.routed():  # every subprocess and spawned process of this process, made by whatever code
        run_pipeline(...)

``Popen`` and ``run`` take what those of ``subprocess`` take. Forked are ``python [-u] -c CODE …``, ``python [-u] -m
MODULE …`` and ``python [-u] FILE …`` of this interpreter, the shell line of a KFP task, and what ``multiprocessing``
spawns; any other command starts as it always does. What a forked process starts is forked too (the tasks of ``deeprec
run``, the worker of ``deeprec serve``), from a helper that it has for that as its child; ``nested=False`` leaves the
helper out, for tests that look at a process's children.

Where not to use it: a test of what an import costs or loads (much is loaded already), and at least one test per command
that starts it as a user does.

Limits. Only what starts no thread may be imported before a fork, so not Polars (``_preload`` checks). Variables that
libraries read while they are imported have the values of ``_AT_IMPORT`` in every forked process; its number of threads
follows ``OMP_NUM_THREADS``. Linux only: elsewhere, and with ``DEEPREC_TEST_FORK=0``, every process is an ordinary one.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from deeprec.forking import receive, send

PRELOADED = (
    "typer", "rich.progress", "pydantic", "yaml", "numpy", "pandas", "pyarrow.parquet", "httpx", "fastapi", "uvicorn",
    "prometheus_client", "minio", "plotly.graph_objects", "faiss", "torch", "transformers", "datasets", "trl",
    "trl.trainer.grpo_trainer", "transformers.models.qwen2.modeling_qwen2", "sentence_transformers", "kserve", "feast",
    "great_expectations",
)  # fmt: skip
"""What every forked process has already imported."""

_AT_IMPORT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_QUIET_THREADS = {"jemalloc_bg_thd"}  # of pyarrow's allocator, which handles forks itself
_TITLE_ROOM = 4096
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_KFP_TASK = "-m kfp.dsl.executor_main"

_server: Client | None = None
_starting = threading.Lock()
_execute_child = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_spawn = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]


def deeprec(*arguments: object) -> list[str]:
    """The command line ``deeprec …``."""
    return [sys.executable, "-c", "from deeprec.cli import main; main()", *map(str, arguments)]


class _Plain(subprocess.Popen):  # type: ignore[type-arg]
    """``subprocess.Popen``, routed or not."""

    _execute_child = _execute_child


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """``subprocess.Popen``, forked where that can be; ``nested``: what the process starts is forked too."""

    def __init__(self, *positional: Any, nested: bool = True, **named: Any) -> None:
        self.nested = nested
        super().__init__(*positional, **named)

    def _execute_child(self, *positional: Any) -> None:
        _execute_forked(self, *positional)


def run(
    args: Sequence[str],
    *,
    input: str | bytes | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **named: Any,
) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` with ``Popen`` above."""
    if capture_output:
        named |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        named["stdin"] = subprocess.PIPE
    with Popen(args, **named) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


@contextmanager
def routed() -> Iterator[None]:
    """Within this block every process that this process starts is forked where that can be."""
    with (
        mock.patch.object(subprocess.Popen, "_execute_child", _execute_forked),
        mock.patch.object(multiprocessing.util, "spawnv_passfds", _spawn_forked),
    ):
        yield


def _execute_forked(
    self: Any, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Sequence[int], cwd: Any,
    env: Any, startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int,
    c2pwrite: int, errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: int,
    start_new_session: bool, process_group: int,
) -> None:  # fmt: skip
    """In place of ``subprocess.Popen._execute_child``."""
    command = [] if isinstance(args, str | bytes | os.PathLike) else [os.fsdecode(part) for part in args]
    plain = executable is None and preexec_fn is None and not shell and (gid, gids, uid) == (None, None, None)
    server = _connected() if plain and _forkable(command) else None
    if server is None:
        _execute_child(
            self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, process_group,
        )  # fmt: skip
        return
    standard = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
    try:
        self.pid = server.fork(
            command,
            {**dict(zip(range(3), standard, strict=True)), **{number: number for number in pass_fds}},
            env=os.environ if env is None else env,
            cwd=os.getcwd() if cwd is None else os.path.abspath(cwd),
            umask=umask,
            session=start_new_session,
            group=process_group,
            nested=getattr(self, "nested", True),
        )
        self._child_created = True
    finally:
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _spawn_forked(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """In place of ``multiprocessing.util.spawnv_passfds``."""
    command = [os.fsdecode(part) for part in args]
    server = _connected() if any("spawn_main" in part for part in command) else None
    if server is None:
        return int(_spawn(path, args, passfds))
    command = [sys.executable, *command[command.index("-c") :]]
    fds = {number: number for number in {0, 1, 2, *map(int, passfds)}}
    return server.fork(command, fds, env=os.environ, cwd=os.getcwd())


def _forkable(command: Sequence[str]) -> bool:
    if _is_kfp_task(command):
        return True
    rest = [part for part in command[1:3] if part != "-u"]
    return bool(command and rest) and command[0] == sys.executable and (rest[0] in ("-c", "-m") or rest[0][0] != "-")


def _is_kfp_task(command: Sequence[str]) -> bool:
    return len(command) > 3 and tuple(command[:2]) == ("sh", "-ec") and _KFP_TASK in command[2]


def _connected() -> Client | None:
    """This process's fork server, started when it is first needed; None where there cannot be one."""
    global _server
    if sys.platform != "linux" or os.environ.get("DEEPREC_TEST_FORK") == "0":
        return None
    with _starting:
        if _server is None or _server.owner != os.getpid():
            _server = Client.start()
        return _server


class Client:
    """The near end of a fork server, which is a child of this process and ends with it."""

    def __init__(self, connection: socket.socket) -> None:
        self.owner = os.getpid()
        self.process: subprocess.Popen[bytes] | None = None
        self._connection, self._lock = connection, threading.Lock()

    @classmethod
    def start(cls) -> Client:
        """A new server, once it has imported everything."""
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as printed:
            client = cls(ours)
            client.process = _Plain(
                [sys.executable, __file__, str(theirs.fileno()), "-" * _TITLE_ROOM],
                stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=[theirs.fileno()],
                env=os.environ | _AT_IMPORT,
            )  # fmt: skip
            theirs.close()
            try:
                receive(ours)
            except EOFError:
                printed.seek(0)
                raise RuntimeError(f"the fork server did not start:\n{printed.read().decode()}") from None
        return client

    def fork(
        self, command: Sequence[str], fds: dict[int, int], *, env: Any, cwd: str, umask: int = -1,
        session: bool = False, group: int = -1, nested: bool = True,
    ) -> int:  # fmt: skip
        """The process id of a new child of this process; ``fds``: its file descriptor → ours."""
        wish = {
            "command": list(command), "cwd": cwd, "umask": umask, "session": session, "nested": nested,
            "group": os.getpgrp() if group < 0 else group, "fds": list(fds),
            "env": {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()},
        }  # fmt: skip
        with self._lock, _adopting():
            send(self._connection, wish, list(fds.values()))
            answer, _ = receive(self._connection)
        if "error" in answer:
            raise OSError(answer["error"])
        pid = int(answer["pid"])
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises unless it is a child of ours
        return pid


@contextmanager
def _adopting() -> Iterator[None]:
    """Within this block processes below this one that lose their parent become its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


# What follows runs in the fork server and in what is forked from it.


def _preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    others = [path for path in Path("/proc/self/task").iterdir() if int(path.name) != os.getpid()]
    started = {(path / "comm").read_text().strip() for path in others} - _QUIET_THREADS
    if started:
        raise RuntimeError(f"importing what is preloaded started threads, which no fork keeps: {started}")
    gc.collect()
    gc.freeze()


def _serve(connection: socket.socket) -> None:
    """Fork what is asked for until the other end is gone."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        while True:
            wish, fds = receive(connection)
            pid = _fork_orphan(connection, wish, fds)
            for number in fds:
                os.close(number)
            send(connection, {"pid": pid} if pid else {"error": "the process could not be forked"})
    os._exit(0)


def _fork_orphan(connection: socket.socket, wish: dict[str, Any], fds: list[int]) -> int:
    """The id of a new process whose parent is gone, so that the one that adopts has it."""
    reader, writer = os.pipe()
    if not (between := os.fork()):
        parent = os.getpid()
        if not (pid := os.fork()):
            os.close(reader)
            os.close(writer)
            connection.close()
            while os.getppid() == parent:
                time.sleep(0.001)
            _be(wish, fds)
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read()
    os.waitpid(between, 0)
    return int(found or 0)


def _be(wish: dict[str, Any], fds: list[int]) -> None:
    """Be the process that is wished for, to its end."""
    status = 1
    try:
        nested, command = wish["nested"], wish["command"]
        _take(wish, fds)
        if nested:
            _have_server()
        _entitle(command)
        status = _run(command)
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _take(wish: dict[str, Any], fds: list[int]) -> None:
    """The streams, signals, group, directory and environment that are wished for."""
    high = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 512) for number in fds]
    for number in fds:
        os.close(number)
    for number, target in zip(high, wish["fds"], strict=True):
        os.dup2(number, target, inheritable=True)
        os.close(number)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wish["session"]:
        os.setsid()
    else:
        with suppress(OSError):  # the group may be of another session, or gone
            os.setpgid(0, wish["group"])
    os.chdir(wish["cwd"])
    if wish["umask"] >= 0:
        os.umask(wish["umask"])
    os.environ.clear()
    os.environ.update(wish["env"])
    time.tzset()
    tempfile.tempdir = None
    import numpy
    import torch

    numpy.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def _have_server() -> None:
    """Fork a server from this process before it starts threads, and route what it starts through it."""
    global _server
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, 1024)
        _entitle(["forkserver"])
        _serve(theirs)
    theirs.close()
    _server = Client(ours)
    subprocess.Popen._execute_child = _execute_forked  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = _spawn_forked  # type: ignore[attr-defined]


def _entitle(command: Sequence[str]) -> None:
    """Show this command line to those who list processes, as far as there is room."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(part.encode(errors="replace") for part in command)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _run(command: list[str]) -> int:
    """Run the command as the interpreter would; its exit status."""
    status = 0
    try:
        _start(command)
    except SystemExit as ended:
        if isinstance(ended.code, int) or ended.code is None:
            status = ended.code or 0
        else:
            print(ended.code, file=sys.stderr)
            status = 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status & 0xFF


def _start(command: list[str]) -> None:
    if _is_kfp_task(command):
        # What its shell line does: keep the source in a file, and run the executor on it.
        source = Path(tempfile.mkdtemp()) / "ephemeral_component.py"
        source.write_text(command[3], encoding="utf-8")
        os.environ["_KFP_RUNTIME"] = "true"
        command = [sys.executable, *_KFP_TASK.split(), "--component_module_path", str(source), *command[4:]]
    rest = command[1:]
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    if rest[0] == "-u":
        unbuffered, rest = True, rest[1:]
    _open_streams(unbuffered)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    own = "" if rest[0] == "-c" else os.getcwd() if rest[0] == "-m" else str(Path(rest[0]).absolute().parent)
    told = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [own, *told, *_base_path]
    if rest[0] == "-c":
        sys.argv = ["-c", *rest[2:]]
        exec(compile(rest[1], "<string>", "exec"), main.__dict__)
    elif rest[0] == "-m":
        sys.argv = ["-m", *rest[2:]]
        runpy._run_module_as_main(rest[1])  # type: ignore[attr-defined]
    else:
        sys.argv = rest
        main.__file__ = rest[0]
        exec(compile(Path(rest[0]).read_bytes(), rest[0], "exec"), main.__dict__)


def _open_streams(unbuffered: bool) -> None:
    """Standard streams of this process's own: those of the server have other buffers and another place to go."""
    encoding = os.environ.get("PYTHONIOENCODING") or "utf-8"
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        binary = open(number, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(
            binary, encoding, "strict" if number == 1 else "backslashreplace",
            line_buffering=number == 2 or os.isatty(number), write_through=unbuffered,
        )  # fmt: skip
        stream.mode = "w"  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


_base_path: list[str] = []


def main() -> None:
    """Import what is preloaded, say so, and serve."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    told = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    _base_path[:] = [path for path in sys.path[1:] if path not in told]
    sys.modules["tests.forkserver"] = sys.modules["__main__"]
    _preload()
    send(connection, {})
    _serve(connection)


if __name__ == "__main__":
    main()
