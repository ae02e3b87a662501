"""``deeprec doctor``: whether all is there that a training run needs."""

from __future__ import annotations

from typing import Annotated

import typer

from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG_HELP)] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
) -> None:
    """Look for all that a training run needs, and tell at once what is missing.

    The source, the feature place, the shelf (written to, read, and written on condition), models on the Hugging Face
    hub, vLLM where it is asked for, and in a cluster nodes with accelerators enough. The pipeline's first task does the
    same in a pod.

    Examples:

    `deeprec doctor --config cluster.yaml`

    `deeprec doctor --config qwen2.5-7b --set bundle.uri=s3://models/shop`

    Exit status: 0 all is there, 1 something is missing.
    """
    settings = read_config(config, override)

    from deeprec.doctor import examine, training_checks

    findings = examine(training_checks(settings))
    for finding in findings:
        typer.echo(str(finding))
    if not all(finding.passed for finding in findings):
        raise typer.Exit(1)
