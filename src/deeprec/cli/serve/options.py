"""Options that the serve commands share, and the configuration that they make together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from deeprec.cli.profiles import CONFIG_HELP, read_config
from deeprec.config import ServingConfig
from deeprec.errors import ConfigError

if TYPE_CHECKING:
    from deeprec.features.online import HistoryStore

SETTINGS_HELP = "Override one key of the section serving, for example --set serving.threads=2; can be given often."

ConfigOption = Annotated[str | None, typer.Option("--config", help=CONFIG_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help=SETTINGS_HELP)]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")]
PortOption = Annotated[
    int | None, typer.Option("--port", help="HTTP port; 0 takes a free one. Default: 8080.", min=0, max=65535)
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


def open_histories(features: Path | None) -> HistoryStore | None:
    """The histories in a feature store's directory, read from once so that no user waits; None without a directory.

    Raises:
        FeatureError: there is no store, or it cannot be read.
    """
    if features is None:
        return None
    from deeprec.features.online import HistoryStore

    histories = HistoryStore(features)
    histories.history("nobody")
    return histories
