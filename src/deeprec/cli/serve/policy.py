"""``deeprec serve policy``: a bundle's policy behind vLLM's own OpenAI server, which takes this process's place."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from deeprec.cli.places import part_at
from deeprec.cli.profiles import read_config
from deeprec.cli.serve.options import ConfigOption, HostOption, PortOption, SetOption, read_serving


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("policy")(serve)


def serve(
    bundle: Annotated[
        str,
        typer.Argument(
            help="A policy's directory, a bundle's or a run's, a shelf (its live version) or SHELF@VERSION."
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTION...]", help="More options of vLLM's server.")
    ] = None,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the command that would be run, and run nothing.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    host: HostOption = None,
    port: PortOption = None,
) -> None:
    """Serve a policy with vLLM's own OpenAI server, named by its fingerprint and `deeprec-policy`. Ends with Ctrl-C.

    A recommender explores with it when it is given its address (`--policy-url`). What vLLM is started with is in the
    section explore.engine (--set explore.engine.dtype=bfloat16); what is not there goes behind `--`. vLLM takes this
    process's place: its id, its signals and its exit status are vLLM's. Needs `deeprec[gpu]`.

    Examples:

        deeprec serve policy runs/quickstart --port 8001

        deeprec serve policy s3://models/shop --config cluster -- --max-num-seqs 64

        deeprec serve policy runs/quickstart --print-command
    """
    from deeprec.explore.vllm_server import require_vllm, vllm_command
    from deeprec.serving.http.address import bind, url

    serving = read_serving(config, overrides, host=host, port=port)
    engine = read_config(config, overrides).explore.engine
    if not print_command:
        require_vllm()
    place = part_at(bundle, "policy", serving.cache)
    with bind(serving.host, serving.port) as free:
        listening = free.getsockname()[1]
    command = vllm_command(place, serving.host, listening, engine, options or ())
    if print_command:
        typer.echo(shlex.join(command))
        return
    typer.echo(introduction(url(serving.host, listening)))
    sys.stdout.flush()
    os.execv(command[0], command)


def introduction(at: str) -> str:
    """Where the policy will be, and what to do with it."""
    return "\n".join(
        [
            f"vLLM serves the policy at {at}; a recommender explores with it by --policy-url {at}",
            "",
            "try, once it has started:",
            f"  curl -s {at}/v1/models",
            "",
        ]
    )
