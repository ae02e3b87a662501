"""The bundle whose TRM a training begins with: named by its version once, opened by every task that trains a TRM."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from deeprec.bundle.bundle import BUNDLE, Bundle, Part, Served, needs_of, read_json
from deeprec.bundle.opening import locate, open_bundle
from deeprec.bundle.shelf import VERSION
from deeprec.config import TrmConfig
from deeprec.errors import ArtifactError, TrmError


def pinned(trm: TrmConfig) -> TrmConfig:
    """The section with ``continue_from`` as ``ADDRESS@VERSION``, absolute: one bundle, whatever moves meanwhile.

    Raises:
        ArtifactError, ConfigError, StoreError: there is no such bundle, or it cannot be read.
        TrmError: no training with these settings can begin with its TRM.
    """
    if not trm.continue_from:
        return trm
    from deeprec.trm.artifact import keeps_measured
    from deeprec.trm.former import check_shapes

    named = locate(trm.continue_from)
    bundle = _open(named)
    place = bundle.part("trm")
    check_shapes(trm, TrmConfig.model_validate(read_json(place / "config.json")["trm"]))
    if not keeps_measured(place):
        raise TrmError(
            f"the TRM of bundle {bundle.version} was trained anew on everything and keeps no weights from before, so "
            f"that nothing could measure what continues from it; leave trm.continue_from empty once"
        )
    address, _ = _split(named)
    whole = address if "://" in address else os.path.abspath(address)
    return trm.model_copy(update={"continue_from": f"{whole}@{bundle.version}"})


def former_trm(trm: TrmConfig) -> Path | None:
    """Where the TRM is that a training begins with; None where it begins afresh.

    Raises:
        ArtifactError, ConfigError, StoreError: there is no such bundle, it is another version than the one that is
            named, or it cannot be read.
    """
    return _open(locate(trm.continue_from)).part("trm") if trm.continue_from else None


def _open(address: str) -> Bundle:
    """The bundle of an address, with its TRM alone; of a bundle's directory too a version may be named."""
    place, version = _split(address)
    if not version or not (Path(place) / BUNDLE).is_file():
        return open_bundle(address, _trm_alone)
    bundle = open_bundle(place, _trm_alone)
    if bundle.version != version:
        raise ArtifactError(
            f"{place} holds version {bundle.version}, and not {version}, which trm.continue_from names; name a bundle "
            f"that stays, such as a version on a shelf, or start the run again"
        )
    return bundle


def _trm_alone(serve: Served) -> Collection[Part]:
    return needs_of("trm") - {"encoder"}


def _split(address: str) -> tuple[str, str]:
    """Address and version, "" where none is named."""
    place, _, version = address.rpartition("@")
    return (place, version) if place and VERSION.fullmatch(version) and not Path(address).exists() else (address, "")
