"""Forgetting a user everywhere, and finding what still names one: bundles trained before, and what runs have kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from deeprec.cli.places import place_at


def forget_user(
    user: str, features: str, logs: Sequence[Path], shelves: Sequence[str], runs: Sequence[Path]
) -> Iterator[str]:
    """Forget a user, and say in lines what was done and what still names the user.

    Raises:
        ConfigError, FeatureError, StoreError: something cannot be reached or written; forget again, which does the
            rest.
        DataError: a log is none.
    """
    from deeprec.serving.log.request_log import forget_user as forget_in_log

    place = place_at(features)
    place.check()
    published = [one.name for one in place.publications() if place.open(one.name).bases([user])[0] is not None]
    found = place.forget(user)
    yield f"{place.name}: {found['events']:,} accepted events and {len(published):,} published histories removed"
    yield f"{place.name}: later trainings leave the user out"
    place.close()
    for log in logs:
        yield f"{log}: {forget_in_log(log, user):,} rows removed"
    beside = Path(features).absolute().parent
    if (beside / "config.yaml").is_file() and beside not in [run.absolute() for run in runs]:
        runs = [*runs, beside]
    for run in runs:
        if (run / "shelf" / "shelf.json").is_file() and str(run / "shelf") not in shelves:
            shelves = [*shelves, str(run / "shelf")]
    still = [line for shelf in shelves for line in _bundles(shelf, user, published)]
    still += [line for run in runs for line in _files(run, user)]
    yield from still
    if still:
        yield "train again without the user, promote the new bundle, and remove these"
    elif shelves or runs:
        yield "nothing that was looked through names the user"
    else:
        yield "bundles were not looked through; name their shelves with --shelf, and runs with --run"


def _bundles(address: str, user: str, published: Sequence[str]) -> Iterator[str]:
    """What a shelf's bundles have to do with a user whose history the publications ``published`` had."""
    from deeprec.bundle.shelf import Shelf

    for shelved in Shelf(address).versions():
        pointed = f" ({', '.join(shelved.pointers)})" if shelved.pointers else ""
        if shelved.info.get("example_user") == user:
            yield f"still named: {address}@{shelved.version}{pointed} gives the user as its example"
        if shelved.info.get("publication") in published:
            yield f"still trained with the user: {address}@{shelved.version}{pointed}"


def _files(run: Path, user: str) -> Iterator[str]:
    """The tables in a run's directory that have rows of the user."""
    import polars as pl

    for file in sorted(run.rglob("*.parquet")):
        try:
            scan = pl.scan_parquet(file)
            if "user_id" not in scan.collect_schema().names():
                continue
            rows = scan.filter(pl.col("user_id").cast(pl.String) == user).select(pl.len()).collect().item()
        except (OSError, pl.exceptions.PolarsError):
            continue
        if rows:
            yield f"still named: {file} ({rows:,} rows)"
