"""Publishing a dataset's features: offline files, Feast's registry, the online store, and a read-back of all of it.

A publication is built whole in a hidden directory beside the others, read back and compared with the dataset and the
log of events, and only then becomes current; one that fails or is killed leaves the previous one in use. Layout of the
directory::

    current -> versions/NAME            turned in one step
    versions/NAME/feature_store.yaml    paths relative to itself; ``feast -c PATH/current`` works on it
    versions/NAME/publication.json      what who writes events must know
    versions/NAME/offline/*.parquet     what was materialised
    versions/NAME/online/online.db      SQLite, unless the online store is Redis
    versions/NAME/registry.db
    events/                             the log of accepted events, which no publication touches

Online histories are complete, test targets included: they are what a server must know, and training and evaluation
never read them. Accepted events that the dataset does not contain are in them too, those accepted meanwhile included.
In Redis every version is a project of its own; its rows are removed after the next one became current. One
publication at a time; a second one is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import FeatureError, StoreError
from deeprec.features.events import catch_up
from deeprec.features.feast_import import feature_store
from deeprec.features.log import EventLog
from deeprec.features.online import CURRENT, HistoryStore
from deeprec.features.settings import REGISTRY, Publication, online_kind, write_settings
from deeprec.features.version import Version
from deeprec.store import read_artifact, write_artifact

if TYPE_CHECKING:
    import polars as pl

    from deeprec.features.history import UserHistory

__all__ = ["HistoryStore", "publish"]

KIND = "features"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOCK_SECONDS = 60.0
_VERSIONS = "versions"

logger = logging.getLogger(__name__)


def publish(dataset: Path, features: FeaturesConfig, out: Path) -> dict[str, int]:
    """Publish a dataset's histories and catalogue to ``features.path``, and record it as the artifact ``out``.

    Returns users, items, rows (interactions in the published histories), events (those that were accepted and are not
    in the dataset, before any limit), read_back (users and items that were read from the online store and found equal:
    all of them) and truncated (users whose history is longer than ``features.history_length``, of which only the
    newest items were published; 0 where histories are complete).

    Raises:
        FeatureError: ``features.path`` is empty or in use by another publication, Feast refuses, or what is read back
            differs from the dataset.
        ArtifactError, DataError: the dataset cannot be read.
        StoreError: the place cannot be written.
    """
    if not features.path:
        raise FeatureError("features.path is empty; set it to the directory of the feature store")
    data = read_dataset(dataset)
    ingested = datetime.fromisoformat(read_artifact(dataset, verify=False).created)
    place = Path(features.path).absolute()
    try:
        with _sole_publisher(place), contextlib.closing(EventLog(place)) as log:
            counts = _publish(data, ingested, features, place, log)
    except OSError as error:
        raise StoreError(
            f"cannot write the feature store {place}: {error}; name another place or free space"
        ) from error
    with write_artifact(out, KIND, config=features.model_dump(mode="json"), parents=[dataset]) as work:
        record = json.dumps({"path": str(place), **counts}, indent=2)
        (work / "record.json").write_text(record + "\n", encoding="utf-8")
    return counts


def _publish(data: Dataset, ingested: datetime, features: FeaturesConfig, place: Path, log: EventLog) -> dict[str, int]:
    from deeprec.features.frames import history_frame, item_frame, live_histories

    versions = place / _VERSIONS
    versions.mkdir(exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    building = place / f".building-{name}"
    published, position = datetime.now(UTC), log.end
    live = live_histories(data, log.by_user(position), features.history_length)
    histories = history_frame(data, live, ingested, published, features.history_length)
    try:
        _build(building, name, features, data.time_unit, histories, item_frame(data, ingested, published))
        os.replace(building, versions / name)
        read_back = _compare(data, histories, place, name)
        with log.locked(LOCK_SECONDS):
            version = Version(versions / name)
            version.push({}, position)
            catch_up(version, log)
            _turn(place, f"{_VERSIONS}/{name}")
    except BaseException:
        _discard(building)
        if not _is_current(place, name):
            _discard(versions / name)
        raise
    _remove_abandoned(place, keep=name)
    return {
        "users": histories.height,
        "items": len(data.catalogue),
        "rows": int(histories["item_ids"].list.len().sum()),
        "events": _new_interactions(data, live),
        "read_back": read_back,
        "truncated": histories.filter(histories["interactions"] > histories["item_ids"].list.len()).height,
    }


def _new_interactions(data: Dataset, live: Mapping[str, UserHistory]) -> int:
    return sum(history.interactions - len(data.sequences.get(user, ())) for user, history in live.items())


def _build(
    version: Path, name: str, features: FeaturesConfig, time_unit: str, histories: pl.DataFrame, items: pl.DataFrame
) -> None:
    """Write and materialise one version."""
    for part in (version, version / "offline"):
        part.mkdir()
    write_settings(version, name, features, Publication(features.history_length, time_unit))
    with _quiet():
        store_class = feature_store()

        from deeprec.feature_repo import definitions  # type: ignore[import-not-found]

        try:
            histories.write_parquet(version / definitions.USER_HISTORY_FILE)
            items.write_parquet(version / definitions.ITEM_ATTRIBUTES_FILE)
            store = store_class(repo_path=str(version))
            store.apply(list(definitions.OBJECTS))
            store.materialize(start_date=EPOCH, end_date=datetime.now(UTC))
        except OSError:
            raise
        except Exception as error:
            raise FeatureError(
                f"the features cannot be published to {version.parent}: {error}; correct the dataset, free space or "
                f"name another features.path, and publish again"
            ) from error


def _compare(data: Dataset, histories: pl.DataFrame, place: Path, name: str) -> int:
    """Read every user and item of a version that is not current yet; their number.

    Raises:
        FeatureError: one of them differs from what was to be published.
    """
    store = HistoryStore(place, version=f"{_VERSIONS}/{name}")
    users = histories["user_id"].to_list()
    for user, items, found in zip(users, histories["item_ids"].to_list(), store.histories(users), strict=True):
        if found != tuple(items):
            raise FeatureError(_difference("user", user))
    catalogue = data.catalogue.items
    for item, attributes in zip(catalogue, store.items([item.item_id for item in catalogue]), strict=True):
        if attributes != {"title": item.title, "phrases": item.phrases}:
            raise FeatureError(_difference("item", item.item_id))
    return len(users) + len(catalogue)


def _difference(what: str, name: str) -> str:
    return (
        f"{what} {name!r} as read from the online store differs from the dataset; nothing was published, publish again"
    )


def _turn(place: Path, target: str) -> None:
    link = place / f".{CURRENT}-{uuid.uuid4().hex[:8]}"
    os.symlink(target, link)
    try:
        os.replace(link, place / CURRENT)
    except OSError:
        link.unlink()
        raise


def _is_current(place: Path, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(os.readlink(place / CURRENT)).name == name
    return False


def _remove_abandoned(place: Path, keep: str) -> None:
    """Remove earlier versions and what killed publications left; an open reader keeps its files until its next call."""
    stale = [*place.glob(".building-*"), *(path for path in (place / _VERSIONS).iterdir() if path.name != keep)]
    for path in stale:
        _discard(path)
    for path in place.glob(f".{CURRENT}-*"):
        path.unlink(missing_ok=True)


def _discard(version: Path) -> None:
    """Remove a version; where its rows cannot be removed, its directory stays for the next publication to try again."""
    try:
        if (version / REGISTRY).is_file() and online_kind(version) == "redis":
            with _quiet():
                Version(version).remove_rows()
    except FeatureError as error:
        logger.warning("rows of %s are left in the online store: %s", version, error)
    else:
        shutil.rmtree(version, ignore_errors=True)


@contextlib.contextmanager
def _sole_publisher(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise FeatureError(f"another publication to {place} is running; wait for it and publish again") from error
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what Feast prints, its progress bars and its log below errors."""
    logger = logging.getLogger("feast")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
