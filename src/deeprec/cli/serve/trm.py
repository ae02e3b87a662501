"""``deeprec serve trm``: the TRM of a bundle alone, for recommenders elsewhere and whoever asks it directly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.places import find_bundle
from deeprec.cli.serve.examples import curl_v1, curl_v2
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
from deeprec.cli.serve.recommender import BUNDLE_HELP, FEATURES_HELP

if TYPE_CHECKING:
    from deeprec.bundle.bundle import Bundle


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trm")(serve)


def serve(
    bundle: Annotated[str, typer.Argument(help=BUNDLE_HELP)],
    features: Annotated[Path | None, typer.Option("--features", help=FEATURES_HELP)] = None,
    host: HostOption = None,
    port: PortOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_pod: PodOption = False,
) -> None:
    """Serve the TRM of a bundle: the model `deeprec-trm` over KServe's V1 and V2 protocols. No policy is loaded.

    Of a shelf the live version serves; when `live` moves, the server follows without a failed request; SIGHUP looks at
    once. Ends with Ctrl-C or SIGTERM, when every accepted request has been answered.

    Examples:

        deeprec serve trm runs/quickstart

        deeprec serve trm s3://models/shop --features /data/features --host 0.0.0.0 --set serving.batch=128
    """
    serving = read_serving(config, overrides, host=host, port=port, policy_url="", shadow=False)
    end_with_pod(serving, print_pod)
    address = find_bundle(bundle)
    place = read_place(config, overrides, features, address)
    bound = listen(serving, works=True)

    from deeprec.serving.http.bundle_server import trm_service

    def introduce(loaded: Bundle, at: str) -> str:
        return introduction(loaded, None if place is None else place.name, serving.name or "deeprec-trm", at)

    serve_on(bound, trm_service(address, serving, place, introduce=introduce))


def introduction(bundle: Bundle, features: str | None, name: str, at: str) -> str:
    """What is served at an address, and lines to try it with."""
    history = bundle.popular(3)
    phrase = next(iter(bundle.catalogue.phrases), "anything")
    lines = [
        f"the TRM of bundle {bundle.version}",
        f"histories from {features}" if features is not None else "no feature store; give histories in requests",
        "",
        "try:",
        curl_v1(at, name, {"history": history, "preference": phrase, "k": 5}),
        curl_v2(at, name, {"history": history, "k": 5}),
        "",
    ]
    return "\n".join(lines)
