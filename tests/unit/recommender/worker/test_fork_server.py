"""Where worker processes come from: one process that imports, forks of it, and their common end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from deeprec.forking import receive
from deeprec.recommender.worker import fork_server
from deeprec.recommender.worker.process import WorkerProcess
from tests.unit.pipelines.test_warm import QUIET_THREADS

SECONDS = 60.0

pytestmark = [
    pytest.mark.skipif(not fork_server.FORKS, reason="processes are forked on Linux only"),
    pytest.mark.usefixtures("forked"),
]


def tell(connection: Connection, asked: str) -> None:
    """A worker that answers one question and waits for the end."""
    answers: dict[str, Callable[[], Any]] = {
        "parent": os.getppid,
        "torch": lambda: "torch" in sys.modules,
        "sum": _sum,
        "name": lambda: psutil.Process().name(),
    }
    connection.send(answers[asked]())
    connection.recv()


def _sum() -> float:
    import torch

    torch.set_num_threads(2)
    ones = torch.ones(600, 600)
    return float((ones @ ones).sum())


@pytest.fixture(autouse=True)
def own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is held when a test begins, whatever others of this process have left open."""
    monkeypatch.setattr(fork_server, "_held", 0)
    monkeypatch.setattr(fork_server, "_server", None)


@pytest.fixture
def ask() -> Iterator[Callable[..., Any]]:
    """Asks a new worker one question; the workers stay until the end of the test."""
    workers: list[WorkerProcess[Any, Any, Any]] = []

    def asked(question: str, imports: tuple[str, ...] = ()) -> Any:
        heard: list[Any] = []
        workers.append(WorkerProcess(tell, question, "test", imports))
        workers[-1].start(heard.append)
        until(lambda: bool(heard))
        return heard[0]

    fork_server.hold()
    yield asked
    for worker in workers:
        worker.kill()
    fork_server.release()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_are_forked_from_one_process_with_what_was_imported(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As users have it, and not forked from that of the tests: it has no thread that a fork would lose."""
    monkeypatch.setenv("DEEPREC_TEST_FORK", "0")
    assert ask("torch", (*fork_server.TRANSFORMERS, "sentence_transformers")) is True
    assert ask("sum") == 600.0**3, "torch works on several threads after a fork"
    [server] = {ask("parent") for _ in range(2)}
    assert server != os.getpid()
    assert ask("name") == "deeprec-test"
    threads = {path.joinpath("comm").read_text().strip() for path in Path(f"/proc/{server}/task").iterdir()}
    assert threads - QUIET_THREADS == {"deeprec-forks"}


def test_a_server_that_is_killed_takes_its_workers_along_and_is_replaced(ask: Callable[..., Any]) -> None:
    first = psutil.Process(ask("parent"))
    [worker] = [one for one in first.children() if one.name() == "deeprec-test"]
    first.kill()
    until(lambda: not worker.is_running())
    assert ask("parent") != first.pid


def test_the_last_who_lets_go_of_it_ends_it(ask: Callable[..., Any]) -> None:
    server = psutil.Process(ask("parent"))
    fork_server.hold()
    fork_server.release()
    assert server.is_running()
    fork_server.release()
    until(lambda: not server.is_running())
    with pytest.raises(OSError, match="shut down"):
        ask("parent")
    fork_server.hold()


def test_letting_go_waits_for_no_import(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "takes_its_time.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fork_server.hold(["takes_its_time"])
    began = time.monotonic()
    fork_server.release()
    fork_server.release()
    assert time.monotonic() - began < 30
    fork_server.hold()


def test_what_cannot_be_imported_is_left_to_the_worker(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_on_import.py").write_text("raise OSError('libcudart.so is missing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ask("name", ("breaks_on_import", "no_such_module")) == "deeprec-test"


def test_a_fork_that_fails_is_an_answer_and_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own code, in this process: a real one would need a machine without memory."""
    ours, theirs = socket.socketpair()
    held, passed = os.pipe()

    def fail() -> int:
        raise BlockingIOError("no process left")

    monkeypatch.setattr(os, "fork", fail)
    with ours, theirs:
        fork_server._fork(theirs, "test", held)
        assert receive(ours) == ({"error": "no process left"}, [])
    os.close(passed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)


def test_a_signal_to_the_whole_group_is_not_for_it(ask: Callable[..., Any]) -> None:
    server = psutil.Process(ask("parent"))
    for number in (signal.SIGTERM, signal.SIGINT):
        server.send_signal(number)
    assert ask("parent") == server.pid


def test_where_processes_cannot_be_forked_each_is_an_interpreter_of_its_own(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "FORKS", False)
    assert ask("sum") == 600.0**3


def test_a_worker_that_raises_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    fork_server.hold()
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        fork_server.start("test", (), theirs.fileno())
    ours.send({})
    ours.send((int, "no number"))
    with pytest.raises(EOFError):
        ours.recv()
    fork_server.release()
    assert "TypeError" in capfd.readouterr().err
