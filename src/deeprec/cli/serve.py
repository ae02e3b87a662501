"""``deeprec serve``: the model servers of a bundle on one local port, both KServe protocols."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.places import features_beside
from deeprec.config import ServingConfig

if TYPE_CHECKING:
    from deeprec.serving.bundle import Bundle

_DEFAULTS = ServingConfig()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    bundle: Annotated[str, typer.Argument(help="Directory of a bundle, or s3://bucket/prefix.")],
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Directory of the feature store. Default: `features` beside the bundle."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = _DEFAULTS.host,
    port: Annotated[int, typer.Option("--port", help="HTTP port; 0 takes a free one.", min=0, max=65535)] = (
        _DEFAULTS.port
    ),
    deadline_ms: Annotated[
        int, typer.Option("--deadline-ms", help="After this many milliseconds the TRM answers.", min=1, max=30000)
    ] = _DEFAULTS.deadline_ms,
    policy: Annotated[
        bool, typer.Option("--policy", help="Run the policy even where the bundle says that its TRM alone does better.")
    ] = False,
) -> None:
    """Serve a bundle: the models `deeprec` and `deeprec-trm`, KServe's V1 and V2 protocols. Ends with Ctrl-C.

    Examples:

        deeprec serve runs/quickstart/bundle

        deeprec serve s3://models/deeprec --features /data/features --port 9000
    """
    import asyncio

    from deeprec.features.online import HistoryStore
    from deeprec.serving.bundle import Bundle
    from deeprec.serving.loading import load_recommender, warm_up
    from deeprec.serving.server import free_port, run

    port = free_port(host, port)
    loaded = Bundle.load(bundle)
    store = features if features is not None else features_beside(bundle)
    histories = HistoryStore(store) if store is not None else None
    if histories is not None:
        histories.open()
    limits = _DEFAULTS.model_copy(update={"deadline_ms": deadline_ms})
    recommender = load_recommender(loaded, histories, limits, force_policy=policy)
    asyncio.run(warm_up(recommender))
    typer.echo(introduction(loaded, store, host, port))
    run(recommender, host, port)


def introduction(bundle: Bundle, features: Path | None, host: str, port: int) -> str:
    """What is served, and lines to try it with."""
    histories = (
        f"histories from {features}"
        if features is not None
        else "no feature store (name one with --features), so every user is unknown; give histories in requests"
    )
    user = bundle.info.get("example_user") if features is not None else None
    popular = bundle.counts.argsort(kind="stable")[::-1][:3]
    history = [bundle.catalogue.items[row].item_id for row in popular]
    phrase = next(iter(bundle.catalogue.phrases), "anything")
    lines = [f"bundle {bundle.version}: {bundle.why}", histories, "", "try:"]
    if user is not None:
        lines.append(_curl(host, port, "deeprec", {"user_id": user, "k": 5, "explain": True}))
    lines += [
        _curl(host, port, "deeprec", {"history": history, "k": 5}),
        _curl(host, port, "deeprec", {"user_id": "a-new-user", "k": 5}),
        _curl(host, port, "deeprec-trm", {"history": history, "preference": phrase, "k": 5}),
        _curl_v2(host, port, {"history": history, "k": 5}),
        "",
    ]
    return "\n".join(lines)


def _curl(host: str, port: int, model: str, request: dict[str, object]) -> str:
    body = json.dumps({"instances": [request]}, ensure_ascii=False)
    return _line(f"http://{host}:{port}/v1/models/{model}:predict", body)


def _curl_v2(host: str, port: int, request: dict[str, object]) -> str:
    tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(request)]}
    return _line(f"http://{host}:{port}/v2/models/deeprec/infer", json.dumps({"inputs": [tensor]}))


def _line(url: str, body: str) -> str:
    quoted = body.replace("'", "'\\''")
    return f"  curl -s {url} -H 'Content-Type: application/json' -d '{quoted}'"
