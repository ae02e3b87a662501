"""From a verdict to a training run: one on "drifted", none while one is active or too soon after the last.

Who runs it is a port, ``RunServer``; ``release.kfp_server`` stands behind it. Two who call at the same moment may start
one each: the server has no lock, so let one at a time do it (a CronJob that forbids concurrency).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from deeprec.release.drift.figure import Drift


class StartedRun(Protocol):
    """A run of a pipeline."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def state(self) -> str:
        """Its state, in the server's words."""

    @property
    def created(self) -> datetime:
        """When it began, with a time zone."""


class RunServer(Protocol):
    """What runs pipelines."""

    def active_runs(self, pipeline: str) -> Sequence[StartedRun]:
        """The runs of a pipeline that have not ended."""

    def last_run(self, pipeline: str) -> StartedRun | None:
        """The newest run of a pipeline."""

    def start(self, pipeline: str, *, arguments: Mapping[str, Any], name: str, experiment: str) -> StartedRun:
        """Begin a run of a pipeline's newest version, in the experiment of this name."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """Whether a run was started, its id (empty: none), and the sentence that says so or what withheld it."""

    started: bool
    run: str
    sentence: str


def retrain(drift: Drift, server: RunServer, pipeline: str, cooldown_hours: float, now: datetime) -> Retraining:
    """Start a training run where a bundle has drifted and nothing withholds it.

    The cool-down counts from the beginning of the last run, whatever started it and however it ended: a training that
    fails does not begin again with every look.

    The run's name is its ``data_version``, so that it takes no earlier run's results for its own.

    Args:
        pipeline: its name, and that of the experiment of its runs.
        now: with a time zone.

    Raises:
        PipelineError: the server cannot be reached, or refuses.
    """
    if drift.verdict != "drifted":
        return Retraining(False, "", f"no training run: the verdict is {drift.verdict}")
    active = server.active_runs(pipeline)
    if active:
        one = active[0]
        return Retraining(False, "", f"no training run: {one.name} ({one.id}) is {one.state.lower()} already")
    last = server.last_run(pipeline)
    ends = None if last is None else last.created + timedelta(hours=cooldown_hours)
    if last is not None and ends is not None and now < ends:
        return Retraining(
            False,
            "",
            f"no training run: the last, {last.name} ({last.id}), began at {last.created:%Y-%m-%d %H:%M %Z}, and none "
            f"follows it before {ends:%Y-%m-%d %H:%M %Z} (drift.cooldown_hours={cooldown_hours:g})",
        )
    name = f"drift-{now:%Y%m%d-%H%M%S}"
    run = server.start(pipeline, arguments={"data_version": name}, name=name, experiment=pipeline)
    return Retraining(True, run.id, f"training run {run.name} ({run.id}) was started: {drift.reason}")
