"""What a bundle's address names: a bundle's directory, a shelf (its ``live``), or ``SHELF@VERSION``."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path

from deeprec.bundle.bundle import ALL_PARTS, BUNDLE, KIND, Bundle, Part, Served, read_info
from deeprec.bundle.shelf import MARK, VERSION, Shelf
from deeprec.errors import ArtifactError, ConfigError, StoreError
from deeprec.store import fingerprint, read_artifact

Needs = Callable[[Served], Collection[Part]]
"""From what a bundle serves to the parts that are run."""


def everything(serve: Served) -> Collection[Part]:
    """All parts."""
    return ALL_PARTS


class Source(ABC):
    """Where a bundle comes from, looked at again and again by what follows it."""

    settles = False
    """Whether what is there may be half written, so that it is to be read when it has stayed as it is for a moment."""

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def state(self) -> str:
        """A value that changes when another bundle is there; empty when there is none. A small read.

        Raises:
            StoreError: the place cannot be reached.
        """

    @abstractmethod
    def open(self, needs: Needs = everything) -> Bundle:
        """The bundle that is there now, verified, with the parts that are needed.

        Raises:
            ArtifactError: there is none, or it is not as it was written.
            StoreError: the place cannot be reached.
        """


class FolderSource(Source):
    """A bundle's directory, or a link to one that may be turned."""

    settles = True

    def state(self) -> str:
        return fingerprint(self.address)

    def open(self, needs: Needs = everything) -> Bundle:
        place = Path(self.address).resolve()  # so that turning a link leaves what was opened whole
        read_artifact(place, KIND, verify=False)
        serve: Served = "policy" if read_info(place, self.address).get("serve") == "policy" else "trm"
        return Bundle.load(place, needs(serve))


class ShelfSource(Source):
    """A shelf's live version, or one that is named."""

    def __init__(self, shelf: Shelf, version: str | None, cache: str) -> None:
        super().__init__(shelf.address if version is None else f"{shelf.address}@{version}")
        self.shelf, self.version, self._cache = shelf, version, cache

    def state(self) -> str:
        return self.version or self.shelf.pointer("live") or ""

    def open(self, needs: Needs = everything) -> Bundle:
        return self.shelf.open(self.version or self.shelf.live(), needs, cache_directory(self._cache))


def find_source(address: str, cache: str = "") -> Source:
    """What an address names.

    Args:
        cache: directory where what comes from object storage is kept, ``serving.cache``.

    Raises:
        ArtifactError: there is neither a bundle nor a shelf, or the shelf has no such version.
        StoreError: the store cannot be reached.
    """
    place, _, version = address.rpartition("@")
    if place and VERSION.fullmatch(version) and not Path(address).exists():
        shelf = Shelf(place)
        shelf.check(version)
        return ShelfSource(shelf, version, cache)
    if "://" in address:
        return ShelfSource(Shelf(address), None, cache)
    folder = Path(address)
    if (folder / MARK).is_file():
        return ShelfSource(Shelf(address), None, cache)
    if (folder / BUNDLE).is_file():
        return FolderSource(address)
    if place and (Path(place) / MARK).is_file():
        Shelf(place).check(version)
    raise ArtifactError(f"{address} is neither a bundle nor a shelf; name the directory of one, or SHELF@VERSION")


def cache_directory(named: str) -> Path:
    """Where parts from object storage are kept: ``named``, else a directory of this user's own.

    Raises:
        StoreError: it is another user's.
    """
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.access(base, os.W_OK) or (not os.path.exists(base) and os.access(os.path.dirname(base), os.W_OK)):
        return Path(base) / "deeprec"
    place = Path(tempfile.gettempdir()) / f"deeprec-cache-{os.getuid()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise StoreError(f"{place} is another user's; name a directory with serving.cache")
    return place


def open_bundle(address: str | Path, needs: Needs = everything, cache: str = "") -> Bundle:
    """The bundle that an address names, verified, with the parts that are needed.

    Raises:
        ArtifactError, StoreError: see ``find_source`` and ``Source.open``.
    """
    return find_source(str(address), cache).open(needs)


def locate(place: str) -> str:
    """The address that ``place`` stands for: of a run its shelf where one is live, else its bundle; or itself.

    Raises:
        ConfigError: there is none.
    """
    if "://" in place or any((Path(place) / name).is_file() for name in ("bundle.json", "shelf.json")):
        return place
    for name, sign in (("shelf", "live.json"), ("bundle", "bundle.json")):
        if (Path(place) / name / sign).is_file():
            return str(Path(place) / name)
    if "@" in place:
        return place
    raise ConfigError(f"{place} is neither a bundle nor a shelf nor the directory of a run that has one")


def features_beside(bundle: str) -> Path | None:
    """The feature store that a run has beside its bundle; None where there is none."""
    if "://" in bundle:
        return None
    place = bundle if Path(bundle).exists() else bundle.rpartition("@")[0]
    found = Path(place).absolute().parent / "features"
    return found if found.is_dir() else None
