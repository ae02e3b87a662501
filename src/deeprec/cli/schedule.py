"""``deeprec schedule``: training runs that begin by themselves, as a recurring run on KFP's server."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.output import say
from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config
from deeprec.errors import ConfigError

if TYPE_CHECKING:
    from deeprec.config import Config, ScheduleConfig
    from deeprec.release.cron import Cron
    from deeprec.release.kfp_server import KfpServer, RecurringRun
    from deeprec.release.schedule import Rule

app = typer.Typer(
    help="Let training runs begin by themselves, on a Kubeflow Pipelines server.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

ConfigOption = Annotated[str, typer.Option("--config", "-c", help=CONFIG_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; read from the server only.")]

DONE = {"make": "made", "enable": "enabled", "pause": "paused", "delete": "deleted"}
TIME = "%a %Y-%m-%d %H:%M %Z"


@app.command("set")
def set_schedule(config: ConfigOption = "cluster", override: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Let KFP run the pipeline of this configuration when `schedule.cron` says; run again, it changes what differs.

    The compiled pipeline is uploaded where the server has no version with these contents, and the recurring run
    `schedule.name` is pinned to it. One run at a time; ticks that were missed are not caught up; each run reads the
    data anew. A schedule that was paused stays paused.

    Examples:

    `deeprec schedule set --config my.yaml --dry-run`

    `deeprec schedule set --config my.yaml --set schedule.cron="30 2 * * 1-5" --set schedule.timezone=Asia/Tokyo`
    """
    settings = read_config(config, override)

    from deeprec.pipelines import training
    from deeprec.release.kfp_server import Order
    from deeprec.release.schedule import EACH_TICK, content_name, to_set

    section = settings.schedule
    meant, told = _crons(section)
    with tempfile.TemporaryDirectory(prefix="deeprec-") as folder:
        file = Path(folder) / "pipeline.yaml"
        training.compile(settings, file)
        server, version = _server(settings), content_name(file)
        found = server.find_version(section.name, version)
        if found is None:
            if not dry_run:
                found = server.upload(file, section.name, version)
            say(f"{'would upload' if dry_run else 'uploaded'} version {version} of the pipeline {section.name}")
    order = Order(str(told), *(found or ("", "")), EACH_TICK)
    _carry_out(server, section.name, to_set(order, told), dry_run)
    if not dry_run and not any(one.enabled for one in server.recurring(section.name)):
        say(f"{section.name} is paused; deeprec schedule resume lets it go on")
    _tell(meant, section)


@app.command()
def show(config: ConfigOption = "cluster", override: SetOption = None) -> None:
    """Say what the server has: enabled or paused, when in words, the next three ticks, the pipeline's version.

    Example: `deeprec schedule show --config my.yaml`
    """
    settings = read_config(config, override)
    section, server = settings.schedule, _server(settings)
    _, told = _crons(section)
    found = server.recurring(section.name)
    if not found:
        say(f"no schedule {section.name} on {server.host}; make it with deeprec schedule set")
    for one in found:
        _tell_found(server, one, section)
        if one.order.cron != str(told):
            say(f"  the configuration says {section.cron!r} in {section.timezone}; deeprec schedule set changes it")
    if len(found) > 1:
        say(f"{len(found)} of one name: a command was killed; deeprec schedule set leaves one")


@app.command()
def pause(config: ConfigOption = "cluster", override: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Let no further runs begin; those that have begun go on.

    Example: `deeprec schedule pause --config my.yaml`
    """
    from deeprec.release.schedule import to_pause

    settings = read_config(config, override)
    _carry_out(_server(settings), settings.schedule.name, to_pause, dry_run)


@app.command()
def resume(config: ConfigOption = "cluster", override: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Let runs begin again after a pause, from the next tick on.

    Example: `deeprec schedule resume --config my.yaml`
    """
    from deeprec.release.schedule import to_resume

    settings = read_config(config, override)
    _carry_out(_server(settings), settings.schedule.name, to_resume, dry_run)


@app.command()
def remove(config: ConfigOption = "cluster", override: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Delete the schedule; its runs, and the pipeline with its versions, stay.

    Example: `deeprec schedule remove --config my.yaml --dry-run`
    """
    from deeprec.release.schedule import to_remove

    settings = read_config(config, override)
    _carry_out(_server(settings), settings.schedule.name, to_remove, dry_run)


def _server(settings: Config) -> KfpServer:
    from deeprec.release.kfp_server import KfpServer

    return KfpServer(settings.schedule.host, settings.schedule.namespace)


def _crons(section: ScheduleConfig) -> tuple[Cron, Cron]:
    """The cron as it is meant, and as the server has to be told."""
    from deeprec.release.cron import Cron

    meant = Cron.read(section.cron, section.timezone)
    return meant, meant.told_to(section.server_timezone, datetime.now(UTC))


def _carry_out(server: KfpServer, name: str, rule: Rule, dry_run: bool) -> None:
    from deeprec.release.schedule import foretell, settle

    idle = True
    for step in foretell(server, name, rule) if dry_run else settle(server, name, rule):
        idle = False
        say(f"would {step.told()}" if dry_run else DONE[step.kind] + step.told().removeprefix(step.kind))
    if idle:
        paused = [one for one in server.recurring(name) if not one.enabled]
        say(f"nothing to do for {name}" + (", which is paused" if paused else ""))


def _tell(meant: Cron, section: ScheduleConfig) -> None:

    ticks = ", ".join(tick.strftime(TIME) for tick in meant.next_ticks(datetime.now(UTC)))
    say(f"{section.name}: {meant.words()}; next {ticks}")


def _tell_found(server: KfpServer, one: RecurringRun, section: ScheduleConfig) -> None:
    from zoneinfo import ZoneInfo

    from deeprec.release.cron import Cron
    from deeprec.release.kfp_server import NotThere

    try:
        version = f"version {server.version_name(one.order)}"
    except NotThere:
        version = "a version that was deleted"
    say(f"{section.name}: {'enabled' if one.enabled else 'paused'}, {version}, {one.id}")
    try:
        cron, zone = Cron.read(one.order.cron, section.server_timezone), ZoneInfo(section.timezone)
    except ConfigError:
        say(f"  {one.order.cron or 'by an interval'}, which deeprec schedule did not make")
        return
    ticks = ", ".join(f"{tick.astimezone(zone):{TIME}}" for tick in cron.next_ticks(datetime.now(UTC)))
    say(f"  {cron.words()}; next {ticks}")
