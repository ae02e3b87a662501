"""``deeprec features``: the tables of a feature place, and the publications in it."""

from __future__ import annotations

from typing import Annotated

import typer

from deeprec.cli.places import place_at

PLACE_HELP = "A feature place: its directory, or a configuration file whose section `features` names it."
PlaceArgument = Annotated[str, typer.Argument(metavar="PLACE", help=PLACE_HELP)]

app = typer.Typer(
    help="Make the tables of a feature place, list and sweep its publications.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def migrate(place: PlaceArgument) -> None:
    """Make a place's tables, or move them on to this version of deeprec. Servers and pipelines only look at them.

    Examples:

    `deeprec features migrate cluster.yaml`

    `deeprec features migrate runs/shop/features`
    """
    opened = place_at(place)
    before, after = opened.migrate()
    opened.close()
    told = "are" if before == after else "were made;" if before == "none" else f"were moved on from {before};"
    typer.echo(f"the tables of {opened.name} {told} of version {after}")


@app.command("list")
def list_publications(place: PlaceArgument) -> None:
    """Say what is published in a place, the newest first.

    Example: `deeprec features list runs/quickstart/features`
    """
    from rich.console import Console
    from rich.table import Table

    opened = place_at(place)
    found = opened.publications()
    opened.close()
    table = Table("publication", "made", "users", "items", "history", title=opened.name, title_justify="left")
    for one in found:
        kept = f"{one.history_length:,} newest, {one.repeats} of repeats"
        table.add_row(one.name, one.made[:19], f"{one.users:,}", f"{one.items:,}", kept)
    Console().print(table)


@app.command()
def sweep(
    place: PlaceArgument,
    shelf: Annotated[list[str], typer.Option("--shelf", help="A shelf whose bundles use the place; name them all.")],
    grace_hours: Annotated[float, typer.Option(min=0, help="Keep what is younger, whoever names it.")] = 24,
) -> None:
    """Remove the publications that no shelf's `live`, `candidate` or last `live` names; the newest stays.

    A run that pushes its bundle does so by itself, for what older bundles of its shelf were made with. This removes
    what failed runs left too, so name every shelf whose bundles use the place.

    Examples:

    `deeprec features sweep runs/shop/features --shelf runs/shop/shelf`

    `deeprec features sweep cluster.yaml --shelf s3://models/shop --shelf s3://models/outlet`
    """
    from deeprec.bundle.shelf import Shelf

    used = {name for address in shelf for name in Shelf(address).publications()[0]}
    opened = place_at(place)
    removed, left = opened.sweep(used, grace_hours * 3600), len(opened.publications())
    opened.close()
    for name in removed:
        typer.echo(f"removed {name}")
    typer.echo(f"{len(removed)} removed, {left} left in {opened.name}")
