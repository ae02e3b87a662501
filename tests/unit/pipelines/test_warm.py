"""The process that tasks are forked from: what a task gets, how it ends, and no thread started before a fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deeprec.pipelines.warm import Forked, WarmProcess, forkable

LINE = "python3 -m kfp.dsl.executor_main"
QUIET_THREADS = {"jemalloc_bg_thd"}  # of pyarrow's allocator, which handles forks itself


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    """A process as a user's run has it, not one forked from that of the tests."""
    process = WarmProcess(dict(os.environ) | {"DEEPREC_TEST_FORK": "0"})
    end = time.monotonic() + 120
    while not process.ready():
        assert time.monotonic() < end, "it does not get ready"
        time.sleep(0.05)
    yield process
    process.close()


class Task:
    """One task, begun; ``output`` is all it wrote."""

    def __init__(self, warm: WarmProcess, body: str, tmp_path: Path, **environment: str) -> None:
        lines = ["def work(text: str):", "import os, sys, time", *body.split("\n")]
        given = {"inputs": {"parameterValues": {"text": "it's"}}, "outputs": {"outputFile": str(tmp_path / "out.json")}}
        told = ["--executor_input", json.dumps(given), "--function_to_execute", "work"]
        held, self.stdin = os.pipe()
        self._output = tmp_path / "output.txt"
        with self._output.open("wb") as output:
            command = ["sh", "-ec", LINE, "\n    ".join(lines), *told]
            self.process = warm.start(command, {**os.environ, **environment}, held, output.fileno())
        os.close(held)

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def wait(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            os.close(self.stdin)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 60
        while text not in self.output:
            assert time.monotonic() < end, self.output
            time.sleep(0.02)


def test_only_the_shell_line_of_a_task_is_forked() -> None:
    assert forkable(["sh", "-ec", LINE, "source", "--executor_input", "{}"])
    assert not forkable(["sh", "-ec", "make all", "source", "x"])
    assert not forkable(["python", "-m", "kfp.dsl.executor_main"])


def test_nothing_imported_before_a_fork_starts_a_thread_that_a_fork_loses(warm: WarmProcess) -> None:
    process = warm._process.pid
    names = [path.joinpath("comm").read_text().strip() for path in Path(f"/proc/{process}/task").iterdir()]
    own = Path(f"/proc/{process}/comm").read_text().strip()

    assert set(names) - QUIET_THREADS - {own} == set()  # threads of OpenBLAS, which handles forks, have its own name


def test_a_task_has_its_own_environment_session_and_imports(warm: WarmProcess, tmp_path: Path) -> None:
    body = "print(text, os.environ['GIVEN'], os.getsid(0) == os.getpid(), 'torch' in sys.modules, os.getcwd())"
    for given in ("1", "2"):
        task = Task(warm, body, tmp_path, GIVEN=given)
        assert task.wait() == 0
        assert f"it's {given} True True {os.getcwd()}" in task.output


def test_torch_works_in_a_forked_task_on_several_threads(warm: WarmProcess, tmp_path: Path) -> None:
    body = "import torch\ntorch.set_num_threads(2)\nx = torch.ones(600, 600)\nprint(float((x @ x).sum()))"
    for _ in range(2):
        task = Task(warm, body, tmp_path)
        assert task.wait() == 0
        assert "216000000.0" in task.output


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("sys.exit(7)", 7, ""),
        ("sys.exit('no more')", 1, "no more"),
        ("raise ValueError('a fault')", 1, "ValueError: a fault"),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("os.abort()", -signal.SIGABRT, ""),
    ],
)
def test_a_task_ends_with_its_status(warm: WarmProcess, tmp_path: Path, body: str, status: int, said: str) -> None:
    task = Task(warm, body, tmp_path)

    assert task.wait() == status
    assert said in task.output


def test_a_task_runs_until_it_is_interrupted(warm: WarmProcess, tmp_path: Path) -> None:
    task = Task(warm, "print('asleep', flush=True)\ntime.sleep(60)", tmp_path)
    task.wait_for("asleep")

    assert task.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        task.process.wait(0.01)
    os.killpg(task.process.pid, signal.SIGINT)
    assert task.wait() == 130


def test_what_atexit_runs_is_run(warm: WarmProcess, tmp_path: Path) -> None:
    task = Task(warm, "import atexit\natexit.register(print, 'cleaned up')", tmp_path)

    assert task.wait() == 0
    assert "cleaned up" in task.output


def test_a_task_whose_parent_is_killed_counts_as_killed(tmp_path: Path) -> None:
    warm = WarmProcess(dict(os.environ))
    while not warm.ready():
        time.sleep(0.05)
    task = Task(warm, "print('asleep', flush=True)\ntime.sleep(60)", tmp_path)
    task.wait_for("asleep")
    os.kill(warm._process.pid, signal.SIGKILL)

    assert task.wait() == -signal.SIGKILL
    os.killpg(task.process.pid, signal.SIGKILL)
    warm._process.wait(60)
    assert not warm.ready()
    with pytest.raises(OSError, match="gone"):
        Task(warm, "pass", tmp_path)
    warm.close()
    assert isinstance(task.process, Forked)
