"""``deeprec policy trainjob``: the manifest that trains a stage on several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.profiles import SET_HELP

PLACE = "a directory on the volume, or s3://bucket/prefix."


def trainjob(
    stage: Annotated[int, typer.Option("--stage", min=1, max=2, help="1 teaches to explore, 2 to recommend.")],
    config: Annotated[str, typer.Option("--config", "-c", help="YAML file or profile of the run.")],
    dataset: Annotated[str, typer.Option("--dataset", help=f"Dataset: {PLACE}")],
    trm: Annotated[str, typer.Option("--trm", help=f"TRM trained `--for-policy`: {PLACE}")],
    policy: Annotated[str, typer.Option("--policy", help=f"Policy to train: {PLACE}")],
    prompts: Annotated[str, typer.Option("--prompts", help=f"Both stages' prompts: {PLACE}")],
    out: Annotated[str, typer.Option("--out", help=f"Where the trained policy goes: {PLACE}")],
    claim: Annotated[str, typer.Option("--claim", help="PersistentVolumeClaim that every machine mounts for writing.")],
    mount: Annotated[str, typer.Option("--mount", help="Where it is mounted.")] = "/mnt/deeprec",
    secret: Annotated[
        str, typer.Option("--secret", help="Secret with the object store's AWS_ENDPOINT_URL and keys.")
    ] = "",
    deadline: Annotated[int, typer.Option("--deadline", min=0, help="Seconds after which it fails; 0: never.")] = 0,
    runtime: Annotated[str, typer.Option("--runtime", help="ClusterTrainingRuntime.")] = "torch-distributed",
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
    file: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: print it.")] = None,
) -> None:
    """Make the Kubeflow TrainJob that trains one stage on `policy.parallel.nodes` machines.

    Nothing is sent to a cluster: apply what is printed. Report, checkpoints and outcome are kept on the volume, in a
    directory with the names of run and stage. It needs Kubeflow Trainer 2.2 or later.

    Example:

    `deeprec policy trainjob --stage 1 --config qwen2.5-7b --set policy.parallel.nodes=2 --dataset s3://deeprec/dataset
    --trm s3://deeprec/trm --policy s3://deeprec/start --prompts s3://deeprec/prompts --out s3://deeprec/stage1
    --claim deeprec-work --secret deeprec-s3 | kubectl apply -f -`
    """
    import yaml

    from deeprec.cli.profiles import read_config
    from deeprec.policy.job import StageJob
    from deeprec.policy.trainjob import train_job
    from deeprec.store import write_text

    settings = read_config(config, override)
    name = "stage1" if stage == 1 else "stage2"
    kept = f"{mount.rstrip('/')}/{settings.name}-{name}"
    job = StageJob(
        stage=name,  # type: ignore[arg-type]
        dataset=dataset,
        trm=trm,
        start=policy,
        prompts=prompts,
        policy=settings.policy,
        explore=settings.explore,
        rewards=settings.rewards,
        text=settings.text,
        seed=settings.seed,
        out=out,
        report=f"{kept}/report.html",
        checkpoints=f"{kept}/checkpoints",
        outcome=kept,
    )
    manifest = train_job(
        job,
        settings.pipeline,
        name=settings.name,
        claim=claim,
        mount=mount,
        secret=secret,
        deadline_seconds=deadline,
        runtime=runtime,
    )
    text = yaml.safe_dump(manifest, sort_keys=False, width=120)
    if file is None:
        typer.echo(text, nl=False)
    else:
        write_text(file, text)
