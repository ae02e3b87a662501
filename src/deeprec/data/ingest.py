"""Ingest: read a source, clean it, write the dataset artifact, and say what became of every row."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deeprec.config import DataConfig
from deeprec.data.cleaning import Cleaned, Drop, clean
from deeprec.data.dataset import write_dataset
from deeprec.data.source import Source
from deeprec.errors import DataError
from deeprec.objects import is_s3, open_objects
from deeprec.types import JsonDict

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class IngestReport:
    """Rows in, rows dropped and why, rows out."""

    source: str
    interactions_in: int
    items_in: int
    interaction_drops: tuple[Drop, ...]
    item_drops: tuple[Drop, ...]
    users: int
    items: int
    interactions: int
    missing_titles: int
    duplicate_titles: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> JsonDict:
        """Plain values for ``dataset.json``."""
        return asdict(self)

    @property
    def lines(self) -> tuple[str, ...]:
        """The report as lines to print."""
        found = [f"{self.source}: {self.interactions_in:,} interactions and {self.items_in:,} items read"]
        found += [f"dropped {drop.rows:,} interactions: {drop.reason}" for drop in self.interaction_drops]
        found += [f"dropped {drop.rows:,} items: {drop.reason}" for drop in self.item_drops]
        if self.missing_titles:
            found.append(f"{self.missing_titles:,} items without a title are called Item <id>")
        if self.duplicate_titles:
            found.append(f"{self.duplicate_titles:,} repeated titles were numbered")
        found += self.notes
        found.append(f"kept {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions")
        return tuple(found)


def ingest(
    config: DataConfig,
    seed: int,
    out: str | Path,
    forgotten: Callable[[list[str]], set[str]] | None = None,
    accepted: Callable[[], pl.DataFrame | None] | None = None,
) -> IngestReport:
    """Make a dataset at ``out``. The seed matters to generated data only.

    Args:
        forgotten: of these users, those who are to be left out.
        accepted: the events that servers have accepted (user_id, item_id, timestamp, rating), where ``data.events``
            asks for them.

    Raises:
        DataError: the source cannot be read or does not fit together; nothing is written then.
        StoreError: ``out`` cannot be written, or the source's store not be reached.
    """
    with on_disk(config) as local:
        source, notes = read_source(local, seed), []
    if config.events and accepted is not None and (events := accepted()) is not None:
        source = _with(source, events)
        notes.append(f"added {events.height:,} interactions: events that servers have accepted")
    if forgotten is not None:
        source, left_out = _without(source, forgotten)
        notes += [f"dropped {left_out:,} interactions: the user was forgotten"] if left_out else []
    text_columns = config.text_columns if source.text_columns is None else source.text_columns
    year_column = (source.year_column or config.year_column) if config.year_column else None
    for column in text_columns:
        if column not in source.items.columns:
            raise DataError(
                f"the items of {config.path or source.name} have no column {column!r}; they have "
                f"{', '.join(source.items.columns)}; correct data.text_columns"
            )
    if source.time_unit == "order":
        notes.append("timestamps are only an order; clock checks are skipped")
    if year_column is not None and year_column not in source.items.columns:
        notes.append(f"the items have no column {year_column!r}, so there are no decade phrases")
        year_column = None
    cleaned = clean(
        source.interactions,
        source.items,
        repeats=config.repeats,
        min_rating=config.min_rating,
        min_user_interactions=config.min_user_interactions,
        min_item_interactions=config.min_item_interactions,
    )
    report = _report(source, cleaned, notes)
    write_dataset(
        out,
        cleaned.interactions,
        cleaned.items,
        source=source.name,
        time_unit=source.time_unit,
        text_columns=text_columns,
        year_column=year_column,
        policy_positions=config.policy_positions,
        repeats=config.repeats,
        missing_titles=cleaned.missing_titles,
        report=report.to_json(),
        config=config.model_dump(mode="json"),
        seed=seed,
    )
    return report


@contextmanager
def on_disk(config: DataConfig) -> Iterator[DataConfig]:
    """The configuration with its source on this disk: objects of ``s3://`` are fetched whole, and removed afterwards.

    Raises:
        DataError: an object's name is no path below a directory; or what was raised within, with the address in it.
        StoreError: the store cannot be reached, or the disk is full.
    """
    if config.source == "sample" or not is_s3(config.path):
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="deeprec-source-") as place:
        objects = open_objects(config.path)
        for name in (listed.name for listed in objects.names()):
            if ".." in PurePosixPath(name).parts:
                raise DataError(f"{config.path} holds an object named {name!r}, which is no path; rename or remove it")
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
            objects.get(name, Path(place) / name)
        try:
            yield config.model_copy(update={"path": place})
        except DataError as error:
            raise DataError(str(error).replace(place, config.path.rstrip("/"))) from error


def read_source(config: DataConfig, seed: int) -> Source:
    """Read the source that the configuration names.

    Raises:
        DataError: it cannot be read.
    """
    if config.source == "sample":
        from deeprec.data.sample import read_sample

        return read_sample(config.sample, seed)
    if config.source == "movielens":
        from deeprec.data.movielens import read_movielens

        return read_movielens(config.path)
    if config.source == "recbole":
        from deeprec.data.recbole import read_recbole

        return read_recbole(config.path, config.columns, config.text_columns, config.year_column)
    from deeprec.data.table import read_table

    return read_table(
        config.path,
        config.interactions,
        config.items,
        config.columns,
        config.text_columns,
        config.year_column,
        config.time_unit,
    )


def _with(source: Source, events: pl.DataFrame) -> Source:
    """The source with accepted events behind its interactions; ids are text then.

    Raises:
        DataError: its timestamps are no seconds, so that events have no place among them.
    """
    import polars as pl

    if source.time_unit != "seconds":
        raise DataError(
            f"data.events adds events, whose times are seconds, to {source.name}, whose timestamps are only an order; "
            f"give the source's times in seconds, or set data.events to false"
        )
    ids = pl.col("user_id", "item_id").cast(pl.String)
    interactions = source.interactions.with_columns(ids)
    names = [name for name in ("user_id", "item_id", "timestamp", "rating") if name in interactions.columns]
    typed = events.select(pl.col(name).cast(interactions.schema[name]) for name in names)
    joined = pl.concat([interactions, typed], how="diagonal")
    return replace(source, interactions=joined, items=source.items.with_columns(pl.col("item_id").cast(pl.String)))


def _without(source: Source, forgotten: Callable[[list[str]], set[str]]) -> tuple[Source, int]:
    """The source without the interactions of users who are forgotten, and how many they were."""
    import polars as pl

    ids = source.interactions.select(pl.col("user_id").cast(pl.String).unique().drop_nulls())["user_id"].to_list()
    gone = sorted(forgotten(ids))
    kept = source.interactions.filter(~pl.col("user_id").cast(pl.String).is_in(gone).fill_null(False))
    return replace(source, interactions=kept), source.interactions.height - kept.height


def _report(source: Source, cleaned: Cleaned, notes: list[str]) -> IngestReport:
    return IngestReport(
        source=source.name,
        interactions_in=source.interactions.height,
        items_in=source.items.height,
        interaction_drops=cleaned.interaction_drops,
        item_drops=cleaned.item_drops,
        users=cleaned.interactions["user_id"].n_unique(),
        items=cleaned.items.height,
        interactions=cleaned.interactions.height,
        missing_titles=cleaned.missing_titles,
        duplicate_titles=cleaned.duplicate_titles,
        notes=tuple(notes),
    )
