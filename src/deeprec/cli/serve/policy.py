"""``deeprec serve policy``: the policy of a bundle as a server of its own, text in, text out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.places import find_bundle
from deeprec.cli.profiles import read_config
from deeprec.cli.serve.examples import curl, curl_v1
from deeprec.cli.serve.options import ConfigOption, HostOption, PortOption, SetOption, read_serving
from deeprec.markup import PREFERENCE_CLOSE
from deeprec.store import MANIFEST


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
    engine: Annotated[
        str, typer.Option("--engine", help="vllm or transformers. Default: vllm where it is installed.")
    ] = "auto",
    config: ConfigOption = None,
    overrides: SetOption = None,
    host: HostOption = None,
    port: PortOption = None,
) -> None:
    """Serve a policy: OpenAI's completions as vLLM has them, and the model `deeprec-policy`. Ends with Ctrl-C.

    A recommender explores with it when it is given its address (`--policy-url`). What vLLM is started with is in the
    section explore.engine (--set explore.engine.dtype=bfloat16).

    Examples:

        deeprec serve policy runs/quickstart --port 8001

        deeprec serve policy s3://models/shop --engine vllm --config cluster
    """
    from deeprec.serving.completions.model import MAX_BODY_BYTES, kind_of_engine, open_policy_server
    from deeprec.serving.http.server import free_port, limit_threads

    serving = read_serving(config, overrides, host=host, port=port)
    most = max(serving.max_body_bytes, MAX_BODY_BYTES)
    free = free_port(serving.host, serving.port)
    serving = serving.model_copy(update={"port": free, "max_body_bytes": most})
    kind = kind_of_engine(engine)
    limit_threads(serving)
    address = bundle if (Path(bundle) / MANIFEST).is_file() else find_bundle(bundle)
    server = open_policy_server(address, serving, read_config(config, overrides).explore.engine, kind)
    typer.echo(introduction(f"http://{serving.host}:{serving.port}", kind, server.prompt))
    server.run()


def introduction(at: str, kind: str, prompt: str) -> str:
    """What is served, and lines to try it with."""
    request = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "stop": [PREFERENCE_CLOSE]}
    lines = [
        f"policy on {kind}; a recommender explores with it by --policy-url {at}",
        "",
        "try:",
        f"  curl -s {at}/v1/models",
        curl(f"{at}/v1/completions", {"model": "deeprec-policy", **request}),
        curl_v1(at, "deeprec-policy", request),
        "",
    ]
    return "\n".join(lines)
