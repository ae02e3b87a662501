"""``deeprec serve trm``: the TRM of a bundle alone, for recommenders elsewhere and whoever asks it directly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.places import find_bundle
from deeprec.cli.serve.examples import curl_v1, curl_v2
from deeprec.cli.serve.options import ConfigOption, HostOption, PortOption, SetOption, open_histories, read_serving
from deeprec.cli.serve.recommender import BUNDLE_HELP, FEATURES_HELP

if TYPE_CHECKING:
    from deeprec.bundle.bundle import Bundle
    from deeprec.config import ServingConfig


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
) -> None:
    """Serve the TRM of a bundle: the model `deeprec-trm` over KServe's V1 and V2 protocols. No policy is loaded.

    Of a shelf the live version serves; when `live` moves, the server follows without a failed request; SIGHUP looks at
    once. Ends with Ctrl-C or SIGTERM, when every accepted request has been answered.

    Examples:

        deeprec serve trm runs/quickstart

        deeprec serve trm s3://models/shop --features /data/features --host 0.0.0.0 --set serving.batch=128
    """
    from deeprec.bundle.opening import features_beside
    from deeprec.features.users import UserDirectory
    from deeprec.serving.http.bundle_server import BundleServer
    from deeprec.serving.http.recommender_model import TrmModel
    from deeprec.serving.http.server import free_port, limit_threads

    serving = read_serving(config, overrides, host=host, port=port, policy_url="", shadow=False)
    serving = serving.model_copy(update={"port": free_port(serving.host, serving.port)})
    limit_threads(serving)
    address = find_bundle(bundle)
    store = features if features is not None else features_beside(address)
    histories = open_histories(store)
    newest = None if store is None else UserDirectory(store).newest
    server = BundleServer(address, serving, histories=histories, newest=newest, trm_only=True)
    typer.echo(introduction(server.releases.bundle, store, serving))
    server.run([TrmModel(server.served, serving)])


def introduction(bundle: Bundle, features: Path | None, serving: ServingConfig) -> str:
    """What is served, and lines to try it with."""
    at = f"http://{serving.host}:{serving.port}"
    history = bundle.popular(3)
    phrase = next(iter(bundle.catalogue.phrases), "anything")
    lines = [
        f"the TRM of bundle {bundle.version}",
        f"histories from {features}" if features is not None else "no feature store; give histories in requests",
        "",
        "try:",
        curl_v1(at, "deeprec-trm", {"history": history, "preference": phrase, "k": 5}),
        curl_v2(at, "deeprec-trm", {"history": history, "k": 5}),
        "",
    ]
    return "\n".join(lines)
