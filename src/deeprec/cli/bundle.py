"""``deeprec bundle …``: look at a bundle, put it on a shelf, and move what serves forth and back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprec.cli.output import print_json
from deeprec.cli.places import find_bundle

if TYPE_CHECKING:
    from deeprec.bundle.bundle import Bundle
    from deeprec.bundle.shelf import Move, Shelf, Shelved
    from deeprec.types import JsonDict

BUNDLE_HELP = "A bundle's directory, a run's, a shelf (its live version) or SHELF@VERSION."
SHELF_HELP = "A shelf: a directory or s3://bucket/prefix."

app = typer.Typer(help="Publish, promote and roll back bundles.", no_args_is_help=True, rich_markup_mode="markdown")
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP)]
ShelfArgument = Annotated[str, typer.Argument(metavar="SHELF", help=SHELF_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Say what a bundle holds, what it serves and why.

    Examples:

    `deeprec bundle inspect runs/quickstart`

    `deeprec bundle inspect s3://models/shop@0123456789abcdef --json`
    """
    from deeprec.bundle.opening import open_bundle

    found = open_bundle(find_bundle(bundle), lambda serve: ())
    if as_json:
        print_json({"version": found.version, "serve": found.serve, "info": dict(found.info), "metrics": found.metrics})
        return
    for name, value in _facts(found):
        typer.echo(f"{name:9} {value}")


@app.command()
def verify(bundle: BundleArgument) -> None:
    """Compare every file of a bundle with its hash, and its parts with one another.

    Exit status: 0 all is as it was written, 2 it is not, and the message says where.

    Examples:

    `deeprec bundle verify runs/quickstart/bundle`

    `deeprec bundle verify s3://models/shop`
    """
    from deeprec.bundle.opening import open_bundle

    found = open_bundle(find_bundle(bundle))
    typer.echo(f"bundle {found.version} is whole: its index and {', '.join(sorted(found.parts))}")


@app.command()
def push(
    bundle: BundleArgument,
    shelf: ShelfArgument,
    serve: Annotated[
        str | None, typer.Option("--serve", help="policy or trm: publish the same parts under this decision.")
    ] = None,
) -> None:
    """Put a bundle on a shelf and let `candidate` name it; what serves stays. The last line is the version alone.

    What is there is not written again. With `--serve trm` the same parts are another version: the emergency brake.

    Examples:

    `deeprec bundle push runs/shop/bundle s3://models/shop`

    `deeprec bundle push s3://models/shop s3://models/shop --serve trm`
    """
    from deeprec.bundle.opening import open_bundle
    from deeprec.bundle.shelf import Shelf
    from deeprec.errors import ConfigError

    if serve not in (None, "policy", "trm"):
        raise ConfigError(f"--serve is {serve!r}; write policy or trm")
    opened = open_bundle(find_bundle(bundle))
    place = Shelf.make(shelf)
    pushed = place.push(opened, serve)  # type: ignore[arg-type]
    done = "written" if pushed.written else "was there already"
    typer.echo(f"{done} on {place.address}; candidate names it, promote it with:")
    typer.echo(f"deeprec bundle promote {place.address} {pushed.version}")
    typer.echo(pushed.version)


@app.command("list")
def list_versions(shelf: ShelfArgument, as_json: JsonOption = False) -> None:
    """Show a shelf's versions, the newest first: which are live and candidate, what they serve, their figures and age.

    Examples:

    `deeprec bundle list runs/quickstart/shelf`

    `deeprec bundle list s3://models/shop --json`
    """
    from deeprec.bundle.shelf import POINTERS

    place = _shelf(shelf)
    found = place.versions()
    if as_json:
        moves = {name: [vars(move) for move in place.moves(name)] for name in POINTERS}
        print_json({"shelf": place.address, "versions": [_row(one) for one in found], "moves": moves})
        return
    if not found:
        typer.echo(f"the shelf {place.address} has no version yet")
    for one in found:
        row = _row(one)
        names = ", ".join(row["pointers"]) or "-"
        figures = " ".join(f"{name} {value:.4f}" for name, value in row["ndcg@10"].items())
        typer.echo(
            f"{row['version']}  {names:16} serves {row['serve']:6}  NDCG@10 {figures}  {_age(row['created'])} old"
        )


@app.command()
def promote(
    shelf: ShelfArgument, version: Annotated[str, typer.Argument(metavar="VERSION", help="A version on the shelf.")]
) -> None:
    """Let `live`, which servers follow, name a version. It is moved only if nobody else moves it meanwhile.

    Examples:

    `deeprec bundle promote runs/quickstart/shelf 0123456789abcdef`

    `deeprec bundle promote s3://models/shop 0123456789abcdef`
    """
    _say(_shelf(shelf), _shelf(shelf).promote(version))


@app.command()
def rollback(shelf: ShelfArgument) -> None:
    """Let `live` name the version that served before the one that does now was promoted.

    Examples:

    `deeprec bundle rollback runs/quickstart/shelf`

    `deeprec bundle rollback s3://models/shop`
    """
    _say(_shelf(shelf), _shelf(shelf).rollback())


@app.command()
def extend(
    bundle: BundleArgument,
    items: Annotated[Path, typer.Argument(metavar="ITEMS", help="CSV, JSON lines or Parquet of new items.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the new bundle; absent or empty.")],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="What the file calls a column, such as item_id=sku."),
    ] = None,
) -> None:
    """Write a bundle with new items, which its TRM finds at once by what they are; a new version.

    A policy that cannot write a new title does not serve; the bundle then serves its TRM, and says so.

    Examples:

    `deeprec bundle extend runs/quickstart new.jsonl --out runs/quickstart-2`

    `deeprec bundle extend s3://models/shop new.csv --out shop-2 --column item_id=sku`
    """
    from deeprec.bundle.opening import open_bundle
    from deeprec.bundle.publish import extend_bundle
    from deeprec.cli.places import check_absent
    from deeprec.cli.trm import read_new_items, say_added

    check_absent(out)
    opened = open_bundle(find_bundle(bundle))
    new = read_new_items(items, opened.catalogue, column)
    written = extend_bundle(opened, new, out)
    say_added(opened.catalogue, written.catalogue, f"bundle {written.version}: {written.why}", out)


def _shelf(address: str) -> Shelf:
    from deeprec.bundle.shelf import Shelf

    return Shelf(address)


def _say(shelf: Shelf, move: Move) -> None:
    if move.before == move.after:
        typer.echo(f"live of {shelf.address}: {move.after} already")
    else:
        typer.echo(f"live of {shelf.address}: from {move.before or 'nothing'} to {move.after}")


def _facts(found: Bundle) -> list[tuple[str, str]]:
    figures = _headline(found.metrics)
    users = found.metrics.get("users_evaluated")
    return [
        ("version", found.version),
        ("serves", f"{found.serve}: {found.why}"),
        ("made", f"{found.info.get('created')}, {_age(str(found.info.get('created')))} ago"),
        ("catalogue", f"{len(found.catalogue):,} items, {len(found.catalogue.phrases):,} phrases"),
        ("encoder", found.text_identity),
        ("NDCG@10", ", ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "not measured"),
        *([("measured", f"on {users:,} users")] if users else []),
        ("parts", ", ".join(f"{name} {digest[:12]}" for name, digest in found.info["parts"].items())),
    ]


def _row(one: Shelved) -> JsonDict:
    return {
        "version": one.version,
        "pointers": list(one.pointers),
        "serve": one.info.get("serve"),
        "why": one.info.get("why"),
        "ndcg@10": _headline(one.metrics),
        "created": one.info.get("created"),
    }


def _headline(metrics: Any) -> dict[str, float]:
    policy, trm = metrics.get("policy", {}).get("stage2"), metrics.get("baselines", {}).get("trm")
    return {name: found["ndcg@10"] for name, found in (("policy", policy), ("trm", trm)) if found}


def _age(created: str) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except ValueError:
        return "unknown"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
