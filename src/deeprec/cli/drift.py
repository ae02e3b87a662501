"""``deeprec drift``: whether the world has moved since a bundle was trained, and a training run where it has."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.output import print_json, print_tables
from deeprec.cli.places import find_bundle, find_features
from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config

if TYPE_CHECKING:
    from rich.table import Table

    from deeprec.config import Config
    from deeprec.release.drift.figure import Drift
    from deeprec.release.drift.retrain import Retraining
    from deeprec.release.drift.seen import Answers

PAGE, FIGURES = "drift.html", "drift.json"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(drift)


def drift(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="BUNDLE",
            help="A bundle's directory, a run's, a shelf (its live version) or SHELF@VERSION. Default: the shelf of "
            "`bundle.uri`, else the newest run's.",
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Request log of the servers. Default: `serving.log.path`.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Feature store with the accepted events. Default: the section `features`."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"Directory to write {PAGE} and {FIGURES} to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    with_retraining: Annotated[
        bool, typer.Option("--retrain", help="Start one training run on KFP where the verdict is drifted.")
    ] = False,
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG_HELP)] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
) -> None:
    """Compare what users do and what they are answered with what a bundle was trained on.

    Items that the bundle does not know, popularity shift, history length and activity, from the accepted events;
    answers by popularity and by the policy, from the request log; the loss of hit share, from both. Limits are in the
    section `drift`.

    With `--retrain` a training run is started, but none while one is active, and none within `drift.cooldown_hours`
    after the last began.

    Examples:

    `deeprec drift runs/quickstart --log logs/recommender --out reports/drift`

    `deeprec drift --config /etc/deeprec/config.yaml --retrain`

    Exit status: 0 ok, 1 drifted, 2 inconclusive, or an error, which says so on standard error. With `--retrain`, which
    acts on the verdict, 0 whatever it is, and 1 or 2 an error only.
    """
    settings = read_config(config, override)

    from deeprec.release.drift.figure import EXIT

    found = _look(settings, bundle, log, features)
    if out is not None:
        _write(out, found)
    retraining = _retrain(settings, found) if with_retraining else None
    if as_json:
        more = {} if retraining is None else {"retraining": {"started": retraining.started, "run": retraining.run}}
        print_json({**found.to_json(), **more})
    else:
        _print(found, out)
    if retraining is not None:
        typer.echo(retraining.sentence, err=as_json)
        return
    raise typer.Exit(EXIT[found.verdict])


def _look(settings: Config, bundle: str | None, log: Path | None, features: Path | None) -> Drift:
    from deeprec.bundle.opening import open_bundle
    from deeprec.features.places import open_place
    from deeprec.release.drift.look import look

    address = find_bundle(bundle or settings.bundle.uri or None)
    opened = open_bundle(address, lambda serve: (), settings.serving.cache)
    named = find_features(settings, features, address)
    answers = _answers(log or (Path(settings.serving.log.path) if settings.serving.log.path else None))
    if named is None:
        return look(opened, None, answers, settings.drift, time.time())
    place = open_place(named)
    try:
        return look(opened, place, answers, settings.drift, time.time())
    finally:
        place.close()


def _answers(log: Path | None) -> Answers | None:
    """A log's rows and hash; a log that a server has begun and not yet written to has no rows."""
    if log is None:
        return None
    import polars as pl

    from deeprec.release.drift.seen import Answers
    from deeprec.serving.log.request_log import SCHEMA, read_log
    from deeprec.serving.log.user_hash import read_hash

    user_hash = read_hash(log)
    if user_hash is not None and next(log.rglob("*.parquet"), None) is None:
        empty = pl.from_arrow(SCHEMA.empty_table())
        assert isinstance(empty, pl.DataFrame)
        return Answers(empty, user_hash)
    return Answers(read_log(log), user_hash)


def _retrain(settings: Config, found: Drift) -> Retraining:
    from deeprec.release.drift.retrain import retrain
    from deeprec.release.kfp_server import KfpServer

    schedule = settings.schedule
    server = KfpServer(schedule.host, schedule.namespace)
    return retrain(found, server, schedule.name, settings.drift.cooldown_hours, datetime.now(UTC))


def _write(out: Path, found: Drift) -> None:
    from deeprec.release.drift.page import write_drift_page
    from deeprec.store import write_text

    write_text(out / FIGURES, json.dumps(found.to_json(), ensure_ascii=False, indent=1) + "\n")
    write_drift_page(out / PAGE, found)


def _print(found: Drift, out: Path | None) -> None:
    print_tables(_table(found))
    typer.echo(f"bundle   {found.version}, {found.since} to {found.until}")
    typer.echo(f"verdict  {found.verdict}: {found.reason}")
    if out is not None:
        typer.echo(f"page     {out / PAGE}")


def _table(found: Drift) -> Table:
    from rich.table import Table

    from deeprec.release.drift.page import interval_text

    table = Table(title="Drift", title_justify="left")
    for place, column in enumerate(("figure", "value", "95 % interval", "limit", "users", "verdict", "why")):
        table.add_column(column, justify="right" if 0 < place < 5 else "left")
    for one in found.figures:
        value = "–" if one.value is None else f"{one.value:.3f}"
        table.add_row(one.name, value, interval_text(one), one.rule, f"{one.users:,}", one.state, one.why)
    return table
