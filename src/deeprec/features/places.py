"""From a configuration to the feature place that it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deeprec.config import FeaturesConfig
from deeprec.errors import ConfigError
from deeprec.features.directory import EVENTS, DirectoryPlace
from deeprec.features.place import FeaturePlace


def forgotten_in(features: FeaturesConfig, user_ids: Iterable[str]) -> set[str]:
    """Which of these users were forgotten in a place, so that no training may read them; none where there is no place.

    Raises:
        ConfigError, FeatureError, StoreError: the place cannot be read, so that nobody can tell.
    """
    if features.place == "directory" and not (features.path and (Path(features.path) / EVENTS).is_file()):
        return set()
    place = open_place(features)
    try:
        place.prepare()
        return place.log.forgotten(user_ids)
    finally:
        place.close()


def forgotten_digest(features: FeaturesConfig) -> str:
    """What changes whenever somebody is forgotten; nothing where nobody is."""
    from deeprec.store import config_digest

    if features.place == "directory" and not (features.path and (Path(features.path) / EVENTS).is_file()):
        return ""
    place = open_place(features)
    try:
        place.prepare()
        found = place.log.forgotten_hashes()
    finally:
        place.close()
    return config_digest({"forgotten": sorted(found)})[:16] if found else ""


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
