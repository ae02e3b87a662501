"""Cleaning: from a source's raw tables to interactions and a catalogue that fit together.

Every step that drops rows is counted. Histories are ordered by timestamp, and by the row's place in the source where
timestamps tie. Of several interactions of one user with one item the first in that order is kept, or the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from deeprec.data.catalogue import distinct_titles
from deeprec.errors import DataError

MAX_UNKNOWN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Drop:
    """How many rows one step dropped, and why."""

    rows: int
    reason: str


@dataclass(frozen=True)
class Cleaned:
    """Clean tables with string ids; ``interactions`` grouped by user (sorted by id) and time-ordered."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    interaction_drops: tuple[Drop, ...]
    item_drops: tuple[Drop, ...]
    missing_titles: int
    duplicate_titles: int


def clean(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    *,
    repeats: Literal["first", "last"] = "first",
    min_rating: float = 0.0,
    min_user_interactions: int = 5,
    min_item_interactions: int = 5,
) -> Cleaned:
    """Apply every step.

    Raises:
        DataError: a table is empty, ratings are asked for and absent, most interactions name unknown items, or nothing
            is left.
    """
    if interactions.is_empty() or items.is_empty():
        raise DataError(f"the source has {interactions.height} interactions and {items.height} items; check its files")
    catalogue, item_drops = _distinct_items(items)
    drops: list[Drop] = []

    def keep(kept: pl.DataFrame, reason: str) -> None:
        nonlocal interactions
        if kept.height < interactions.height:
            drops.append(Drop(interactions.height - kept.height, reason))
        interactions = kept

    keep(interactions.drop_nulls(["user_id", "item_id"]), "user or item id missing")
    keep(interactions.drop_nulls(["timestamp"]), "timestamp missing")
    keep(_known_items(interactions, catalogue), "item not in the catalogue")
    keep(at_least_rated(interactions, min_rating), f"rated below {min_rating:g}")
    keep(one_of_repeats(time_ordered(interactions), repeats), f"repeated user and item; the {repeats} is kept")
    keep(
        k_core(interactions, min_user_interactions, min_item_interactions),
        f"{min_user_interactions}-core of users, {min_item_interactions}-core of items",
    )
    if interactions.is_empty():
        raise DataError(
            "no user is left after cleaning; lower data.min_user_interactions, data.min_item_interactions or "
            "data.min_rating, or give more data (" + "; ".join(f"{drop.rows} {drop.reason}" for drop in drops) + ")"
        )
    used = catalogue.join(interactions.select("item_id").unique(), on="item_id", how="semi", maintain_order="left")
    if used.height < catalogue.height:
        item_drops.append(Drop(catalogue.height - used.height, "no interaction left"))
    used = used.with_columns(pl.col("item_id").cast(pl.String))
    titled, missing, duplicates = unique_titles(used)
    ids = pl.col("user_id", "item_id").cast(pl.String)
    return Cleaned(interactions.with_columns(ids), titled, tuple(drops), tuple(item_drops), missing, duplicates)


def time_ordered(interactions: pl.DataFrame) -> pl.DataFrame:
    """Grouped by user (sorted by id), then by timestamp; ties keep their order."""
    return interactions.sort("user_id", "timestamp", maintain_order=True)


def one_of_repeats(interactions: pl.DataFrame, repeats: Literal["first", "last"] = "first") -> pl.DataFrame:
    """The first row of every (user, item), or the last, order kept.

    Pairs are compared as one 64-bit number made of two dense codes, which takes a fraction of the memory of comparing
    rows.
    """
    user, item = (pl.col(name).rank("dense").cast(pl.UInt64) for name in ("user_id", "item_id"))
    pair = user * 2**32 + item
    return interactions.filter(pair.is_first_distinct() if repeats == "first" else pair.is_last_distinct())


def at_least_rated(interactions: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Rows rated ``min_rating`` or better; 0 keeps all, unrated rows are dropped otherwise.

    Raises:
        DataError: a minimum is given and there are no ratings.
    """
    if min_rating == 0:
        return interactions
    if "rating" not in interactions.columns:
        raise DataError(f"data.min_rating is {min_rating:g}, but the interactions have no rating; set it to 0")
    return interactions.filter(pl.col("rating") >= min_rating)


def k_core(interactions: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    """The largest part in which every user has ``min_user`` rows and every item ``min_item``, order kept.

    Rare users and rare items are dropped in turn until nothing changes.
    """
    while True:
        before = interactions.height
        for column, least in (("item_id", min_item), ("user_id", min_user)):
            counts = interactions.group_by(column).len()
            if counts.select((pl.col("len") < least).any()).item():
                rare = counts.filter(pl.col("len") < least)[column]
                interactions = interactions.filter(~pl.col(column).is_in(rare.implode()))
        if interactions.height == before:
            return interactions


def unique_titles(items: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Items with non-blank, distinct titles, how many were missing and how many were repeated.

    A missing title becomes ``Item <id>``; the second item with a title gets ``(2)`` after it, in row order, or the
    next number that gives a title no other item has. White space within titles is made single spaces.
    """
    plain = items.with_columns(pl.col("title").str.replace_all(r"\s+", " ").str.strip_chars())
    missing = plain.select((pl.col("title").fill_null("") == "").sum()).item()
    titles = [title or f"Item {identity}" for identity, title in plain.select("item_id", "title").iter_rows()]
    found = distinct_titles(titles)
    duplicates = sum(new != old for new, old in zip(found, titles, strict=True))
    return plain.with_columns(pl.Series("title", found, dtype=pl.String)), missing, duplicates


def _distinct_items(items: pl.DataFrame) -> tuple[pl.DataFrame, list[Drop]]:
    drops = []
    identified = items.drop_nulls(["item_id"])
    if identified.height < items.height:
        drops.append(Drop(items.height - identified.height, "item id missing"))
    distinct = identified.unique("item_id", keep="first", maintain_order=True)
    if distinct.height < identified.height:
        drops.append(Drop(identified.height - distinct.height, "repeated item id; the first is kept"))
    return distinct, drops


def _known_items(interactions: pl.DataFrame, catalogue: pl.DataFrame) -> pl.DataFrame:
    kept = interactions.filter(pl.col("item_id").is_in(catalogue["item_id"].implode()))
    dropped = interactions.height - kept.height
    if interactions.height and dropped / interactions.height > MAX_UNKNOWN_SHARE:
        unknown = interactions.join(catalogue, on="item_id", how="anti")["item_id"][0]
        raise DataError(
            f"{dropped} of {interactions.height} interactions name items that are not in the catalogue, for example "
            f"{str(unknown)!r} (the catalogue has {str(catalogue['item_id'][0])!r}); make both files' ids match"
        )
    return kept
