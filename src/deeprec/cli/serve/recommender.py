"""``deeprec serve recommender``: a bundle's recommender and all that belongs to it, on one local port."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.places import find_bundle
from deeprec.cli.serve.examples import curl, curl_v1, curl_v2
from deeprec.cli.serve.options import (
    ConfigOption,
    HostOption,
    PodOption,
    PortOption,
    SetOption,
    end_with_pod,
    listen,
    read_place,
    read_serving,
    serve_on,
)

if TYPE_CHECKING:
    from deeprec.bundle.bundle import Bundle
    from deeprec.config import ServingConfig

BUNDLE_HELP = "A bundle's directory, a run's, a shelf (its live version) or SHELF@VERSION."
FEATURES_HELP = (
    "Directory of the feature place. Default: the section `features` of --config, else `features` beside the bundle."
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("recommender")(serve)


def serve(
    bundle: Annotated[str, typer.Argument(help=BUNDLE_HELP)],
    features: Annotated[Path | None, typer.Option("--features", help=FEATURES_HELP)] = None,
    policy_url: Annotated[
        str | None,
        typer.Option("--policy-url", help="Address of a policy server. Default: the policy runs beside this process."),
    ] = None,
    policy: Annotated[
        bool, typer.Option("--policy", help="Run the policy even where the bundle says that its TRM alone does better.")
    ] = False,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Answer with the TRM; run the policy beside it, and only log its answers.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option("--log", help="Directory to keep the answers in, as Parquet. Default: none are kept.")
    ] = None,
    deadline_ms: Annotated[
        int | None,
        typer.Option("--deadline-ms", help="After this many milliseconds the TRM answers. Default: 1000.", min=1),
    ] = None,
    host: HostOption = None,
    port: PortOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_pod: PodOption = False,
) -> None:
    """Serve a bundle: the models `deeprec` and `deeprec-trm` over KServe's V1 and V2 protocols, and the page at `/`.

    With a feature store it also accepts events: the model `deeprec-events` and `POST /v1/events`. Of a shelf the live
    version serves; when `live` moves, the server follows without a failed request; SIGHUP looks at once. Ends with
    Ctrl-C or SIGTERM, when every accepted request has been answered. Health: /v2/health/ready; figures: /metrics; all
    paths: /openapi.json.

    Examples:

        deeprec serve recommender runs/quickstart

        deeprec serve recommender s3://models/shop --features /data/features --port 9000 --set serving.threads=2

        deeprec serve recommender runs/shop --policy-url http://policy:8080

        deeprec serve recommender runs/shop --shadow --log /var/log/deeprec

        deeprec serve recommender runs/shop --set serving.admin_port=9090 --set serving.doors.users=false
    """
    serving = read_serving(
        config,
        overrides,
        host=host,
        port=port,
        deadline_ms=deadline_ms,
        policy_url=policy_url,
        shadow=shadow or None,
        **{"log.path": None if log is None else str(log)},
    )
    end_with_pod(serving, print_pod)
    address = find_bundle(bundle)
    place = read_place(config, overrides, features, address)
    bound = listen(serving, works=True)

    from deeprec.serving.http.bundle_server import recommender_service

    def introduce(loaded: Bundle, at: str) -> str:
        return introduction(loaded, None if place is None else place.name, serving, at)

    serve_on(bound, recommender_service(address, serving, place, force_policy=policy, introduce=introduce))


def introduction(bundle: Bundle, features: str | None, serving: ServingConfig, at: str) -> str:
    """What is served at an address, and lines to try it with."""
    histories = (
        f"histories from {features}"
        if features is not None
        else "no feature store (name one with --features), so every user is unknown; give histories in requests"
    )
    name, apart = serving.name or "deeprec", serving.admin_port is not None
    user = bundle.info.get("example_user") if features is not None else None
    history = bundle.popular(3)
    phrase = next(iter(bundle.catalogue.phrases), "anything")
    lines = [f"bundle {bundle.version}: {bundle.why}", histories]
    if serving.doors.page and not apart:
        lines.append(f"page {at}/")
    lines += ["", "try:"]
    if user is not None:
        lines.append(curl_v1(at, name, {"user_id": user, "k": 5, "explain": True}))
    lines += [
        curl_v1(at, name, {"history": history, "k": 5}),
        curl_v1(at, name, {"user_id": "a-new-user", "k": 5}),
        curl_v1(at, f"{name}-trm", {"history": history, "preference": phrase, "k": 5}),
        curl_v2(at, name, {"history": history, "k": 5}),
    ]
    if features is not None and serving.doors.events and not apart:
        event = {"event_id": "try-1", "user_id": "a-new-user", "item_id": history[0]}
        lines.append(curl(f"{at}/v1/events", {"events": [event]}))
    return "\n".join([*lines, ""])
