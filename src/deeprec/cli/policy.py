"""``deeprec policy``: build the policy, teach it the protocol, train its two stages, and measure it, step by step.

The pipeline does the same in one run (``deeprec run``). Here every part is named, or taken from a run with ``--run``;
the text encoder is always the one the TRM was trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.output import end_on_sigterm, print_json, print_tables, say
from deeprec.cli.places import RUN_HELP, Workshop, check_absent, part_at, text_of
from deeprec.cli.profiles import SET_HELP
from deeprec.cli.trainjob import trainjob
from deeprec.store import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from deeprec.config import Config
    from deeprec.evaluation.single import PolicyEvaluation

app = typer.Typer(
    name="policy",
    help="Build the policy, warm-start it, train its two stages, and measure it, step by step.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command()(trainjob)
Run = Annotated[Path | None, typer.Option("--run", help=RUN_HELP)]
Data = Annotated[Path | None, typer.Option("--dataset", help="Directory of the dataset.")]
Trm = Annotated[
    str | None, typer.Option("--trm", help="A TRM trained `--for-policy`: its directory, a bundle's, or SHELF@VERSION.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to write; must not exist yet.")]
Settings = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="YAML file or profile whose sections policy, explore, rewards and seed are used."
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)]


@app.command()
def init(
    out: Out,
    dataset: Data = None,
    trm: Trm = None,
    run: Run = None,
    config: Settings = None,
    override: Overrides = None,
) -> None:
    """Build the start policy: the tiny one from the catalogue and the TRM, or a language model by name or path.

    The tiny policy knows the titles and nothing of the protocol yet; `deeprec policy warm-start` teaches it. A language
    model is told the protocol by its prompt.

    Examples:

    `deeprec policy init --run runs/quickstart --out models/init`

    `deeprec policy init --dataset data/ml-1m --trm models/trm --config ml-1m --out models/init`

    `deeprec policy init --run runs/ml-1m --out models/qwen --set policy.model=Qwen/Qwen2.5-0.5B-Instruct --set
    explore.prompt=full`
    """
    shop = Workshop.open(run)
    settings = shop.config(config, override)
    where = _world(shop, dataset, trm)
    check_absent(out)
    from deeprec.config import HistoriesConfig
    from deeprec.policy.build import build_policy

    bare = settings.policy.warm_start.model_copy(update={"trajectories": 0, "histories": HistoriesConfig(passes=0)})
    policy = settings.policy.model_copy(update={"warm_start": bare})
    figures = build_policy(*where, policy, settings.explore, text_of(where[1]), settings.seed, out, progress=say)
    print_tables(_figures("start policy", figures))
    typer.echo(f"policy   {out}")


@app.command("warm-start")
def warm_start(
    out: Out,
    policy: Annotated[Path | None, typer.Option("--policy", help="Directory of the policy to start from.")] = None,
    dataset: Data = None,
    trm: Trm = None,
    run: Run = None,
    config: Settings = None,
    override: Overrides = None,
) -> None:
    """Teach a tiny policy the protocol: supervised learning on trajectories of the scripted explorer.

    `--policy` is what `deeprec policy init` wrote.

    Examples:

    `deeprec policy warm-start --policy models/init --run runs/quickstart --out models/start`

    `deeprec policy warm-start --policy models/init --dataset data/ml-1m --trm models/trm --config ml-1m --out
    models/start --set policy.warm_start.trajectories=8000`
    """
    shop = Workshop.open(run)
    start = _required(policy, "--policy", "what `deeprec policy init` wrote")
    settings = shop.config(config, override, start)
    where = _world(shop, dataset, trm)
    check_absent(out)
    from deeprec.policy.build import warm_start_policy

    figures = warm_start_policy(
        *where, start, settings.policy, settings.explore, text_of(where[1]), settings.seed, out, progress=say
    )
    print_tables(_figures("warm start", figures))
    typer.echo(f"policy   {out}")


@app.command()
def train(
    stage: Annotated[int, typer.Option("--stage", min=1, max=2, help="1 teaches to explore, 2 to recommend.")],
    out: Out,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Directory of the policy to train. Default: the run's start, or its stage 1."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Both stages' prompts; if absent chosen by rollouts of `--policy`, which are kept beside them.",
        ),
    ] = None,
    dataset: Data = None,
    trm: Trm = None,
    run: Run = None,
    config: Settings = None,
    override: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with a training that was killed, or begin again.")
    ] = True,
    report: Annotated[
        Path | None, typer.Option("--report", help="HTML report of the stage. Default: OUT.html.")
    ] = None,
) -> None:
    """Train one stage by reinforcement learning, and measure greedy rollouts on validation targets.

    A training that was killed goes on when the same command is given again: its state is in `OUT.checkpoint`. The two
    stages' prompts are disjoint, so give both stages one `--prompts`.

    Examples:

    `deeprec policy train --stage 1 --run runs/quickstart --out models/stage1`

    `deeprec policy train --stage 2 --policy models/stage1 --run runs/quickstart --out models/stage2`

    `deeprec policy train --stage 1 --policy models/start --prompts models/prompts --dataset data/ml-1m --trm models/trm
    --config ml-1m --out models/stage1 --set policy.stage1.steps=10`

    Exit status: 0 done, 1 the stage's gate did not pass (the policy is written), 2 bad input.
    """
    shop = Workshop.open(run)
    start = shop.place("start" if stage == 1 else "stage1", policy, "--policy")
    settings = shop.config(config, override, start)
    where = _world(shop, dataset, trm)
    chosen = shop.place("prompts", prompts, "--prompts")
    check_absent(out)
    end_on_sigterm()
    _choose_prompts(chosen, where, start, settings)
    _train(stage, (*where, start, chosen), settings, out, report or out.with_name(f"{out.name}.html"), resume)


@app.command()
def evaluate(
    policy: Annotated[
        str | None,
        typer.Argument(help="A policy's directory, a bundle's or a run's, or SHELF@VERSION. Default: --run's stage 2."),
    ] = None,
    dataset: Data = None,
    trm: Trm = None,
    run: Run = None,
    config: Settings = None,
    override: Overrides = None,
    split: Annotated[
        str, typer.Option("--split", help="`validation`, or `test`: the last item, which no choice may depend on.")
    ] = "validation",
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="So many users, drawn at random. Default: all.")
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Rollouts to print.")] = 2,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML page with the figures and rollouts to browse.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a policy beside the TRM alone and popularity: greedy, full ranking, an invalid answer counts as a miss.

    Nothing is written but the page that `--report` names.

    Examples:

    `deeprec policy evaluate --run runs/quickstart --users 200`

    `deeprec policy evaluate models/stage1 --run runs/ml-1m --users 1000 --show 0 --report stage1.html`

    `deeprec policy evaluate models/stage2 --dataset data/ml-1m --trm models/trm --split test --json`
    """
    from typing import cast

    from deeprec.evaluation.single import Split, evaluate_policy

    shop = Workshop.open(run)
    place = part_at(policy or shop.place("stage2", None, "POLICY"), "policy")
    settings = shop.config(config, override, place)
    where = _world(shop, dataset, trm)
    found = evaluate_policy(
        *where,
        place,
        settings.explore,
        settings.rewards,
        text_of(where[1]),
        settings.seed,
        split=cast(Split, split),
        users=users,
        read=max(show, settings.evaluation.trajectories if report else 0),
        progress=_nothing if as_json else say,
    )
    if report is not None:
        write_text(report, found.page(f"Policy {place}"))
    if as_json:
        print_json(found.to_json())
        return
    _show(found, show)
    if report is not None:
        typer.echo(f"report   {report}")


@app.command()
def trajectories(
    file: Annotated[Path, typer.Argument(help="`trajectories.parquet` of an evaluation or of rollouts.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML page to write.")],
    dataset: Data = None,
    trm: Trm = None,
    run: Run = None,
    config: Settings = None,
    override: Overrides = None,
) -> None:
    """Write a page to browse kept trajectories: filter by end, reward, calls or text, and read each turn.

    Of a large file `evaluation.trajectories` are chosen, and the page says how.

    Examples:

    `deeprec policy trajectories trajectories.parquet --run runs/quickstart --out page.html`

    `deeprec policy trajectories models/prompts.rollouts/trajectories.parquet --dataset data/ml-1m --trm models/trm
    --config ml-1m --out page.html --set evaluation.trajectories=500`
    """
    from deeprec.evaluation.kept import kept_page

    shop = Workshop.open(run)
    settings = shop.config(config, override)
    where = _world(shop, dataset, trm)
    page, count, total = kept_page(
        file,
        *where,
        settings.explore,
        settings.rewards,
        settings.evaluation.trajectories,
        f"Trajectories of {file.name}",
    )
    write_text(out, page)
    typer.echo(f"page     {out} ({count:,} of {total:,} trajectories)")


# ------------------------------------------------------------------------------------------------------------ parts


def _world(shop: Workshop, dataset: Path | None, trm: str | None) -> tuple[Path, Path]:
    """The dataset and the TRM."""
    return shop.place("dataset", dataset, "--dataset"), part_at(trm or shop.place("trm", None, "--trm"), "trm")


def _required(named: Path | None, option: str, what: str) -> Path:
    from deeprec.errors import ConfigError

    if named is None:
        raise ConfigError(f"{option} is missing; name {what}")
    return named


def _choose_prompts(place: Path, where: tuple[Path, Path], start: Path, settings: Config) -> None:
    """Choose both stages' prompts by difficulty, unless they have been chosen."""
    from deeprec.policy.rollouts import roll_policy_out
    from deeprec.policy.select import select_prompts
    from deeprec.store import MANIFEST

    if (place / MANIFEST).is_file():
        return
    check_absent(place)
    rollouts, seed = place.with_name(f"{place.name}.rollouts"), settings.seed
    text = text_of(where[1])
    roll_policy_out(
        "candidates", *where, start, settings.policy.select, settings.explore, text, seed, rollouts, progress=say
    )
    select_prompts(where[0], rollouts, settings.policy, settings.explore, settings.rewards, seed, place, progress=say)
    typer.echo(f"prompts  {place}")


def _train(
    stage: int, inputs: tuple[Path, Path, Path, Path], settings: Config, out: Path, report: Path, resume: bool
) -> None:
    from deeprec.errors import CheckFailed
    from deeprec.policy.launch import train_stage

    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if not resume:
        _remove(checkpoint)
    elif checkpoint.is_dir():
        typer.echo(f"going on with the training in {checkpoint} if nothing changed; --fresh begins again")
    sections = settings.policy, settings.explore, settings.rewards, text_of(inputs[1])
    name = "stage1" if stage == 1 else "stage2"
    verdict, figures = train_stage(
        name,  # type: ignore[arg-type]
        *inputs,
        *sections,
        settings.seed,
        out,
        report,
        checkpoint,
        progress=say,
    )
    print_tables(_figures(f"stage {stage}, validation target", figures))
    typer.echo(f"report   {report}")
    typer.echo(f"policy   {out}")
    if not verdict.passed:
        raise CheckFailed(f"{verdict.reason} (report: {report})")


def _remove(checkpoint: Path) -> None:
    import shutil

    from deeprec.errors import StoreError

    try:
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
    except OSError as error:
        raise StoreError(f"cannot remove {checkpoint}: {error.strerror}; remove it, or name another --out") from error


# --------------------------------------------------------------------------------------------------------- printing


def _nothing(line: str) -> None:
    """No progress."""


def _figures(title: str, values: dict[str, float]) -> Table:
    from rich.table import Table

    table = Table("figure", "value", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name, value in values.items():
        table.add_row(name, f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}")
    return table


def _show(found: PolicyEvaluation, count: int) -> None:
    from rich.table import Table

    from deeprec.cli.turns import show_trajectory, terminal

    header, rows = found.table()
    table = Table(*header, title=f"{found.split} target, {found.users:,} users, full ranking", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    print_tables(table)
    counted = (("ended", found.ends), ("broken format rules", found.violations))
    for name, counts in counted:
        shown = ", ".join(f"{key} {value:,}" for key, value in counts.items())
        typer.echo(f"{name}: {shown or 'none'}")
    console = terminal()
    for one in found.trajectories[:count]:
        show_trajectory(console, one)
