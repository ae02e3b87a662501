"""What a run does with its bundle: to the shelf, live where that is asked for and it is no worse, and what is swept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from deeprec.bundle.bundle import Bundle, read_json
from deeprec.bundle.shelf import Shelf
from deeprec.config import BundleConfig
from deeprec.errors import FeatureError, StoreError

logger = logging.getLogger(__name__)


def deliver(
    bundle: Path, settings: BundleConfig, dataset: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> str:
    """Push a bundle's directory to the shelf that the settings name, if any, and promote it if they say so.

    Args:
        dataset: what it was made from; with it, a bundle that answers worse than the live one is not promoted.
        say: told how it stands to the live one.

    Returns:
        Its version.

    Raises:
        ArtifactError, StoreError: see ``Shelf.push``; ``live`` was moved by another meanwhile.
    """
    if not settings.uri:
        return Bundle.load(bundle, ()).version
    opened, shelf = Bundle.load(bundle), Shelf.make(settings.uri)
    shelf.push(opened)
    if settings.promote and _is_no_worse(bundle, settings, dataset, say):
        shelf.promote(opened.version)
    return opened.version


def sweep_features(published: Path, settings: BundleConfig) -> list[str]:
    """Remove publications of features that older bundles of the shelf were made with and none in use names.

    Publications that no bundle of this shelf names stay: others may use the same place.

    Args:
        published: the run's artifact ``features``, which says where they are.

    Returns:
        The names of those that were removed. What cannot be removed is logged and left to the next run.
    """
    from deeprec.config import FeaturesConfig
    from deeprec.features.places import open_place
    from deeprec.features.publish import RECORD

    if not settings.uri:
        return []
    used, named = Shelf(settings.uri).publications()
    place = open_place(FeaturesConfig.model_validate(read_json(published / RECORD)["features"]))
    try:
        others = {one.name for one in place.publications()} - named
        return place.sweep({*used, *others})
    except (FeatureError, StoreError) as error:
        logger.warning("publications that nobody uses are left: %s", error)
        return []
    finally:
        place.close()


def _is_no_worse(bundle: Path, settings: BundleConfig, dataset: Path | None, say: Callable[[str], None]) -> bool:
    from deeprec.bundle.compared import against_live

    if dataset is None:
        return True
    found = against_live(bundle, settings.uri, dataset, progress=say, **settings.compare.model_dump())
    if found is None:
        return True
    say(found.reason if found.releases else f"not promoted: {found.reason}; {found.live} goes on serving")
    return found.releases
