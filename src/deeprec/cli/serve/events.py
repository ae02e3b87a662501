"""``deeprec serve events``: a server that puts interactions into the feature store's histories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from deeprec.errors import ConfigError

if TYPE_CHECKING:
    from deeprec.features.place import FeaturePlace


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("events")(serve)


def serve(
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Directory of the feature place. Default: the section `features` of --config."),
    ] = None,
    host: HostOption = None,
    port: PortOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_pod: PodOption = False,
) -> None:
    """Accept events: `POST /v1/events` and the model `deeprec-events`. The next recommendation reflects them.

    Every accepted event is kept in the place's log and is in every publication of it, the later ones too. The same
    event id is accepted once. Ends with Ctrl-C or SIGTERM, when every accepted request has been answered.

    Examples:

        deeprec serve events --features runs/quickstart/features

        deeprec serve events --config cluster.yaml --host 0.0.0.0 --port 9001
    """
    serving = read_serving(config, overrides, host=host, port=port)
    end_with_pod(serving, print_pod)
    place = read_place(config, overrides, features)
    if place is None:
        raise ConfigError("no feature place is named; give a directory with --features, or set features.place=cluster")
    bound = listen(serving)

    from deeprec.serving.events.model import events_service

    def introduce(at: str) -> str:
        return introduction(place, serving.name or "deeprec-events", at)

    serve_on(bound, events_service(place, serving, introduce))


def introduction(place: FeaturePlace, name: str, at: str) -> str:
    """What is served at an address, and lines to try it with."""
    user, item = _example(place)
    events = [{"event_id": f"try-{number}", "user_id": user, "item_id": item} for number in (1, 2, 3)]
    lines = [
        f"events into {place.name}",
        "",
        "try (each id is accepted once):",
        curl(f"{at}/v1/events", {"events": events[:1]}),
        curl_v1(at, name, events[1]),
        curl_v2(at, name, events[2]),
        "",
    ]
    return "\n".join(lines)


def _example(place: FeaturePlace) -> tuple[str, str]:
    """A user of the place and an item of its history."""
    published = place.newest()
    user = next(iter(published.find("", 1)), None)
    if user is None:
        return "a-user", "an-item"
    return user.user_id, (published.history(user.user_id) or ("an-item",))[-1]
