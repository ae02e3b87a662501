"""A bundle against the one that is live on a shelf, before it may take its place; see ``evaluation.against``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from deeprec.bundle.bundle import needs_of
from deeprec.bundle.opening import open_bundle
from deeprec.bundle.shelf import Shelf
from deeprec.evaluation.against import Against, compare


def against_live(bundle: str | Path, shelf: str, dataset: Path, *, cache: str = "", **rule: Any) -> Against | None:
    """How the bundle stands to the shelf's ``live``; None where nothing is live yet, or that very version is.

    Args:
        bundle: an address of the new one.
        shelf: address of the shelf.
        dataset: what the new bundle was made from.
        cache: directory for what comes from object storage.
        rule: see ``evaluation.against.compare``.

    Raises:
        ArtifactError, DataError, PolicyError, StoreError, TrmError: something cannot be read.
    """
    live = Shelf(shelf).pointer("live")
    opened = partial(open_bundle, needs=needs_of, cache=cache)
    new = opened(bundle)
    if live in (None, new.version):
        return None
    return compare(new, opened(f"{shelf}@{live}"), dataset, **rule)
