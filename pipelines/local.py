"""Runs a KFP pipeline on this machine: KFP's local runner, with resume, logs per task, timing and clear failures.

KFP orchestrates and executes; ``Session`` hooks three functions of ``kfp.local`` (pinned by a contract test): the one
that runs a task, for resume and bookkeeping; the one that runs a task's process, for its log, environment and end; the
one that fills in the interpreter. Tasks run one after the other; on Linux all but the first few are forked from a
process that has imported what they need (``warm``). A finished task is recorded; with ``resume`` a recorded one is
returned without running. The hooks are global to the process: one run at a time.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from kfp import local
from kfp.local import status, subprocess_task_handler, task_dispatcher

from deeprec.components.boundary import CHECKPOINTS, RUNNER, read_error
from deeprec.errors import CheckFailed, DeepRecError, PipelineError, StoreError
from deeprec.pipelines.progress import Progress, Silent
from deeprec.pipelines.records import Records, task_key
from deeprec.pipelines.warm import Forked, WarmProcess, forkable

GRACE = 10.0
"""Seconds that an interrupted task has to clean up."""


@dataclass(frozen=True)
class TaskResult:
    """What became of one task. ``refused``: it did not start its work, because the gate before it did not pass.

    ``seconds`` is wall time including the process's start; a cached task keeps the seconds it once took.
    """

    name: str
    status: Literal["ran", "cached", "failed", "refused"]
    seconds: float
    log: Path
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: DeepRecError | None = None


def run_pipeline(
    pipeline: Any,
    arguments: Mapping[str, Any],
    workdir: Path,
    *,
    resume: bool = False,
    always: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    on_result: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Run a pipeline; the results of the tasks that were reached, in order. Nothing runs after a failed one.

    Writes ``workdir/pipeline`` (artifacts), ``workdir/logs/TASK.log`` and ``workdir/cache`` (records). With ``resume``
    recorded tasks are not run again, but those named by ``always``. ``environment`` is added to that of the tasks'
    processes.
    """
    session = Session(pipeline, workdir, resume, always, dict(environment or {}), progress or Silent(), on_result)
    return session.run(arguments)


class Session:
    """One local run."""

    def __init__(
        self,
        pipeline: Any,
        workdir: Path,
        resume: bool,
        always: Collection[str],
        environment: dict[str, str],
        progress: Progress,
        on_result: Callable[[TaskResult], None] | None,
    ) -> None:
        tasks = pipeline.pipeline_spec.root.dag.tasks.values()
        self._pipeline = pipeline
        self._names = {task.component_ref.name: task.task_info.name for task in tasks}
        self._workdir = workdir.absolute()
        self._resume = resume
        self._always = always
        self._environment = environment
        self._progress = progress
        self._on_result = on_result
        self._records = Records(self._workdir / "cache")
        self._results: list[TaskResult] = []
        self._task = ""
        self._key = ""
        self._last_line = ""
        self._exit_status = 0
        self._warm: WarmProcess | None = None

    def run(self, arguments: Mapping[str, Any]) -> list[TaskResult]:
        """Run every task that can run."""
        (self._workdir / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="deeprec-") as scratch, self._hooked():
            log = (self._workdir / "logs" / "pipeline.log").open("w", encoding="utf-8")
            self._environment["TMPDIR"] = scratch
            with log, contextlib.redirect_stdout(log), self._warmed():
                local.init(
                    runner=local.SubprocessRunner(use_venv=False),
                    pipeline_root=str(self._workdir / "pipeline"),
                    workspace_root=scratch + "/workspace",
                    raise_on_error=False,
                )
                self._pipeline(**arguments)
        return self._results

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        original = task_dispatcher.run_single_task_implementation
        with (
            mock.patch.object(
                task_dispatcher, "run_single_task_implementation", lambda **call: self._run_task(original, call)
            ),
            mock.patch.object(subprocess_task_handler, "run_local_subprocess", self._run_process),
            mock.patch.object(subprocess_task_handler, "replace_python_executable", _name_interpreter),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield

    @contextlib.contextmanager
    def _warmed(self) -> Iterator[None]:
        if sys.platform == "linux":
            self._warm = WarmProcess({**os.environ, **self._environment})
        try:
            yield
        finally:
            if self._warm:
                self._warm.close()

    def _run_task(self, original: Callable[..., Any], call: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        self._task = self._names[call["component_name"]]
        self._key = task_key(self._task, call["executor_spec"], call["arguments"])
        record = self._records.find(self._key) if self._resume and self._task not in self._always else None
        if record:
            self._finish("cached", record.seconds, record.outputs)
            return record.outputs, status.Status.SUCCESS
        self._progress.started(self._task)
        self._last_line, self._exit_status = "", 0
        started = time.monotonic()
        outputs, outcome = original(**call)
        seconds = time.monotonic() - started
        if outcome is not status.Status.SUCCESS:
            error = self._failure()
            self._finish("refused" if isinstance(error, CheckFailed) else "failed", seconds, {}, error)
            return {}, outcome
        self._records.keep(self._key, self._task, outputs, seconds)
        self._finish("ran", seconds, outputs)
        return outputs, outcome

    def _finish(
        self,
        outcome: Literal["ran", "cached", "failed", "refused"],
        seconds: float,
        outputs: Mapping[str, Any],
        error: DeepRecError | None = None,
    ) -> None:
        result = TaskResult(self._task, outcome, seconds, self._log, outputs, error)
        self._results.append(result)
        self._progress.finished(self._task, outcome, seconds)
        if self._on_result:
            self._on_result(result)

    @property
    def _log(self) -> Path:
        return self._workdir / "logs" / f"{self._task}.log"

    def _failure(self) -> DeepRecError:
        named = read_error(self._last_line)
        if isinstance(named, CheckFailed):
            return named
        if named:
            return type(named)(f"{self._task}: {named}")
        if "No space left on device" in self._last_line:
            return StoreError(f"{self._task}: the disk is full; free some space and start again with --resume")
        ended = f"signal {-self._exit_status}" if self._exit_status < 0 else f"exit status {self._exit_status}"
        if self._exit_status == 137:
            ended += " (killed, perhaps for lack of memory)"
        last = f": {self._last_line}" if self._last_line else ""
        return PipelineError(f"{self._task} ended with {ended}{last} (log: {self._log})")

    def _run_process(self, full_command: list[str]) -> int:
        """Run a task's process in its own process group, its output going to the task's log."""
        kept = {CHECKPOINTS: str(self._workdir / "checkpoints" / self._key[:32]), RUNNER: "1"}
        held, ours = os.pipe()  # its standard input, which ends with this process: see components.boundary
        reader, output = os.pipe()
        with os.fdopen(ours, "w"), os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
            try:
                process = self._start(full_command, {**os.environ, **self._environment, **kept}, held, output)
            finally:
                os.close(held)
                os.close(output)
            try:
                with self._log.open("w", encoding="utf-8") as log:
                    for line in lines:
                        log.write(line)
                        log.flush()
                        if line.strip():
                            self._last_line = line.strip()
                            self._progress.line(self._task, self._last_line)
                self._exit_status = process.wait()
            finally:
                _end(process)
        return self._exit_status

    def _start(
        self, command: list[str], environment: dict[str, str], stdin: int, output: int
    ) -> "subprocess.Popen[bytes] | Forked":
        if self._warm and self._warm.ready() and forkable(command):
            with contextlib.suppress(OSError):  # it was killed meanwhile; the task can do without
                return self._warm.start(command, environment, stdin, output)
        return subprocess.Popen(
            command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _name_interpreter(full_command: list[str], new_executable: str) -> list[str]:
    """This interpreter in place of ``python3``, in the shell line only: KFP's own replaces it in the inputs too."""
    quoted = shlex.quote(new_executable)
    return [part.replace("python3", quoted) if index < 3 else part for index, part in enumerate(full_command)]


def _end(process: "subprocess.Popen[bytes] | Forked") -> None:
    """Interrupt, then kill, what is left of a task's process group."""
    for signum in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
