"""Publishing a dataset's features: offline files, Feast's registry, the online store, and a read-back of all of it.

A publication is built whole in a hidden directory beside the others, read back and compared with the dataset, and only
then becomes current; a publication that fails or is killed leaves the previous one in use. Layout of the directory::

    current -> versions/NAME            turned in one step
    versions/NAME/feature_store.yaml    paths relative to itself; ``feast -c PATH/current`` works on it
    versions/NAME/offline/*.parquet     what was materialised
    versions/NAME/online/online.db      SQLite
    versions/NAME/registry.db

Online histories are complete, test targets included: they are what a server must know, and training and evaluation
never read them. One publication at a time; a second one is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.resources
import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import FeatureError, StoreError
from deeprec.features.online import CURRENT, ONLINE, SETTINGS, HistoryStore
from deeprec.store import read_artifact, write_artifact

if TYPE_CHECKING:
    import polars as pl

__all__ = ["HistoryStore", "publish"]

KIND = "features"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSIONS = "versions"


def publish(dataset: Path, features: FeaturesConfig, out: Path) -> dict[str, int]:
    """Publish a dataset's histories and catalogue to ``features.path``, and record it as the artifact ``out``.

    Returns users, items, rows (interactions in the published histories), read_back (users and items that were read
    from the online store and found equal to the dataset's: all of them) and truncated (users whose history is longer
    than ``features.history_length``, of which only the newest items were published; 0 where histories are complete).

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
        with _sole_publisher(place):
            counts = _publish(data, ingested, features.history_length, place)
    except OSError as error:
        raise StoreError(
            f"cannot write the feature store {place}: {error}; name another place or free space"
        ) from error
    with write_artifact(out, KIND, config=features.model_dump(mode="json"), parents=[dataset]) as work:
        record = json.dumps({"path": str(place), **counts}, indent=2)
        (work / "record.json").write_text(record + "\n", encoding="utf-8")
    return counts


def _publish(data: Dataset, ingested: datetime, length: int, place: Path) -> dict[str, int]:
    versions = place / _VERSIONS
    versions.mkdir(exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    building = place / f".building-{name}"
    try:
        rows = _build(data, ingested, length, building)
        os.replace(building, versions / name)
        read_back = _compare(data, length, place, name)
        _turn(place, f"{_VERSIONS}/{name}")
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(versions / name, ignore_errors=True)
        raise
    _remove_abandoned(place, keep=name)
    return {
        "users": len(data.sequences),
        "items": len(data.catalogue),
        "rows": rows,
        "read_back": read_back,
        "truncated": sum(len(items) > length for items in data.sequences.values()),
    }


def _build(data: Dataset, ingested: datetime, length: int, version: Path) -> int:
    """Write and materialise one version; the number of interactions in it."""
    published = datetime.now(UTC)
    histories = _history_frame(data, ingested, published, length)
    items = _item_frame(data, ingested, published)
    for part in (version, version / "offline", (version / ONLINE).parent):
        part.mkdir()
    settings = importlib.resources.files("deeprec.feature_repo").joinpath(SETTINGS).read_text(encoding="utf-8")
    (version / SETTINGS).write_text(settings, encoding="utf-8")
    with _quiet():
        from feast import FeatureStore

        from deeprec.feature_repo import definitions  # type: ignore[import-not-found]

        try:
            histories.write_parquet(version / definitions.USER_HISTORY_FILE)
            items.write_parquet(version / definitions.ITEM_ATTRIBUTES_FILE)
            store = FeatureStore(repo_path=str(version))
            store.apply(list(definitions.OBJECTS))
            store.materialize(start_date=EPOCH, end_date=datetime.now(UTC))
        except OSError:
            raise
        except Exception as error:
            raise FeatureError(
                f"the features cannot be published to {version.parent}: {error}; correct the dataset, free space or "
                f"name another features.path, and publish again"
            ) from error
    return int(histories["item_ids"].list.len().sum())


def _history_frame(data: Dataset, ingested: datetime, published: datetime, length: int) -> pl.DataFrame:
    """One row per user. The event time is that of the newest interaction; where timestamps are an order, of ingest."""
    import polars as pl

    last = [times[-1] for times in data.timestamps.values()]
    if data.time_unit == "order":
        events = [ingested] * len(last)
    else:
        now = published.timestamp()
        if wrong := [user for user, time in zip(data.timestamps, last, strict=True) if not 0 <= time <= now]:
            raise FeatureError(
                f"{len(wrong)} users' newest interactions are before 1970 or in the future (user {wrong[0]!r} at "
                f"{data.timestamps[wrong[0]][-1]}); correct the timestamps, or import them with time_unit order"
            )
        events = [datetime.fromtimestamp(time, UTC) for time in last]
    return pl.DataFrame(
        {
            "user_id": list(data.sequences),
            "item_ids": [list(items[-length:]) for items in data.sequences.values()],
            "interactions": [len(items) for items in data.sequences.values()],
            "last_timestamp": last,
            **_times(events, published),
        },
        schema={
            "user_id": pl.String,
            "item_ids": pl.List(pl.String),
            "interactions": pl.Int64,
            "last_timestamp": pl.Int64,
            **_time_types(),
        },
    )


def _item_frame(data: Dataset, ingested: datetime, published: datetime) -> pl.DataFrame:
    import polars as pl

    items = data.catalogue.items
    return pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "title": [item.title for item in items],
            "phrases": [list(item.phrases) for item in items],
            **_times([ingested] * len(items), published),
        },
        schema={"item_id": pl.String, "title": pl.String, "phrases": pl.List(pl.String), **_time_types()},
    )


def _times(events: Sequence[datetime], published: datetime) -> dict[str, list[datetime]]:
    return {"event_timestamp": list(events), "created": [published] * len(events)}


def _time_types() -> dict[str, Any]:
    import polars as pl

    moment = pl.Datetime("us", "UTC")
    return {"event_timestamp": moment, "created": moment}


def _compare(data: Dataset, length: int, place: Path, name: str) -> int:
    """Read every user and item of a version that is not current yet; their number.

    Raises:
        FeatureError: one of them differs from the dataset.
    """
    store = HistoryStore(place, version=f"{_VERSIONS}/{name}")
    users = list(data.sequences)
    for user, found in zip(users, store.histories(users), strict=True):
        if found != data.sequences[user][-length:]:
            raise FeatureError(_difference("user", user))
    items = data.catalogue.items
    for item, attributes in zip(items, store.items([item.item_id for item in items]), strict=True):
        if attributes != {"title": item.title, "phrases": item.phrases}:
            raise FeatureError(_difference("item", item.item_id))
    return len(users) + len(items)


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


def _remove_abandoned(place: Path, keep: str) -> None:
    """Remove earlier versions and what killed publications left; an open reader keeps its files until its next call."""
    stale = [*place.glob(".building-*"), *(path for path in (place / _VERSIONS).iterdir() if path.name != keep)]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    for path in place.glob(f".{CURRENT}-*"):
        path.unlink(missing_ok=True)


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
