"""``deeprec evaluate``: what the log of a server says about the models that answered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.output import print_json, print_tables
from deeprec.cli.places import find_bundle

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from deeprec.evaluation.later import Later
    from deeprec.evaluation.shadow_report import ReportTable

app = typer.Typer(
    name="evaluate",
    help="Evaluate what was served: the policy beside the TRM, from a server's request log.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.callback()
def _group() -> None:
    """Keeps ``shadow`` a subcommand while it is the only one."""


@app.command()
def shadow(
    log: Annotated[
        Path, typer.Argument(metavar="LOGDIR", help="Request log of a server in shadow mode, or one day of it.")
    ],
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            help="What users took afterwards: a feature store, or .jsonl or .parquet with user_id, item_id, timestamp.",
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="Compare only what this bundle answered; adds coverage, popularity and novelty."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Places of the lists that count.", min=1)] = 10,
    window_hours: Annotated[
        float, typer.Option("--window-hours", help="For how long after an answer an event counts.", min=0.001)
    ] = 24.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write an HTML report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare what the TRM answered with what the policy would have answered.

    The log comes from `deeprec serve recommender BUNDLE --shadow --log LOGDIR`. With `--events`, the items that users
    took after an answer are looked for in both lists; hashed users are joined by the key in the log's directory.

    Examples:

    `deeprec evaluate shadow logs/shadow --bundle runs/quickstart/bundle`

    `deeprec evaluate shadow logs/shadow --events runs/quickstart/features --window-hours 48 --out shadow.html`
    """
    from deeprec.bundle.opening import open_bundle
    from deeprec.evaluation.shadow import evaluate_shadow, shadow_rows
    from deeprec.evaluation.shadow_report import render, sentences, tables
    from deeprec.serving.log.request_log import read_log
    from deeprec.store import write_text

    served = read_log(log)
    loaded = None if bundle is None else open_bundle(find_bundle(bundle), lambda serve: ())
    rows = shadow_rows(served, loaded.version if loaded else None)
    found = evaluate_shadow(
        rows,
        k=k,
        catalogue=loaded.catalogue if loaded else None,
        counts=loaded.counts if loaded else None,
        later=None if events is None else _later(rows, events, log, k, window_hours),
    )
    if out is not None:
        write_text(out, render(found, str(log)))
    if as_json:
        print_json(found.to_json())
        return
    for table in tables(found):
        print_tables(_table(table))
        typer.echo(f"{table.note}\n" if table.note else "")
    for sentence in sentences(found):
        typer.echo(sentence)
    if out is not None:
        typer.echo(f"report   {out}")


def _later(rows: pl.DataFrame, events: Path, log: Path, k: int, window_hours: float) -> Later:
    from deeprec.evaluation.later import later_events
    from deeprec.serving.log.user_hash import read_hash

    return later_events(rows, _events(events), k=k, window_hours=window_hours, user_hash=read_hash(log))


def _events(place: Path) -> pl.DataFrame:
    """The events in files, or those that a feature store has accepted."""
    from deeprec.evaluation.later import read_events
    from deeprec.features.directory import EVENTS, DirectoryPlace
    from deeprec.features.log import write_table

    if not (place / EVENTS).is_file():
        return read_events(place)
    store = DirectoryPlace(place)
    store.check()
    with tempfile.TemporaryDirectory(prefix="deeprec-events-") as work:
        table = Path(work) / "events.parquet"
        write_table(store.log, table)
        store.close()
        return read_events(table)


def _table(content: ReportTable) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=content.title, title_justify="left")
    for place, column in enumerate(content.columns):
        table.add_column(column, justify="left" if place == 0 or not column else "right")
    for row in content.rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
