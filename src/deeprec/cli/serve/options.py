"""Options that the serve commands share, the configuration that they make together, and how each of them begins."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from deeprec.cli.profiles import CONFIG_HELP, read_config
from deeprec.config import ServingConfig
from deeprec.errors import ConfigError

if TYPE_CHECKING:
    from deeprec.features.place import FeaturePlace
    from deeprec.serving.http.service import Service

SETTINGS_HELP = "Override one key of the configuration, for example --set serving.threads=2; can be given often."

ConfigOption = Annotated[str | None, typer.Option("--config", help=CONFIG_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help=SETTINGS_HELP)]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")]
PortOption = Annotated[
    int | None, typer.Option("--port", help="HTTP port; 0 takes a free one. Default: 8080.", min=0, max=65535)
]
PodOption = Annotated[
    bool, typer.Option("--print-pod", help="Print the ports, probes and grace of a pod that runs this, and end.")
]


def read_serving(config: str | None, overrides: list[str] | None, **options: Any) -> ServingConfig:
    """The section ``serving`` of ``--config`` and ``--set``, with the ``options`` that were given (not None) over it.

    A key of a section within is named with a dot, as ``log.path``.

    Raises:
        ConfigError: see ``profiles.read_config``; or an option is out of range.
    """
    raw = read_config(config, overrides).serving.model_dump()
    for name, value in options.items():
        *parents, last = name.split(".")
        node = raw
        for parent in parents:
            node = node[parent]
        if value is not None:
            node[last] = value
    try:
        return ServingConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})") from error


def read_place(
    config: str | None, overrides: list[str] | None, named: Path | None, beside: str | None = None
) -> FeaturePlace | None:
    """The feature place of a server: ``named``, else that of the section ``features``, else the one beside a bundle.

    Raises:
        ConfigError: see ``profiles.read_config``; or an address of the place cannot be read.
    """
    from deeprec.cli.places import find_features

    features = find_features(read_config(config, overrides), named, beside)
    if features is None:
        return None
    from deeprec.features.places import open_place

    return open_place(features)


def end_with_pod(serving: ServingConfig, wanted: bool) -> None:
    """Where it is wanted, print what a pod that runs this server has to say, and end the command."""
    if wanted:
        from deeprec.cli.serve.pod import pod

        typer.echo(pod(serving), nl=False)
        raise typer.Exit


def listen(serving: ServingConfig, *, works: bool = False) -> list[socket.socket]:
    """The sockets of a server's ports, bound before anything is loaded, and the line that says where they are.

    ``works``: it will have worker processes; from now on, beside this one, is imported what they load with.

    Raises:
        ConfigError: an address cannot be listened on.
    """
    from deeprec.serving.http.address import bind, url

    bound = [bind(serving.host, port) for port in (serving.port, serving.admin_port) if port is not None]
    if serving.log_format == "text":
        first, *admin = (url(serving.host, one.getsockname()[1]) for one in bound)
        typer.echo(f"loading; {first} answers when it is ready" + "".join(f", its doors on {one}" for one in admin))
    if works:
        from deeprec.recommender.worker import fork_server

        fork_server.hold(fork_server.TRANSFORMERS)
    return bound


def serve_on(bound: Sequence[socket.socket], service: Service) -> None:
    """Serve until told to stop; see ``server.run``."""
    from deeprec.serving.http.server import run

    run(service, bound)
