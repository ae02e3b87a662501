"""A training run on drift: one, and none while another is active or too soon after the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deeprec.release.drift.figure import Drift, Outcome
from deeprec.release.drift.retrain import Retraining, retrain

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Run:
    id: str
    name: str
    state: str
    created: datetime


@dataclass
class Server:
    """A server of pipelines in memory; ``asked`` are the runs that it was asked to start."""

    runs: list[Run] = field(default_factory=list)
    asked: list[tuple[str, Mapping[str, Any], str, str]] = field(default_factory=list)

    def active_runs(self, pipeline: str) -> list[Run]:
        assert pipeline == "training"
        return [run for run in self.runs if run.state == "RUNNING"]

    def last_run(self, pipeline: str) -> Run | None:
        assert pipeline == "training"
        return max(self.runs, key=lambda run: run.created, default=None)

    def start(self, pipeline: str, *, arguments: Mapping[str, Any], name: str, experiment: str) -> Run:
        self.asked.append((pipeline, arguments, name, experiment))
        self.runs.append(Run("new", name, "RUNNING", NOW))
        return self.runs[-1]


def tried(server: Server, verdict: Outcome = "drifted", now: datetime = NOW) -> Retraining:
    drift = Drift("0123456789abcdef", "", "", verdict, "popularity shift 0.300, limit 0.1", ())
    return retrain(drift, server, "training", 24, now)


def test_one_run_is_started() -> None:
    server = Server([Run("old", "weekly", "SUCCEEDED", NOW - timedelta(hours=24))])
    found = tried(server)
    assert (found.started, found.run) == (True, "new")
    assert found.sentence == ("training run drift-20261130-120000 (new) was started: popularity shift 0.300, limit 0.1")
    name = "drift-20261130-120000"
    assert server.asked == [("training", {"data_version": name}, name, "training")]
    assert not tried(server, now=NOW + timedelta(days=9)).started, "that one is active"
    assert len(server.asked) == 1


@pytest.mark.parametrize("verdict", ["ok", "inconclusive"])
def test_another_verdict_starts_none(verdict: Outcome) -> None:
    server = Server()
    assert tried(server, verdict) == Retraining(False, "", f"no training run: the verdict is {verdict}")
    assert not server.asked


def test_an_active_run_withholds_it_however_old() -> None:
    server = Server([Run("r1", "weekly", "RUNNING", NOW - timedelta(days=9))])
    assert tried(server) == Retraining(False, "", "no training run: weekly (r1) is running already")
    assert not server.asked


def test_the_cool_down_counts_from_the_last_run_whatever_became_of_it() -> None:
    server = Server([Run("r1", "drift-1", "FAILED", NOW - timedelta(hours=23))])
    assert tried(server) == Retraining(
        False,
        "",
        "no training run: the last, drift-1 (r1), began at 2026-11-29 13:00 UTC, and none follows it before "
        "2026-11-30 13:00 UTC (drift.cooldown_hours=24)",
    )
    assert not server.asked
    assert tried(server, now=NOW + timedelta(hours=1)).started
