"""``deeprec pipeline``: the training pipeline as a file that a Kubeflow Pipelines server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config

app = typer.Typer(
    help="The training pipeline for a Kubeflow Pipelines server.", no_args_is_help=True, rich_markup_mode="markdown"
)


@app.callback()
def _group() -> None:
    """The training pipeline for a Kubeflow Pipelines server."""


@app.command("compile")
def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")],
    config: Annotated[str, typer.Option("--config", "-c", help=CONFIG_HELP)] = "cluster",
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
    data_version: Annotated[
        str,
        typer.Option(
            "--data-version", help="Your name of the data's contents; without it each run reads them for one."
        ),
    ] = "",
) -> None:
    """Write the pipeline as KFP v2 YAML; the configuration becomes its parameters' defaults.

    Examples:

    `deeprec pipeline compile -o train.yaml --set pipeline.image=registry/deeprec-train@sha256:…`

    `deeprec pipeline compile -o train.yaml --config my.yaml --set pipeline.allow_tags=true`
    """
    settings = read_config(config, override)
    if output.suffix not in (".yaml", ".yml"):
        raise typer.BadParameter(f"{output} does not end in .yaml", param_hint="--output")

    from deeprec.pipelines import training

    training.compile(settings, output, data_version)
    print(f"{output}: pipeline {training.NAME}, {len(training.TASKS)} tasks")
