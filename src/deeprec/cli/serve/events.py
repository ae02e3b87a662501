"""``deeprec serve events``: a server that puts interactions into the feature store's histories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    read_serving,
    serve_on,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("events")(serve)


def serve(
    features: Annotated[
        Path, typer.Option("--features", help="Directory of the feature store, such as runs/quickstart/features.")
    ],
    host: HostOption = None,
    port: PortOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_pod: PodOption = False,
) -> None:
    """Accept events: `POST /v1/events` and the model `deeprec-events`. The next recommendation reflects them.

    Every accepted event is kept in `events/` of the feature store's directory, and outlives its next publication. The
    same event id is accepted once. Ends with Ctrl-C or SIGTERM, when every accepted request has been answered.

    Examples:

        deeprec serve events --features runs/quickstart/features

        deeprec serve events --features /data/features --host 0.0.0.0 --port 9001
    """
    serving = read_serving(config, overrides, host=host, port=port)
    end_with_pod(serving, print_pod)
    bound = listen(serving)

    from deeprec.serving.events.model import events_service

    def introduce(at: str) -> str:
        return introduction(features, serving.name or "deeprec-events", at)

    serve_on(bound, events_service(features, serving, introduce))


def introduction(features: Path, name: str, at: str) -> str:
    """What is served at an address, and lines to try it with."""
    user, item = _example(features)
    events = [{"event_id": f"try-{number}", "user_id": user, "item_id": item} for number in (1, 2, 3)]
    lines = [
        f"events into {features}",
        "",
        "try (each id is accepted once):",
        curl(f"{at}/v1/events", {"events": events[:1]}),
        curl_v1(at, name, events[1]),
        curl_v2(at, name, events[2]),
        "",
    ]
    return "\n".join(lines)


def _example(features: Path) -> tuple[str, str]:
    """A user of the store and an item of its history."""
    from deeprec.features.online import HistoryStore
    from deeprec.features.users import UserDirectory

    user = next(iter(UserDirectory(features).find("", 1)), None)
    if user is None:
        return "a-user", "an-item"
    return user.user_id, (HistoryStore(features).history(user.user_id) or ("an-item",))[-1]
