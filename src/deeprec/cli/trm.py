"""``deeprec trm``: train the preference-aware TRM alone, measure it, ask it, and give it new items.

TRM, wherever it is asked, is a TRM artifact's directory, or a bundle by any of its addresses. Items are named by id or
title.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprec.cli.output import end_on_sigterm, print_json, print_tables, say
from deeprec.cli.places import part_at
from deeprec.cli.profiles import SET_HELP, pair, read_config

if TYPE_CHECKING:
    from rich.table import Table

    from deeprec.trm.asking import ItemNames
    from deeprec.trm.evaluation import Evaluation
    from deeprec.trm.recommender import Recommendation, TrmRecommender
    from deeprec.types import Catalogue, Item

app = typer.Typer(
    name="trm",
    help="Train the TRM alone, measure it, ask it for recommendations, and give it new items.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
Place = Annotated[
    str, typer.Argument(metavar="TRM", help="A TRM's directory, a bundle's or a run's, or SHELF@VERSION.")
]
NEWEST = 8
"""Items of a history shown."""


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Directory of the dataset, for example data/sample.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the TRM to write.")],
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", help="YAML file or profile (ml-1m, …) whose sections trm, text and seed are used."
        ),
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
    standalone: Annotated[
        bool,
        typer.Option(
            "--standalone/--for-policy",
            help="Train on all before the validation item, or leave out the policy's targets as the pipeline does.",
        ),
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with a training that was killed, or begin again.")
    ] = True,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write an HTML report of the validation.")
    ] = None,
) -> None:
    """Train a TRM on a dataset.

    By default it is a stand-alone recommender, whose figures compare with those of papers; only one trained with
    `--for-policy` may serve a policy that is trained on the same data. A training that was killed goes on when the same
    command is given again: its state is in `OUT.checkpoint`. With `--set trm.continue_from=BUNDLE` it begins with the
    weights of a bundle's TRM.

    Examples:

    `deeprec trm train data/sample --out models/trm`

    `deeprec trm train data/ml-1m --out models/ml-1m --config ml-1m --set trm.epochs=30 --report models/ml-1m.html`
    """
    settings = read_config(config, override)
    from deeprec.bundle.former import former_trm
    from deeprec.trm.run import checkpoint_path, train_directory

    end_on_sigterm()
    if resume and checkpoint_path(out).is_dir():
        typer.echo(f"going on with the training in {checkpoint_path(out)}; --fresh begins again")
    metrics = train_directory(
        dataset,
        settings.trm,
        settings.text,
        settings.seed,
        out,
        standalone=standalone,
        fresh=not resume,
        begin=former_trm(settings.trm),
        progress=say,
    )
    print_tables(_measured(metrics))
    if report is not None:
        from deeprec.trm.evaluation import evaluate_trm

        evaluate_trm(out, dataset, report)
        typer.echo(f"report   {report}")
    typer.echo(f"TRM      {out}")
    typer.echo(f"ask it   {_example(out)}")


@app.command()
def evaluate(
    trm: Place,
    dataset: Annotated[Path, typer.Argument(help="Directory of the dataset it was trained on.")],
    split: Annotated[
        str, typer.Option("--split", help="`validation`, or `test`: the last item, which no choice may depend on.")
    ] = "validation",
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write an HTML report, and the figures as JSON beside it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a TRM beside popularity: full ranking of the catalogue, what a user has had excluded.

    The history ends just before the item to find, so for the test target it holds the validation item.

    Examples:

    `deeprec trm evaluate models/trm data/sample --report trm.html`

    `deeprec trm evaluate models/trm data/sample --split test --json`
    """
    from typing import cast

    from deeprec.trm.evaluation import Split, evaluate_trm

    found = evaluate_trm(part_at(trm, "trm"), dataset, report, cast(Split, split))
    if as_json:
        print_json({"split": split, **found.to_json()})
        return
    print_tables(*_evaluated(found, split))
    if report is not None:
        typer.echo(f"report   {report}")
        typer.echo(f"figures  {report.with_suffix('.json')}")


@app.command()
def recommend(
    trm: Place,
    user: Annotated[str | None, typer.Option("--user", help="A user of the dataset; needs --dataset.")] = None,
    dataset: Annotated[Path | None, typer.Option("--dataset", help="Directory that holds the user's history.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", help="Titles or ids, oldest first, separated by `;`; repeatable.", metavar="TITLES"),
    ] = None,
    preference: Annotated[str, typer.Option("--preference", "-p", help="Phrases separated by `;`.")] = "",
    k: Annotated[int, typer.Option("-k", help="Number of items.", min=1)] = 10,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Condition that every item satisfies; repeatable.", metavar="CONDITION"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Titles or ids that are not wanted, as in --history.", metavar="TITLES"),
    ] = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Also items of the history.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend for a user, for a history given by titles, for a preference alone, or for a history and a preference.

    With none of them, the most popular items. A title that holds a `;` itself is understood.

    Examples:

    `deeprec trm recommend models/trm --user u0001 --dataset data/sample`

    `deeprec trm recommend models/ml-1m --history "Toy Story (1995); Heat (1995)" --preference "comedy; 1990s" -k 5`

    `deeprec trm recommend models/ml-1m --preference western --filter "year >= 1960" --filter "genres != Comedy"`
    """
    from deeprec.errors import ConfigError
    from deeprec.trm.asking import parse_preference
    from deeprec.trm.recommender import TrmRecommender

    if user is not None and dataset is None:
        raise ConfigError(f"--user {user} needs the dataset that holds the user's history; add --dataset DIRECTORY")
    if user is not None and history:
        raise ConfigError("--user and --history are both given; give one of them")
    loaded = TrmRecommender.load(part_at(trm, "trm"))
    seen = _of_user(loaded, user, dataset) if user is not None and dataset is not None else _named(loaded, history)
    barred = _named(loaded, exclude)
    phrases = parse_preference(preference)
    found = loaded.recommend(seen, phrases, k, filters=filters or (), exclude=barred, allow_seen=allow_seen)
    if as_json:
        print_json({"history": list(seen), "preference": list(phrases), "items": [_row(item) for item in found]})
        return
    if seen:
        print_tables(_history(loaded, seen, f"history of {user}" if user is not None else "history"))
    for note in _notes(loaded, seen, phrases, found):
        typer.echo(note)
    print_tables(_recommended(found, _title(seen, phrases)))


@app.command()
def similar(
    trm: Place,
    item: Annotated[str, typer.Argument(help="Title or id.")],
    k: Annotated[int, typer.Option("-k", help="Number of items.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Items most similar to one item.

    Examples: `deeprec trm similar models/ml-1m "Toy Story (1995)"`, `deeprec trm similar models/trm i0001 -k 5`
    """
    from deeprec.trm.recommender import TrmRecommender

    loaded = TrmRecommender.load(part_at(trm, "trm"))
    found = loaded.similar(item, k)
    if as_json:
        print_json({"items": [_row(one) for one in found]})
        return
    print_tables(_recommended(found, f"similar to {loaded.catalogue[loaded.names.resolve([item])[0]].title}"))


@app.command("add-items")
def add_items(
    trm: Annotated[Path, typer.Argument(metavar="TRM", help="Directory of a TRM.")],
    items: Annotated[Path, typer.Argument(help="New items: .csv, .tsv, .parquet or .jsonl.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the TRM to write.")],
    column: Annotated[
        list[str] | None, typer.Option("--column", help="OURS=THEIRS, for example item_id=sku; repeatable.")
    ] = None,
) -> None:
    """Make new items retrievable without training, from their texts alone.

    The file has `item_id`, `title` and the catalogue's attribute columns; phrases are made as at the import. Items are
    added to a bundle by `deeprec bundle extend`.

    Examples:

    `deeprec trm add-items models/ml-1m new.csv --out models/ml-1m-2 --column item_id=movieId`
    """
    from deeprec.data.catalogue import read_catalogue
    from deeprec.store import read_artifact
    from deeprec.trm.extend import extend_trm

    read_artifact(trm, "trm", verify=False)
    catalogue = read_catalogue(trm)
    extended = extend_trm(trm, read_new_items(items, catalogue, column), out).catalogue
    say_added(catalogue, extended, "", out)


def read_new_items(items: Path, catalogue: Catalogue, column: Sequence[str] | None) -> list[Item]:
    """The items of a file, whose columns ``--column`` names.

    Raises:
        ConfigError, DataError: an option or the file cannot be read.
    """
    from deeprec.data.items import read_items

    return list(read_items(items, catalogue, dict(pair(text, "--column", "item_id=sku") for text in column or ())))


def say_added(catalogue: Catalogue, extended: Catalogue, why: str, out: Path) -> None:
    """What was added, how it can be found, what is served (``why``) and where it is."""
    added = extended.items[len(catalogue) :]
    phrases = sorted(set(extended.phrases) - set(catalogue.phrases))
    named = f"{added[0].title!r} ({added[0].item_id})"
    noun = "item" if len(added) == 1 else "items"
    typer.echo(f"added {len(added):,} {noun} to {len(catalogue):,}, for example {named}")
    if not any(item.phrases for item in added):
        typer.echo("none of them has a phrase; preferences find them by their titles and attributes only")
    if phrases:
        more = f" and {len(phrases) - NEWEST:,} more" if len(phrases) > NEWEST else ""
        typer.echo(f"new phrases: {'; '.join(phrases[:NEWEST])}{more}")
    typer.echo(f"written: {out}")
    if why:
        typer.echo(why)


# -------------------------------------------------------------------------------------------------------- who asks


def _named(loaded: TrmRecommender, texts: Sequence[str] | None) -> tuple[str, ...]:
    names: ItemNames = loaded.names
    return tuple(item for text in texts or () for item in names.split(text))


def _of_user(loaded: TrmRecommender, user: str, place: Path) -> tuple[str, ...]:
    from deeprec.data.dataset import read_dataset
    from deeprec.errors import DataError

    sequences = read_dataset(place).sequences
    if user not in sequences:
        some = ", ".join(list(sequences)[:3])
        raise DataError(f"{place} has no user {user!r}; it has {len(sequences):,}, for example {some}")
    known = tuple(item for item in sequences[user] if item in loaded.catalogue)
    if len(known) < len(sequences[user]):
        typer.echo(f"{len(sequences[user]) - len(known)} items of the history are unknown to the TRM", err=True)
    return known


def _notes(
    loaded: TrmRecommender, seen: Sequence[str], phrases: Sequence[str], found: Sequence[Recommendation]
) -> list[str]:
    known = set(loaded.catalogue.phrases)
    notes = [f"{phrase!r} is no phrase of the catalogue, so it is read as free text" for phrase in phrases]
    notes = [note for note, phrase in zip(notes, phrases, strict=True) if phrase not in known]
    if not seen and not phrases:
        notes.append("no history and no preference: the most popular items")
    if not found:
        notes.append("exclusion and filters leave no item")
    return notes


def _example(trm: Path) -> str:
    """A command that asks this TRM, for an item and a phrase it knows."""
    import shlex

    from deeprec.data.catalogue import read_catalogue

    item = read_catalogue(trm).items[0]
    words = ["deeprec", "trm", "recommend", str(trm), "--history", item.title]
    return shlex.join([*words, "--preference", item.phrases[0]] if item.phrases else words)


# --------------------------------------------------------------------------------------------------------- printing


def _row(item: Recommendation) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(item)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left")


def _filled(title: str, content: tuple[Sequence[str], Sequence[Sequence[str]]]) -> Table:
    from rich.markup import escape

    header, rows = content
    table = _table(title, *header)
    for place, column in enumerate(table.columns):
        column.justify = "right" if place and rows and rows[0][place][0].isdigit() else "left"
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _history(loaded: TrmRecommender, seen: Sequence[str], name: str) -> Table:
    from rich.markup import escape

    table = _table(f"{escape(name)}: {len(seen):,} items, newest first", "title", "phrases")
    for item_id in list(reversed(seen))[:NEWEST]:
        item = loaded.catalogue[item_id]
        table.add_row(escape(item.title), escape(", ".join(item.phrases)))
    return table


def _recommended(found: Sequence[Recommendation], title: str) -> Table:
    from rich.markup import escape

    table = _table(escape(title), "rank", "title", "score", "phrases")
    for item in found:
        table.add_row(str(item.rank), escape(item.title), f"{item.score:.2f}", escape(", ".join(item.phrases)))
    return table


def _title(seen: Sequence[str], phrases: Sequence[str]) -> str:
    if phrases:
        return f"recommended, preference: {'; '.join(phrases)}"
    return "recommended" if seen else "most popular"


def _measured(metrics: dict[str, float]) -> Table:
    names = ("ndcg@10", "recall@10", "recall@20", "half_preference_recall@20", "popularity_ndcg@10")
    rows = [(name, f"{metrics[name]:.4f}") for name in names if name in metrics]
    return _filled("validation target, full ranking", (("figure", "value"), rows))


def _evaluated(found: Evaluation, split: str) -> list[Table]:
    from deeprec.trm.report import accuracy_rows, group_rows, preference_rows

    return [
        _filled(f"{split} target, {found.users:,} users, full ranking", accuracy_rows(found)),
        _filled("with a preference", preference_rows(found)),
        _filled("by popularity of the target", group_rows("training interactions", found.by_popularity)),
        _filled("by length of the history", group_rows("items", found.by_history)),
    ]
