"""The files of a published version that say what it is: ``feature_store.yaml`` for Feast, ``publication.json`` for us.

Each version is a Feast project of its own, so that versions share a Redis server without sharing a key. In Redis a
write is not compared with the time of the row before it: rows are written whole, under the log's lock, and an event
may be older than what the row has.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from deeprec.config import FeaturesConfig
from deeprec.errors import FeatureError

SETTINGS = "feature_store.yaml"
PUBLICATION = "publication.json"
REGISTRY = "registry.db"
ONLINE = Path("online") / "online.db"
_CONNECTION = {"socket_connect_timeout": 2, "socket_timeout": 2, "retry": "null"}
"""Parameters that a Redis address has unless it names them. A command that fails is not sent again: whoever waits for
it has a deadline, and a connection that the server closed is made again before a command is sent on it."""


@dataclass(frozen=True)
class Publication:
    """What a writer of events must know: how long a history may be, and ``seconds`` or ``order``."""

    history_length: int
    time_unit: str


def write_settings(version: Path, name: str, features: FeaturesConfig, publication: Publication) -> None:
    """Write both files into the directory of the version ``name``."""
    template = importlib.resources.files("deeprec.feature_repo").joinpath(SETTINGS).read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(template)
    settings["project"] = f"{settings['project']}_{name.replace('-', '_')}"
    if features.online == "redis":
        settings["online_store"] = {
            "type": "redis",
            "connection_string": _connection(features.redis),
            "skip_dedup": True,
        }
    (version / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (version / PUBLICATION).write_text(json.dumps(asdict(publication), indent=2) + "\n", encoding="utf-8")


def read_publication(version: Path) -> Publication:
    """
    Raises:
        FeatureError: the file is missing or not as it was written.
    """
    try:
        return Publication(**json.loads((version / PUBLICATION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FeatureError(
            f"{version} has no readable {PUBLICATION}, so it takes no events; publish the features again"
        ) from error


def online_kind(version: Path) -> str:
    """``sqlite`` or ``redis``.

    Raises:
        FeatureError: the settings cannot be read.
    """
    try:
        settings = yaml.safe_load((version / SETTINGS).read_text(encoding="utf-8"))
        return str(settings["online_store"]["type"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{version / SETTINGS} cannot be read ({type(error).__name__}); publish the features again"
        ) from error


def _connection(address: str) -> str:
    named = {part.partition("=")[0] for part in address.split(",")}
    return ",".join([address, *(f"{key}={value}" for key, value in _CONNECTION.items() if key not in named)])
