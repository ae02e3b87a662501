"""``deeprec run``: the training pipeline on this machine, from data to a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprec.cli.output import end_on_sigterm
from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

COLUMNS = ("recall@10", "ndcg@10", "valid_rate", "mean_calls", "candidate_recall")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    config: Annotated[str, typer.Option("--config", "-c", help=CONFIG_HELP)] = "quickstart",
    override: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)] = None,
    workdir: Annotated[Path | None, typer.Option("--workdir", help="Default: runs/NAME, NAME from the file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished task.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the tasks' logs as they come.")] = False,
) -> None:
    """Run the training pipeline on this machine.

    Examples:

    `deeprec run`

    `deeprec run --config configs/ml-1m.yaml --set data.path=ml-1m`

    `deeprec run --config quickstart --set policy.stage2.steps=10 --workdir runs/try --resume`

    Exit status: 0 done, 1 a gate did not pass or a task failed, 2 bad input.
    """
    settings = read_config(config, override)

    from rich.console import Console

    from deeprec.pipelines.progress import Display
    from deeprec.pipelines.run import run_training
    from deeprec.pipelines.training import TASKS

    end_on_sigterm()
    console = Console(file=sys.stdout)
    place = workdir or Path("runs") / settings.name
    console.print(f"[bold]{settings.name}[/] in {place}", highlight=False)
    with Display(TASKS, console, verbose=verbose) as display:
        result = run_training(settings, place, resume=resume, progress=display)
    console.print(table(result.metrics))
    console.print(step_table(result.metrics))
    console.print(result.metrics["verdict"]["sentence"], highlight=False, soft_wrap=True, markup=False)
    _print_places(console, place, result.metrics)


def table(metrics: Mapping[str, Any], target: str = "Test target") -> Table:
    """The results, one line per recommender that was measured; a measure that does not apply is left blank."""
    from deeprec.evaluation.charts import NAMES

    measured = {**metrics.get("baselines", {}), **metrics.get("policy", {})}
    shown = _narrow(f"{target}, {metrics.get('users_evaluated', '?')} users, full ranking", COLUMNS)
    for name, title in NAMES.items():
        values = measured.get(name)
        if values:
            shown.add_row(title, *(f"{values[column]:.4f}" if column in values else "" for column in COLUMNS))
    return shown


def step_table(metrics: Mapping[str, Any]) -> Table:
    """What each step gives: paired differences in NDCG@10, and what the TRM and the policy took to make."""
    from deeprec.evaluation.charts import NAMES

    everything, policy = (metrics["minutes"][name] for name in ("trm_everything", "policy"))
    shown = _narrow("What each step gives on the same users, with 95 % intervals", ("ndcg@10", "low", "high"))
    shown.caption = f"minutes of making: TRM trained on everything {everything:.1f}, policy with its TRM {policy:.1f}"
    for pair, found in metrics["steps"].items():
        first, second = pair.split("_minus_")
        value = found["ndcg@10"]
        figures = (f"{value[part]:+.4f}" for part in ("mean", "low", "high"))
        shown.add_row(f"{NAMES[first]} − {NAMES[second]}", *figures)
    return shown


def _narrow(title: str, columns: Sequence[str]) -> Table:
    """A table in which nothing wraps; both of a run fit a terminal of 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("", no_wrap=True)
    for column in columns:
        shown.add_column(column.replace("_", "\n"), justify="right", vertical="bottom", no_wrap=True)
    return shown


def _print_places(console: Console, place: Path, metrics: Mapping[str, Any]) -> None:
    minutes, rest = divmod(round(metrics["seconds"]["total"]), 60)
    served = "the policy" if metrics["verdict"]["serve"] == "policy" else "the TRM alone"
    lines = (
        f"report   {place / 'report.html'}",
        f"figures  {place / 'metrics.json'}",
        f"took     {minutes} min {rest} s, at most {_peak_memory():.1f} GB in one process",
        f"bundle   {place / 'bundle'} (serves {served})",
        f"serve    deeprec serve recommender {place}",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _peak_memory() -> float:
    """Largest resident set of any task's process so far, in GB (10⁹ bytes); cached tasks do not count."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
