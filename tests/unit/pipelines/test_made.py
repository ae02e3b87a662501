"""What a run has made, as its own records say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from deeprec.errors import ArtifactError
from deeprec.pipelines import training
from deeprec.pipelines.made import OUTPUTS, made
from deeprec.pipelines.records import Records
from deeprec.store import write_artifact


def artifact(place: Path, kind: str, schema: Any = dsl.Model) -> Any:
    with write_artifact(place, kind) as work:
        (work / "x").write_text(place.name, encoding="utf-8")
    return schema(name=place.name, uri=str(place), metadata={})


def test_artifacts_are_found_by_what_they_are_and_the_newer_one_counts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    records = Records(run / "cache")
    dataset = artifact(run / "pipeline" / "one" / "ingest" / "dataset", "dataset", dsl.Dataset)
    records.keep("k1", "ingest", {"dataset": dataset, "verdict": "yes"}, 1.0)
    for number, name in enumerate(("old", "new")):
        start = artifact(run / "pipeline" / name / "build-policy" / "start", "policy")
        records.keep(f"s{number}", "build-policy", {"start": start}, 1.0)
        os.utime(run / "cache" / f"s{number}.json", (number + 1, number + 1))
    for stage in ("1", "2"):
        trained = artifact(run / "pipeline" / "one" / f"train-stage-{stage}" / "trained", "policy")
        records.keep(f"t{stage}", f"train-stage-{stage}", {"trained": trained}, 1.0)
    (run / "cache" / "half.json").write_text("{", encoding="utf-8")
    assert made(run) == {
        "dataset": run / "pipeline" / "one" / "ingest" / "dataset",
        "start": run / "pipeline" / "new" / "build-policy" / "start",
        "stage1": run / "pipeline" / "one" / "train-stage-1" / "trained",
        "stage2": run / "pipeline" / "one" / "train-stage-2" / "trained",
    }


def test_a_run_that_was_moved_is_read_where_it_is(tmp_path: Path) -> None:
    before = tmp_path / "pipeline" / "before"
    model = artifact(before / "pipeline" / "one" / "train-trm" / "model", "trm")
    Records(before / "cache").keep("k", "train-trm", {"model": model}, 1.0)
    before.rename(tmp_path / "after")
    assert made(tmp_path / "after") == {"trm": tmp_path / "after" / "pipeline" / "one" / "train-trm" / "model"}


def test_what_is_gone_is_not_named(tmp_path: Path) -> None:
    import shutil

    model = artifact(tmp_path / "pipeline" / "one" / "train-trm" / "model", "trm")
    Records(tmp_path / "cache").keep("k", "train-trm", {"model": model}, 1.0)
    shutil.rmtree(tmp_path / "pipeline")
    assert made(tmp_path) == {}


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not the directory of a run"):
        made(tmp_path)


def test_every_task_that_is_looked_for_is_one_of_the_pipeline() -> None:
    assert {task for task, _ in OUTPUTS.values()} <= set(training.TASKS)
