"""The steps of a release as tasks of a pipeline, a process each; they meet in the record that the run's id names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from deeprec.bundle.shelf import Shelf
from deeprec.config import Config, parse_config
from deeprec.config.run import overridden
from deeprec.errors import ConfigError, ReleaseError
from deeprec.release import STEPS
from deeprec.release.cluster import Cluster
from deeprec.release.preflight import preflight
from deeprec.release.protocol import Release, Waits, begin, resume
from deeprec.release.record import Record

_LOOK_SECONDS = 30.0
_say: Callable[[str], None] = partial(print, flush=True)


def look(release: Mapping[str, Any], bundle: Mapping[str, Any]) -> None:
    """See at the beginning of a run that its release will find what it needs.

    Raises:
        ReleaseError: naming everything that is missing.
    """
    config = _config(release, bundle)
    preflight(config.release, Cluster(config.release.namespace), _say)


def run_step(
    step: str,
    run: str,
    version: str,
    release: Mapping[str, Any],
    bundle: Mapping[str, Any],
    sleep: Callable[[float], None] = time.sleep,
) -> Record:
    """Make one of ``STEPS``; a step that fails leaves going back to ``end_run``, which stands behind all of them.

    Args:
        run: the run's id, which names the release.

    Raises:
        ReleaseError: it failed, or nobody has promoted in time.
    """
    config = _config(release, bundle)
    cluster, shelf = Cluster(config.release.namespace), Shelf(config.bundle.uri)
    if step == "canary":
        mine = begin(config, cluster, shelf, version, _say, name=run)
        preflight(config.release, cluster, _say)
        mine.canary()
        return mine.record
    mine = _found(config, cluster, shelf, run)
    if mine.record.ending == "released":
        return mine.record  # a person has promoted it, and it came to its end
    if step == "smoke":
        mine.smoke()
    elif step == "ramp":
        mine.ramp()
    elif step == "promote":
        mine = _approved(mine, sleep)
        mine.promote()
    elif step == "soak":
        mine.soak()
        mine.finish()
    else:
        raise ConfigError(f"{step!r} is no step of a release; the steps are {', '.join(STEPS)}")
    return mine.record


def end_run(run: str, overrides: str, release: Mapping[str, Any], bundle: Mapping[str, Any]) -> None:
    """End the release that a run has begun and not ended: it is finished where it was promoted, else rolled back.

    Args:
        overrides: the run's own lines ``section.key=value``, which lie over the sections.
    """
    config = _config(release, overridden("bundle", bundle, overrides))
    mine = resume(config, Cluster(config.release.namespace), Shelf(config.bundle.uri), _say, run)
    if mine is None or mine.record.ending:
        _say(f"nothing to end: the release of run {run} {'has ended' if mine else 'has not begun'}")
        return
    mine.settle("its run ended before it was promoted")


def to_markdown(record: Record) -> str:
    """A record for people to read."""
    lines = [f"# {record.version} to {record.name} in {record.namespace}", ""]
    lines += [f"Release {record.id} by {record.by}; before it {record.before or 'nothing'} served.", ""]
    lines += ["| step | | |", "|---|---|---|"]
    lines += [f"| {one.name} | {one.verdict} | {one.sentence.replace('|', '/')} |" for one in record.steps]
    if record.ending:
        lines += ["", f"**{record.ending}**: {record.reason}"]
    return "\n".join(lines) + "\n"


def _config(release: Mapping[str, Any], bundle: Mapping[str, Any]) -> Config:
    config = parse_config({"release": dict(release), "bundle": dict(bundle)}, "the run's parameters")
    if not config.bundle.uri:
        raise ConfigError("release.enabled is true, but bundle.uri is empty, so that there is nothing to release from")
    return config


def _found(config: Config, cluster: Cluster, shelf: Shelf, run: str) -> Release:
    mine = resume(config, cluster, shelf, _say, run)
    if mine is None:
        raise ReleaseError(f"the shelf {shelf.address} has no record of the release of run {run}; release again")
    if mine.record.ending == "rolled back":
        raise ReleaseError(f"the release of run {run} was rolled back meanwhile: {mine.record.reason}")
    return mine


def _approved(mine: Release, sleep: Callable[[float], None]) -> Release:
    """The release once it may be promoted; where a person has promoted it meanwhile, as they left it.

    Raises:
        ReleaseError: nobody has within ``release.approval_seconds``.
    """
    try:
        mine.ask_approval()
        return mine
    except Waits as waits:
        _say(str(waits))
    settings, name = mine.config.release, mine.record.id
    end = time.monotonic() + settings.approval_seconds
    while time.monotonic() < end:
        record = mine.records.read(name)
        if record is None or record.ending == "rolled back":
            raise ReleaseError(
                f"the release {name} was rolled back: {record.reason if record else 'its record is gone'}"
            )
        if record.promoted:
            mine.record = record
            return mine
        sleep(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))
    raise ReleaseError(f"nobody has promoted {mine.version} within {settings.approval_seconds:g} s")
