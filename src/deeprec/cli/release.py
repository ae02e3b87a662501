"""``deeprec release …``: a bundle's version to users on KServe, canary first, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deeprec.cli.output import end_on_sigterm, print_json, print_tables, say
from deeprec.cli.profiles import CONFIG_HELP, SET_HELP, read_config
from deeprec.errors import ArtifactError, ConfigError, ReleaseError

if TYPE_CHECKING:
    from deeprec.bundle.shelf import Shelf
    from deeprec.config import Config
    from deeprec.release.cluster import Cluster
    from deeprec.release.protocol import Release
    from deeprec.release.record import Record
    from deeprec.types import JsonDict

app = typer.Typer(
    help="Let a bundle serve on KServe: canary, smoke test, ramp, promotion, and back.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
VersionArgument = Annotated[
    str | None, typer.Argument(metavar="[VERSION]", help="A version on the shelf; its `candidate` unless named.")
]
ConfigOption = Annotated[str, typer.Option("--config", "-c", help=CONFIG_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def preflight(config: ConfigOption = "cluster", override: SetOption = None) -> None:
    """Look whether the cluster has what a release needs: shelf, KServe with canaries, rights, quota, runtimes.

    Examples:

    `deeprec release preflight`

    `deeprec release preflight --config shop.yaml --set release.namespace=shop`
    """
    from deeprec.release.preflight import preflight as look

    settings, cluster, shelf = _place(config, override)
    _version(shelf, None)
    look(settings.release, cluster, say)


@app.command()
def deploy(
    version: VersionArgument = None,
    config: ConfigOption = "cluster",
    override: SetOption = None,
    name: Annotated[str, typer.Option("--id", help="Name of this release; run again, it goes on.")] = "",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take fields that another manager has set, such as Helm.")
    ] = False,
) -> None:
    """Release a version: canary, smoke test, ramp, promotion, soak; where one of them fails, back to what served.

    Killed at any moment, run it again, and it goes on from what the cluster says. Exit status: 0 the version serves, or
    waits for `deeprec release promote` (`release.approval: manual`); 1 it was rolled back, with the reason.

    Examples:

    `deeprec release deploy --config shop.yaml`

    `deeprec release deploy 0123456789abcdef --set release.ramp.steps="[5, 25]" --set release.soak_seconds=3600`
    """
    from deeprec.release.protocol import Waits, begin

    end_on_sigterm()
    settings, cluster, shelf = _place(config, override)
    release = begin(settings, cluster, shelf, _version(shelf, version), say, name=name, take_over=take_over)
    say(f"release {release.record.id}: {release.version} to {settings.release.name} in {cluster.namespace}")
    try:
        release.deploy()
    except Waits as waits:
        say(str(waits))
        return
    say(f"{release.version} serves; {_host(release)}")


@app.command()
def status(
    config: ConfigOption = "cluster",
    override: SetOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="End a release whose process has died: finish it, or roll it back.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what serves, with its host, what is under way, and what to run.

    Examples:

    `deeprec release status --config shop.yaml`

    `deeprec release status --repair`
    """
    from deeprec.release.protocol import resume

    settings, cluster, shelf = _place(config, override)
    release = resume(settings, cluster, shelf, say)
    if repair and release is not None:
        release.settle("its process had died, as somebody said who repaired it")
        release = None
    found = _status(settings, cluster, shelf, release)
    if as_json:
        print_json(found)
        return
    for line in _status_lines(found):
        say(line)


@app.command()
def promote(config: ConfigOption = "cluster", override: SetOption = None) -> None:
    """Let a release that waits for it (`release.approval: manual`) serve everybody.

    Example: `deeprec release promote --config shop.yaml`
    """
    end_on_sigterm()
    release = _under_way(config, override)
    if not (release.record.waiting or release.record.promoted):
        raise ReleaseError(
            f"the release of {release.version} has not come so far; see `deeprec release status`, or let it go on with "
            f"`deeprec release deploy {release.version}`"
        )
    release.conclude()
    say(f"{release.version} serves; {_host(release)}")


@app.command()
def rollback(
    config: ConfigOption = "cluster",
    override: SetOption = None,
    why: Annotated[str, typer.Option("--why", help="The reason, for the record.")] = "somebody asked for it",
) -> None:
    """Take back a release that is under way, or let the version serve that was released before the one that does.

    A release under way, its soak included, goes back at once. After it the version before has to start again: it is
    made ready and asked as a canary is, and then serves everybody.

    Examples:

    `deeprec release rollback --why "clicks fell"`
    """
    from deeprec.release.protocol import begin, resume
    from deeprec.release.record import Records

    end_on_sigterm()
    settings, cluster, shelf = _place(config, override)
    release = resume(settings, cluster, shelf, say)
    if release is not None:
        release.rollback(why)
        say(f"{release.version} was rolled back: {why}")
        return
    released = [record for record in Records(shelf).all() if record.ending == "released"]
    before = released[0].before if released else None
    if before is None:
        raise ReleaseError(f"nothing was released on {shelf.address} before what serves; deploy another version")
    back = begin(settings, cluster, shelf, before, say)
    with back.or_back():
        back.canary()
        back.smoke()
        back.promote()
        back.soak()
    back.finish()
    say(f"{before} serves again: {why}")


@app.command()
def history(
    config: ConfigOption = "cluster",
    override: SetOption = None,
    name: Annotated[str, typer.Option("--id", help="One release, with all that its steps showed.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the releases of a shelf, the newest first: who, what, and how each ended.

    Examples:

    `deeprec release history --config shop.yaml`

    `deeprec release history --id 20270301-101500-1a2b3c`
    """
    from deeprec.release.record import Records

    records = Records(_shelf(read_config(config, override)))
    if name:
        record = records.read(name)
        if record is None:
            raise ArtifactError(f"there is no release {name}; `deeprec release history` lists them")
        print_json(asdict(record)) if as_json else _tell(record)
        return
    found = records.all()
    if as_json:
        print_json([asdict(record) for record in found])
        return
    from rich.table import Table

    table = Table("release", "version", "before", "by", "began", "ended", "reason")
    for record in found:
        ending = record.ending or ("waits" if record.waiting else "under way")
        table.add_row(
            record.id, record.version, record.before or "", record.by, record.began[:19], ending, record.reason
        )
    print_tables(table)


def _place(config: str, override: list[str] | None) -> tuple[Config, Cluster, Shelf]:
    from deeprec.release.cluster import Cluster

    settings = read_config(config, override)
    return settings, Cluster(settings.release.namespace), _shelf(settings)


def _shelf(settings: Config) -> Shelf:
    from deeprec.bundle.shelf import Shelf

    if not settings.bundle.uri:
        raise ConfigError(
            "bundle.uri is empty, so that there is no shelf to release from; name it with --set bundle.uri"
        )
    return Shelf(settings.bundle.uri)


def _version(shelf: Shelf, named: str | None) -> str:
    version = named or shelf.pointer("candidate")
    if version is None:
        raise ArtifactError(f"the shelf {shelf.address} has no candidate yet; push a bundle with `deeprec bundle push`")
    return version


def _under_way(config: str, override: list[str] | None) -> Release:
    from deeprec.release.protocol import resume

    release = resume(*_place(config, override), say)
    if release is None:
        raise ReleaseError("no release is under way; `deeprec release deploy` begins one")
    return release


def _host(release: Release) -> str:
    found = release.cluster.get(release.config.release.name)
    return f"ask it at {(found or {}).get('status', {}).get('url') or 'the gateway, whose host is not known yet'}"


def _status(settings: Config, cluster: Cluster, shelf: Shelf, release: Release | None) -> JsonDict:
    from deeprec.release.service import read_state

    found = cluster.get(settings.release.name)
    state = read_state(found) if found else None
    predictors = [] if state is None else [state.stable, *state.canaries]
    record = release.record if release else None
    return {
        "service": settings.release.name,
        "namespace": cluster.namespace,
        "host": state.url if state else "",
        "predictors": [
            {
                "version": one.version, "name": one.name, "per cent": one.weight, "ready": one.ready,
                "failure": one.failure,
            }
            for one in predictors
        ],
        "live": shelf.pointer("live"),
        "candidate": shelf.pointer("candidate"),
        "under way": asdict(record) if record else None,
    }  # fmt: skip


def _status_lines(found: JsonDict) -> list[str]:
    lines = [f"{found['service']} in {found['namespace']}: {found['host'] or 'no host yet'}"]
    if not found["predictors"]:
        lines = [f"there is no InferenceService {found['service']} in {found['namespace']}"]
    for one in found["predictors"]:
        state = "ready" if one["ready"] else f"not ready{': ' if one['failure'] else ''}{one['failure']}"
        lines.append(f"  {one['version'] or 'a version that no release made'}: {one['per cent']} %, {state}")
    lines.append(f"shelf: live {found['live'] or 'none'}, candidate {found['candidate'] or 'none'}")
    record = found["under way"]
    if record is None:
        lines.append("no release is under way")
    elif record["waiting"]:
        lines.append(f"release {record['id']} of {record['version']} waits: `deeprec release promote` or `rollback`")
    else:
        last = record["steps"][-1]["name"] if record["steps"] else "its beginning"
        lines.append(
            f"release {record['id']} of {record['version']} by {record['by']} has been under way since "
            f"{record['began'][:19]}, after {last}; if its process has died, `deeprec release deploy "
            f"{record['version']}` goes on, and `deeprec release status --repair` ends it"
        )
    return lines


def _tell(record: Record) -> None:
    say(f"{record.id}: {record.version} to {record.name} in {record.namespace}, by {record.by}")
    for step in record.steps:
        say(f"  {step.at[:19]} {step.name}: {step.verdict}: {step.sentence}")
    say(f"  {record.ended[:19]} {record.ending}: {record.reason}" if record.ending else "  under way")
