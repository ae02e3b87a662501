"""``deeprec data``: make sample data, import a source, look into a dataset, export what servers have accepted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprec.cli.features import PLACE_HELP
from deeprec.cli.profiles import pair

if TYPE_CHECKING:
    from rich.table import Table

    from deeprec.config import DataConfig
    from deeprec.data.dataset import Dataset
    from deeprec.data.ingest import IngestReport

app = typer.Typer(
    name="data",
    help="Make sample data, import a source, look into a dataset, export accepted events.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Directory of the dataset to write.")],
    users: Annotated[int, typer.Option(min=1, help="Number of users.")] = 1500,
    items: Annotated[int, typer.Option(min=1, help="Number of items.")] = 800,
    mean_history: Annotated[int, typer.Option(min=1, help="Mean number of interactions per user.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same data.")] = 0,
) -> None:
    """Generate sample data and write it as a dataset.

    Example: `deeprec data sample data/sample --users 500 --seed 7`
    """
    settings = {"source": "sample", "sample": {"users": users, "items": items, "mean_history": mean_history}}
    _ingest(_data_config(settings, ()), seed, out)


@app.command("import")
def import_source(
    source: Annotated[str, typer.Argument(help="`movielens`, `recbole` or `table`.")],
    path: Annotated[str, typer.Argument(help="Directory of the source, or `s3://bucket/prefix`.")],
    out: Annotated[Path, typer.Argument(help="Directory of the dataset to write.")],
    column: Annotated[
        list[str] | None, typer.Option("--column", help="OURS=THEIRS, for example user_id=customer; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the section data, for example min_rating=4; repeatable."),
    ] = None,
) -> None:
    """Read a source, clean it, and write it as a dataset.

    Examples:

    `deeprec data import movielens ml-latest-small data/ml --set min_rating=3.5`

    `deeprec data import recbole dataset/ml-100k data/ml-100k`

    `deeprec data import table exports data/shop --column user_id=customer --column item_id=sku
    --column title=name --set interactions=orders.csv --set items=products.csv --set "text_columns=[category,brand]"`
    """
    columns = dict(pair(text, "--column", "user_id=customer") for text in column or ())
    values: dict[str, Any] = {"source": source, "path": path}
    if columns:
        values["columns"] = columns
    _ingest(_data_config(values, tuple(settings or ())), 0, out)


@app.command()
def inspect(
    place: Annotated[Path, typer.Argument(help="A dataset, or the directory of a source.")],
    rows: Annotated[int, typer.Option(min=0, help="Sample rows to show.")] = 5,
) -> None:
    """Print what is in a dataset, or what a source would give with default settings.

    Examples: `deeprec data inspect data/sample`, `deeprec data inspect ml-latest-small`
    """
    import tempfile

    from deeprec.data.dataset import read_dataset
    from deeprec.data.ingest import ingest
    from deeprec.store import MANIFEST

    if (place / MANIFEST).exists():
        _show(read_dataset(place), str(place), rows)
        return
    config = _data_config({"source": _kind(place), "path": str(place)}, ())
    with tempfile.TemporaryDirectory() as work:
        report = ingest(config, 0, Path(work) / "dataset")
        _print_report(report)
        _show(read_dataset(Path(work) / "dataset"), str(place), rows)


@app.command()
def events(
    features: Annotated[str, typer.Argument(help=PLACE_HELP)],
    out: Annotated[Path, typer.Argument(help="File to write, .parquet.")],
) -> None:
    """Write the events that a feature place has accepted as a table of interactions, which `import table` reads.

    Columns: user_id, item_id, timestamp, rating, event, event_id, in the order in which they were accepted.

    Examples: `deeprec data events runs/shop/features shop/events.parquet`, `deeprec data events cluster.yaml
    events.parquet`
    """
    from deeprec.cli.places import place_at
    from deeprec.features.log import write_table

    place = place_at(features)
    place.check()
    typer.echo(f"events: {write_table(place.log, out):,} in {out}")
    place.close()


@app.command()
def forget(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    features: Annotated[str, typer.Option("--features", help=PLACE_HELP)],
    log: Annotated[
        list[Path] | None, typer.Option("--log", help="Directory of a request log; repeatable, one for each server's.")
    ] = None,
    shelf: Annotated[
        list[str] | None, typer.Option("--shelf", help="A shelf whose bundles are looked through; repeatable.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option("--run", help="Directory of a run, which is looked through; repeatable.")
    ] = None,
) -> None:
    """Forget a user: accepted events, published histories, the request logs' rows, and every later training.

    The user's id stays as a keyed hash alone, by which later trainings with this place leave the user out. What has
    been trained is not changed: the command names what still holds the user, so that it can be removed. Beside a place
    in a run's directory, that run and its shelf are looked through.

    Examples:

    `deeprec data forget u0042 --features runs/shop/features --log /var/log/deeprec`

    `deeprec data forget u0042 --features cluster.yaml --shelf s3://models/shop --log /logs/a --log /logs/b`
    """
    from deeprec.cli.forgetting import forget_user

    for line in forget_user(user, features, log or (), shelf or (), run or ()):
        typer.echo(line)


def _kind(place: Path) -> str:
    from deeprec.data.source import listing
    from deeprec.errors import DataError

    if not place.is_dir():
        raise DataError(f"{place} is not a directory; name a dataset or the directory of a source")
    if any(place.glob("*.inter")):
        return "recbole"
    if any((place / name).exists() for name in ("ratings.dat", "ratings.csv")):
        return "movielens"
    if (place / "interactions.parquet").exists():
        from deeprec.data.source import column_names

        return "movielens" if "position" in column_names(place / "interactions.parquet") else "table"
    raise DataError(
        f"{place} holds {listing(place)}, which is no dataset and no known source; "
        f"import it first with `deeprec data import table`"
    )


def _data_config(values: dict[str, Any], overrides: tuple[str, ...]) -> DataConfig:
    import yaml

    from deeprec.config import parse_config
    from deeprec.errors import ConfigError

    for override in overrides:
        key, text = pair(override, "--set", "min_rating=4")
        *parents, last = key.removeprefix("data.").split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
        try:
            node[last] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    return parse_config({"data": values}, "command line").data


def _ingest(config: DataConfig, seed: int, out: Path) -> None:
    from deeprec.data.ingest import ingest

    _print_report(ingest(config, seed, out))
    typer.echo(f"dataset: {out}")


def _print_report(report: IngestReport) -> None:
    for line in report.lines:
        typer.echo(line)


def _show(dataset: Dataset, name: str, rows: int) -> None:
    from rich.console import Console

    console = Console()
    console.print(_counts(dataset, name), _lengths(dataset), _phrases(dataset))
    if rows:
        console.print(_sample_items(dataset, rows), _sample_histories(dataset, rows))


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left")


def _counts(dataset: Dataset, name: str) -> Table:
    users, items = len(dataset.sequences), len(dataset.catalogue)
    interactions = sum(len(items) for items in dataset.sequences.values())
    table = _table(name, "what", "value")
    table.add_row("source", str(dataset.info.get("source", "")))
    table.add_row("users", f"{users:,}")
    table.add_row("items", f"{items:,}")
    table.add_row("interactions", f"{interactions:,}")
    table.add_row("sparsity", f"{1 - interactions / (users * items):.2%}")
    if dataset.time_unit == "seconds":
        first = min(times[0] for times in dataset.timestamps.values())
        last = max(times[-1] for times in dataset.timestamps.values())
        table.add_row("time", f"{_day(first)} to {_day(last)}")
    else:
        table.add_row("time", "an order only")
    table.add_row("text columns", ", ".join(dataset.info.get("text_columns", ())))
    table.add_row("year column", str(dataset.info.get("year_column") or "none"))
    table.add_row("policy positions", str(dataset.policy_positions))
    table.add_row("titles missing at the source", str(dataset.info.get("missing_titles", 0)))
    return table


def _day(seconds: int) -> str:
    from datetime import UTC, datetime

    try:
        return str(datetime.fromtimestamp(seconds, UTC).date())
    except (ValueError, OverflowError, OSError):
        return f"{seconds} (no date; are these milliseconds?)"


def _lengths(dataset: Dataset) -> Table:
    import numpy as np

    lengths = [len(items) for items in dataset.sequences.values()]
    table = _table(
        "history length", *("min" if q == 0 else "max" if q == 1 else f"{q:.0%}" for q in _QUANTILES), "mean"
    )
    table.add_row(*(f"{np.quantile(lengths, q):.0f}" for q in _QUANTILES), f"{np.mean(lengths):.1f}")
    return table


def _phrases(dataset: Dataset, limit: int = 15) -> Table:
    from collections import Counter

    counts = Counter(phrase for item in dataset.catalogue.items for phrase in item.phrases)
    table = _table(f"top phrases of {len(counts):,}", "phrase", "items")
    for phrase, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]:
        table.add_row(phrase, f"{count:,}")
    return table


def _sample_items(dataset: Dataset, rows: int) -> Table:
    from rich.markup import escape

    table = _table("items", "id", "title", "phrases")
    for item in dataset.catalogue.items[:rows]:
        table.add_row(escape(item.item_id), escape(item.title), escape(", ".join(item.phrases)))
    return table


def _sample_histories(dataset: Dataset, rows: int) -> Table:
    from rich.markup import escape

    table = _table("newest items, newest last", "user", "length", "titles")
    for user, items in list(dataset.sequences.items())[:rows]:
        titles = ", ".join(dataset.catalogue[item].title for item in items[-3:])
        table.add_row(escape(user), str(len(items)), escape(titles))
    return table
