"""From a configuration to the feature place that it names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.config import FeaturesConfig
from deeprec.errors import ConfigError
from deeprec.features.directory import EVENTS, DirectoryPlace
from deeprec.features.log import position, read_table
from deeprec.features.place import FeaturePlace
from deeprec.store import config_digest

if TYPE_CHECKING:
    import polars as pl


def forgotten_in(features: FeaturesConfig, user_ids: Iterable[str]) -> set[str]:
    """Which of these users were forgotten in a place, so that no training may read them; none where there is no place.

    Raises:
        ConfigError, FeatureError, StoreError: the place cannot be read, so that nobody can tell.
    """
    with _existing(features) as place:
        return set() if place is None else place.log.forgotten(user_ids)


def forgotten_digest(features: FeaturesConfig) -> str:
    """What changes whenever somebody is forgotten; nothing where nobody is. Raises what ``forgotten_in`` does."""
    with _existing(features) as place:
        found = set() if place is None else place.log.forgotten_hashes()
    return config_digest({"forgotten": sorted(found)})[:16] if found else ""


def accepted_in(features: FeaturesConfig) -> pl.DataFrame | None:
    """The events that servers have accepted in a place, see ``log.read_table``; None where there is no place yet.

    Raises:
        ConfigError, FeatureError, StoreError: the place cannot be read.
    """
    with _existing(features) as place:
        return None if place is None else read_table(place.log)


def accepted_position(features: FeaturesConfig) -> str:
    """What changes with every event that is accepted; nothing where there is none. Raises what ``accepted_in`` does."""
    with _existing(features) as place:
        return "" if place is None else position(place.log)


@contextmanager
def _existing(features: FeaturesConfig) -> Iterator[FeaturePlace | None]:
    """The place, its tables looked at; None for a directory where there is none yet."""
    if features.place == "directory" and not (features.path and (Path(features.path) / EVENTS).is_file()):
        yield None
        return
    place = open_place(features)
    try:
        place.prepare()
        yield place
    finally:
        place.close()


def open_place(features: FeaturesConfig) -> FeaturePlace:
    """The place that a configuration names; nothing is read yet.

    Raises:
        ConfigError: it names none, or an address of it cannot be read.
    """
    if features.place == "cluster":
        from deeprec.features.cluster import ClusterPlace

        return ClusterPlace(features)
    if not features.path:
        raise ConfigError("features.path is empty; set it to the directory of the feature store")
    return DirectoryPlace(features.path)
