"""Publishing a dataset's features to a place, and reading all of it back.

A publication is named by the tables of its dataset and by how it keeps histories, so that publishing the same dataset
again finds it and makes nothing, unless something of it is lost. Histories are complete, test targets included: they
are what a server must know, and training and evaluation never read them. Accepted events that the dataset does not
contain are in them too; those accepted later readers add (``publication``). Users who were forgotten are left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import FeatureError, StoreError
from deeprec.features.history import Repeats, UserHistory
from deeprec.features.log import Logged
from deeprec.features.place import FeaturePlace
from deeprec.features.places import open_place
from deeprec.features.publication import BaseHistory, BaseRow, Publication
from deeprec.store import config_digest, read_artifact, write_artifact

KIND = "features"
RECORD = "record.json"
_DIGITS = 16
_TOGETHER = 2000

logger = logging.getLogger(__name__)


def publish(dataset: Path, features: FeaturesConfig, out: Path) -> dict[str, int]:
    """Publish a dataset's histories and catalogue to the place of ``features``, and record it as the artifact ``out``.

    Returns users, items, rows (interactions in the published histories), events (accepted ones that are in them and not
    in the dataset, before any limit), read_back (users and items that were read from the place and found equal: all of
    them) and truncated (users whose history is longer than ``features.history_length``, of which only the newest items
    were published; 0 where histories are complete).

    Raises:
        ConfigError, FeatureError: no place is named, or what is read back differs from the dataset.
        ArtifactError, DataError: the dataset cannot be read.
        StoreError: the place cannot be written.
    """
    data = read_dataset(dataset)
    ingested = datetime.fromisoformat(read_artifact(dataset, verify=False).created)
    place = open_place(features)
    try:
        place.prepare()
        name, counts = _publish(place, data, ingested, features.history_length)
    finally:
        place.close()
    parents, settings = [dataset], features.model_dump(mode="json")
    with write_artifact(out, KIND, config=settings, parents=parents) as work:
        record = json.dumps({"publication": name, "features": settings, **counts}, indent=2)
        (work / RECORD).write_text(record + "\n", encoding="utf-8")
    return counts


def publication_name(data: Dataset, history_length: int) -> str:
    """What a dataset's publication is called: a digest of all that its rows are made from."""
    columns = {name: data.info.get(name) for name in ("text_columns", "year_column", "time_unit")}
    made_from = {"files": data.info["files"], **columns, "repeats": data.repeats, "history_length": history_length}
    return config_digest(made_from)[:_DIGITS]


def _publish(place: FeaturePlace, data: Dataset, ingested: datetime, history_length: int) -> tuple[str, dict[str, int]]:
    if data.time_unit != "order":
        _check_times(data)
    forgotten = place.log.forgotten(data.sequences)
    name = publication_name(data, history_length)
    publication = Publication(
        name,
        datetime.now(UTC).isoformat(timespec="microseconds"),
        history_length,
        data.time_unit,
        cast(Repeats, data.repeats),
        len(data.sequences) - len(forgotten),
        len(data.catalogue),
    )
    place.show_again()
    if not _is_there(place, publication, data, forgotten):
        rows = list(_rows(data, dict(place.log.by_user()), publication, forgotten))
        place.build(publication, rows, data, ingested)
        if difference := _difference(place, publication, data, forgotten):
            place.remove(name)
            raise FeatureError(f"{difference} as read back differs from the dataset; nothing is published, try again")
    for user in place.log.forgotten(data.sequences) - forgotten:  # while it was being made
        place.forget(user)
    return name, _counts(place, name, data)


def _is_there(place: FeaturePlace, publication: Publication, data: Dataset, forgotten: set[str]) -> bool:
    """Whether all of it is published already and can be read; what is damaged or lost is made anew."""
    try:
        named = any(one.name == publication.name for one in place.publications())
        return named and not _difference(place, publication, data, forgotten)
    except (FeatureError, StoreError) as error:
        logger.warning("the publication %s is made anew: %s", publication.name, error)
        return False


def _rows(
    data: Dataset, events: dict[str, list[Logged]], publication: Publication, forgotten: set[str]
) -> Iterator[BaseRow]:
    """A row for every user of the dataset, or of whom events on items of its catalogue were accepted."""
    for user in dict.fromkeys([*data.sequences, *events]):
        if user in forgotten:
            continue
        base = _base(data, user, events.get(user, ()), publication)
        if base.history.item_ids:
            yield BaseRow(user, base)


def _base(data: Dataset, user: str, events: Sequence[Logged], publication: Publication) -> BaseHistory:
    """A user's history of the dataset with accepted events."""
    items, times = data.sequences.get(user, ()), data.timestamps.get(user, ())
    limit = publication.history_length
    history = UserHistory(items[-limit:], times[-limit:], len(items))
    new = [(timestamp, item) for _, timestamp, item in events if item in data.catalogue]
    return BaseHistory(history.with_interactions(new, limit, publication.repeats), len(events))


def _difference(place: FeaturePlace, publication: Publication, data: Dataset, forgotten: set[str]) -> str:
    """The first user or item that the publication has otherwise than the dataset; nothing where all are equal."""
    published = place.open(publication.name)
    users = [user for user in data.sequences if user not in forgotten]
    for start in range(0, len(users), _TOGETHER):
        names = users[start : start + _TOGETHER]
        events = place.log.since(names, [0] * len(names))
        for user, logged, found in zip(names, events, published.bases(names), strict=True):
            if found is None or found != _base(data, user, logged[: found.logged], publication):
                return f"user {user!r}"
    items = data.catalogue.items
    for item, attributes in zip(items, published.items([item.item_id for item in items]), strict=True):
        if attributes != {"title": item.title, "phrases": item.phrases}:
            return f"item {item.item_id!r}"
    return ""


def _counts(place: FeaturePlace, name: str, data: Dataset) -> dict[str, int]:
    published = place.open(name)
    users = [user.user_id for user in published.find("", 10**9)]
    rows = events = truncated = 0
    for start in range(0, len(users), _TOGETHER):
        names = users[start : start + _TOGETHER]
        for user, found in zip(names, published.bases(names), strict=True):
            history = found.history if found is not None else UserHistory()
            rows += len(history.item_ids)
            events += history.interactions - len(data.sequences.get(user, ()))
            truncated += history.interactions > len(history.item_ids)
    return {
        "users": len(users),
        "items": len(data.catalogue),
        "rows": rows,
        "events": events,
        "read_back": len([user for user in users if user in data.sequences]) + len(data.catalogue),
        "truncated": truncated,
    }


def _check_times(data: Dataset) -> None:
    now = datetime.now(UTC).timestamp()
    if wrong := [user for user, times in data.timestamps.items() if not 0 <= times[-1] <= now]:
        raise FeatureError(
            f"{len(wrong)} users' newest interactions are before 1970 or in the future (user {wrong[0]!r} at "
            f"{data.timestamps[wrong[0]][-1]}); correct the timestamps, or import them with time_unit order"
        )
