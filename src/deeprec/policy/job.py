"""One process of a stage that several train: ``python -m deeprec.policy.job JOB``, under torchrun or in a TrainJob.

``JOB`` is a ``StageJob`` as JSON. Datasets, models and prompts are directories that every machine sees, or
``s3://bucket/prefix``: those are copied to each machine first, and a policy that is to go there is copied when it is
done. Process 0 writes ``outcome.json`` into the job's directory; a process that fails with an error of ours writes
``error-RANK.json`` there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from deeprec.checks.gate import Verdict
from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig, TextConfig
from deeprec.errors import DeepRecError
from deeprec.policy.processes import gather, join, rank
from deeprec.policy.stage import StageName, train_stage
from deeprec.store import get_directory, put_directory, write_text

WATCHED = "DEEPREC_STAGE_WATCHED"
"""Environment variable: set where standard input ends when whoever started the processes is gone."""
OUTCOME = "outcome.json"


class StageJob(BaseModel):
    """Everything ``train_stage`` is given, as plain data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: StageName
    dataset: str
    trm: str
    start: str
    prompts: str
    policy: PolicyConfig
    explore: ExploreConfig
    rewards: RewardsConfig
    text: TextConfig
    seed: int
    out: str
    """Where the trained policy goes: a directory or ``s3://bucket/prefix``."""
    report: str
    """The gate's page, a file."""
    checkpoints: str = ""
    """A directory that every machine sees; empty keeps none between two attempts."""
    outcome: str
    """A directory for ``outcome.json`` and the errors."""


def perform(job: StageJob) -> tuple[Verdict, dict[str, float]]:
    """Run this process's part of the stage; all of them return the same.

    Raises:
        DeepRecError: as ``train_stage``; or an artifact cannot be copied.
    """
    join()
    with _copies(job) as (inputs, out):
        verdict, figures = train_stage(
            job.stage,
            *inputs,
            job.policy,
            job.explore,
            job.rewards,
            job.text,
            job.seed,
            out,
            Path(job.report),
            Path(job.checkpoints) if job.checkpoints else None,
            progress=lambda line: print(line, flush=True),
        )
        if _is_remote(job.out) and rank() == 0:
            put_directory(out, job.out)
    return verdict, figures


@contextmanager
def _copies(job: StageJob) -> Iterator[tuple[tuple[Path, Path, Path, Path], Path]]:
    """Directories of dataset, TRM, start and prompts, and the one to write; a machine's processes share its copies."""
    named = {name: str(getattr(job, name)) for name in ("dataset", "trm", "start", "prompts")}
    digest = hashlib.sha256(job.model_dump_json().encode()).hexdigest()
    scratch = Path(tempfile.gettempdir()) / f"deeprec-stage-{digest[:16]}"
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    try:
        if first:
            for name, uri in named.items():
                if _is_remote(uri):
                    get_directory(uri, scratch / name)
        gather([rank()])
        dataset, trm, start, prompts = (scratch / name if _is_remote(uri) else Path(uri) for name, uri in named.items())
        yield (dataset, trm, start, prompts), scratch / "out" if _is_remote(job.out) else Path(job.out)
    finally:
        if first:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_remote(uri: str) -> bool:
    return "://" in uri


def main() -> None:
    """Entry point of one process. Exit status: 0 done, whatever the gate says; an error's own; 1 for any other."""
    if os.environ.get(WATCHED):
        threading.Thread(target=_end_with_input, daemon=True).start()
    job = StageJob.model_validate_json(sys.argv[1])
    outcome = Path(job.outcome)
    try:
        verdict, figures = perform(job)
    except DeepRecError as error:
        noted = {"kind": type(error).__name__, "message": str(error)}
        write_text(outcome / f"error-{rank()}.json", json.dumps(noted))
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        raise SystemExit(error.exit_code) from None
    if rank() == 0:
        made = {"verdict": json.loads(verdict.to_json()), "figures": figures}
        write_text(outcome / OUTCOME, json.dumps(made, indent=1))


def _end_with_input() -> None:
    if not os.read(0, 1):
        os._exit(143)


if __name__ == "__main__":
    main()
