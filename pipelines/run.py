"""One training run in its working directory: the pipeline, what a person reads afterwards, and the figures.

The directory holds ``config.yaml`` (resolved), ``logs/TASK.log``, ``reports/TASK.html``, and after success
``report.html``, ``metrics.json``, ``bundle/`` and, where ``bundle.promote`` is set, ``shelf/``; ``pipeline/``,
``cache/`` and ``checkpoints/`` are what ``resume`` goes on from. A run that is not resumed starts by clearing all of
this but ``bundle/``, ``shelf/`` and the feature store, so that what serves stays until a new bundle takes its place.
One run at a time has the directory.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl

from deeprec.config import Config, EvaluationConfig
from deeprec.data.version import check_source
from deeprec.errors import CheckFailed, ConfigError, PipelineError
from deeprec.evaluation.cost import Spent, spent_on, task_cost
from deeprec.pipelines import training
from deeprec.pipelines.environment import environment
from deeprec.pipelines.local import TaskResult, run_pipeline
from deeprec.pipelines.progress import Progress
from deeprec.store import MANIFEST, write_text

_MARK = ".deeprec-run"
_FOLDERS = ("pipeline", "cache", "logs", "reports", "checkpoints")
_FILES = ("report.html", "metrics.json")


@dataclass(frozen=True)
class RunResult:
    """A finished run: its tasks, the content of ``metrics.json``, and where things are."""

    workdir: Path
    tasks: tuple[TaskResult, ...]
    metrics: Mapping[str, Any]

    @property
    def report(self) -> Path:
        return self.workdir / "report.html"

    @property
    def bundle(self) -> Path:
        return self.workdir / "bundle"


def run_training(config: Config, workdir: Path, *, resume: bool = False, progress: Progress | None = None) -> RunResult:
    """Run the training pipeline on this machine.

    Raises:
        CheckFailed: a gate did not pass; the message ends with the path of its report.
        ConfigError: ``workdir`` is not a run's directory.
        DataError: there is nothing at ``data.path``; an earlier run's results are still there.
        PipelineError: a task failed, or another run has the directory.
        DeepRecError: the error of the task that failed, by its own class.
    """
    began = time.monotonic()
    workdir = workdir.absolute()
    config = resolve(config, workdir)
    arguments = training.arguments(config)
    check_source(config.data)
    with _claimed(workdir, resume):
        write_text(workdir / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        results = run_pipeline(
            training.build(config.pipeline, in_turn=True),
            arguments,
            workdir,
            resume=resume,
            always=training.LOOKING,
            environment=environment(config),
            progress=progress,
            on_result=lambda result: _copy_report(result, workdir),
        )
        _raise_failure(results, workdir)
        return _finish(results, workdir, time.monotonic() - began, config.evaluation)


def resolve(config: Config, workdir: Path) -> Config:
    """The configuration with absolute local paths; features go to ``workdir/features`` unless named.

    A bundle that is promoted goes to ``workdir/shelf`` where no shelf is named.
    """
    tree = config.model_dump()
    if config.features.place == "directory":
        tree["features"]["path"] = os.path.abspath(tree["features"]["path"] or workdir / "features")
    if tree["data"]["path"] and "://" not in tree["data"]["path"]:
        tree["data"]["path"] = os.path.abspath(os.path.expanduser(tree["data"]["path"]))
    shelf = tree["bundle"]["uri"] or (str(workdir / "shelf") if tree["bundle"]["promote"] else "")
    tree["bundle"]["uri"] = os.path.abspath(shelf) if shelf and "://" not in shelf else shelf
    former = tree["trm"]["continue_from"]
    tree["trm"]["continue_from"] = os.path.abspath(former) if former and "://" not in former else former
    return Config.model_validate(tree)


@contextlib.contextmanager
def _claimed(workdir: Path, resume: bool) -> Iterator[None]:
    """Hold the directory for this run alone; clear what an earlier run left unless it is resumed."""
    mark = workdir / _MARK
    if not mark.exists():
        foreign = [name for name in (*_FOLDERS, *_FILES) if (workdir / name).exists()]
        if foreign:
            raise ConfigError(f"{workdir} holds {foreign[0]}, which no run made; name another directory as --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = mark.open("a")
    except OSError as error:
        raise ConfigError(f"cannot write in {workdir}: {error.strerror}; name another --workdir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PipelineError(f"another run has {workdir}; wait for it, or name another --workdir") from error
        if not resume:
            for name in _FOLDERS:
                shutil.rmtree(workdir / name, ignore_errors=True)
            for name in _FILES:
                (workdir / name).unlink(missing_ok=True)
        yield


def _copy_report(result: TaskResult, workdir: Path) -> None:
    for output in result.outputs.values():
        source = Path(output.path) if isinstance(output, dsl.HTML) else None
        if source and source.is_file():
            (workdir / "reports").mkdir(exist_ok=True)
            shutil.copyfile(source, workdir / "reports" / f"{result.name}.html")


def _raise_failure(results: Sequence[TaskResult], workdir: Path) -> None:
    last = results[-1] if results else None
    if last is None:
        raise PipelineError(f"no task ran; see {workdir / 'logs' / 'pipeline.log'}")
    if last.error is None:
        return
    if not isinstance(last.error, CheckFailed):
        raise last.error
    gates = [result.name for result in results if (workdir / "reports" / f"{result.name}.html").exists()]
    report = f" (report: {workdir / 'reports' / gates[-1]}.html)" if gates else ""
    raise CheckFailed(f"{last.error}{report}")


def _finish(
    results: Sequence[TaskResult], workdir: Path, wall: float, evaluation_config: EvaluationConfig
) -> RunResult:
    """Put report, bundle and figures where a person looks for them."""
    outputs = {result.name: result.outputs for result in results}
    evaluation = Path(outputs["evaluate"]["results"].path)
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    cached = sum(result.seconds for result in results if result.status == "cached")
    seconds = {result.name: round(result.seconds, 2) for result in results}
    metrics["seconds"] = {**seconds, "total": round(wall + cached, 2)}
    spent = {result.name: Spent(result.seconds, _accelerators(result)) for result in results}
    metrics["cost"] |= task_cost(spent, evaluation_config.price_per_hour)
    shutil.copyfile(outputs["evaluate"]["report"].path, workdir / "report.html")
    _swap(Path(outputs["publish-bundle"]["bundle"].path), workdir / "bundle")
    write_text(workdir / "metrics.json", json.dumps(metrics, indent=2))
    return RunResult(workdir, tuple(results), metrics)


def _accelerators(result: TaskResult) -> int:
    """Those that the task's process had, by the artifacts it wrote; none where it wrote none."""
    places = [Path(output.path) for output in result.outputs.values() if isinstance(output, dsl.Artifact)]
    return max((spent_on(place).accelerators for place in places if (place / MANIFEST).is_file()), default=0)


def _swap(source: Path, target: Path) -> None:
    """Replace ``target`` by the bundle ``source``; the old one stays until the new one is whole."""
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, fresh)
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)
