"""Starting a stage: in this process, or in one process per accelerator as ``policy.parallel`` says.

Several processes run under torchrun, each with ``policy.job``; their lines are passed on, and an error of one of them
is raised here as if the stage had run in this process. They end when this process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deeprec import errors
from deeprec.checks.gate import Verdict
from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig, TextConfig
from deeprec.errors import DeepRecError, PolicyError
from deeprec.policy.job import OUTCOME, WATCHED, StageJob
from deeprec.policy.processes import world_size
from deeprec.policy.stage import StageName
from deeprec.policy.stage import train_stage as run_here

_PATIENCE = 30.0
"""Seconds that processes which are told to end may take."""


def train_stage(
    stage: StageName,
    dataset: Path,
    trm: Path,
    start: Path,
    prompts: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    report: Path,
    checkpoints: Path | None = None,
    *,
    progress: Callable[[str], None] = print,
) -> tuple[Verdict, dict[str, float]]:
    """As ``stage.train_stage``, on all processes of this machine that ``policy.parallel`` asks for.

    Raises:
        PolicyError: more than one machine is asked for, or more accelerators than it has, or the processes died of
            something else than an error of ours.
        DeepRecError: as ``stage.train_stage``.
    """
    if policy.parallel.processes == 1 or world_size() > 1:
        sections = policy, explore, rewards, text, seed
        return run_here(stage, dataset, trm, start, prompts, *sections, out, report, checkpoints, progress=progress)
    if policy.parallel.nodes > 1:
        raise PolicyError(
            f"policy.parallel.nodes is {policy.parallel.nodes}, but this is one machine; make a TrainJob with "
            f"`deeprec policy trainjob`, or set nodes to 1"
        )
    _check_accelerators(policy.parallel.per_node)
    with tempfile.TemporaryDirectory(prefix="deeprec-") as outcome:
        job = StageJob(
            stage=stage,
            dataset=_absolute(dataset),
            trm=_absolute(trm),
            start=_absolute(start),
            prompts=_absolute(prompts),
            policy=policy,
            explore=explore,
            rewards=rewards,
            text=text,
            seed=seed,
            out=_absolute(out),
            report=_absolute(report),
            checkpoints=_absolute(checkpoints) if checkpoints else f"{outcome}/checkpoints",
            outcome=outcome,
        )
        status = _run(job, policy.parallel.per_node, progress)
        return _read(Path(outcome), status)


def _check_accelerators(processes: int) -> None:
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > found:
        raise PolicyError(
            f"policy.parallel.per_node is {processes}, and each process takes an accelerator of its own, but this "
            f"machine has {found}; set per_node to {found}, or CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        )


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _run(job: StageJob, processes: int, progress: Callable[[str], None]) -> int:
    """Exit status of the launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "deeprec.policy.job", job.model_dump_json()]
    with _started(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            progress(line.rstrip("\n"))
        return process.wait()


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, ended with this block; its standard input ends with this process, however that ends."""
    environment = os.environ | {WATCHED: "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
        env=environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _read(outcome: Path, status: int) -> tuple[Verdict, dict[str, float]]:
    if status == 0 and (outcome / OUTCOME).is_file():
        noted = json.loads((outcome / OUTCOME).read_text(encoding="utf-8"))
        return Verdict.from_json(json.dumps(noted["verdict"])), dict(noted["figures"])
    for path in sorted(outcome.glob("error-*.json")):
        noted = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, noted["kind"], PolicyError)
        raise kind(noted["message"]) if issubclass(kind, DeepRecError) else PolicyError(noted["message"])
    raise PolicyError(f"the processes that train the stage ended with status {status}; their last lines say why")
