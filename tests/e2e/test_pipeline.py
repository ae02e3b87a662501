"""The real pipeline on very small generated data: what runs, what is left behind, resuming, a gate that fails."""

import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deeprec.data.dataset import read_dataset
from deeprec.pipelines.training import TASKS
from deeprec.store import read_artifact
from tests import forkserver

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "data": {"sample": {"users": 150, "items": 120, "mean_history": 12}},
    "text": {"provider": "hashing", "width": 64},
    "trm": {"width": 32, "layers": 1, "max_length": 20, "epochs": 2, "gate": {"min_ratio_to_popularity": 0}},
    "explore": {
        "prompt": "compact",
        "prompt_history": 5,
        "items_per_call": 8,
        "answer_size": 10,
        "max_calls": 3,
        "max_new_tokens": 40,
        "max_context": 320,
    },
    "policy": {
        "tiny": {"width": 32, "layers": 1, "heads": 2, "inner": 64},
        "warm_start": {"trajectories": 100, "epochs": 1},
        "select": {"candidates": 16, "rollouts": 2},
        "stage1": {
            "steps": 1,
            "prompts_per_step": 4,
            "rollouts": 2,
            "sequences_per_update": 8,
            "micro_batch": 8,
            "learning_rate": 1e-5,
        },
        "stage2": {
            "steps": 1,
            "prompts_per_step": 4,
            "rollouts": 2,
            "sequences_per_update": 8,
            "micro_batch": 8,
            "learning_rate": 1e-5,
        },
    },
    "evaluation": {"bootstrap_samples": 50, "trajectories": 2},
}
MEASURES = {"recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"}
BEHAVIOUR = {
    "valid_rate",
    "mean_calls",
    "candidate_recall",
    "tokens_per_user",
    "same_as_trm",
    "top_preference_share",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the configuration and one finished run in ``runs/small``."""
    path = tmp_path_factory.mktemp("pipeline")
    (path / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    done = run(path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(
        forkserver.deeprec("run", "--config", "small.yaml", *arguments),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


def states(output: str) -> dict[str, str]:
    """Task → what became of it, from the lines of a run that is not on a terminal."""
    rows = [line.split() for line in output.splitlines() if line[:1] in ("✓", "✗")]
    return {row[1]: row[2] for row in rows}


def test_figures_are_complete(place: Path) -> None:
    metrics = json.loads((place / "runs" / "small" / "metrics.json").read_text(encoding="utf-8"))

    assert {"users", "items", "interactions"} <= set(metrics["data"])
    assert metrics["users_evaluated"] == metrics["data"]["users"]
    assert set(metrics["baselines"]) - {"scripted"} == {"popularity", "trm", "trm_everything", "one_list", "fusion"}
    assert all(set(values) >= MEASURES for values in metrics["baselines"].values())
    assert set(metrics["policy"]) == {"start", "stage1", "stage2"}
    assert all(set(values) >= MEASURES | BEHAVIOUR for values in metrics["policy"].values())
    assert set(metrics["seconds"]) == {*TASKS, "total"}
    assert metrics["seconds"]["total"] >= sum(metrics["seconds"][task] for task in TASKS)


def test_what_a_person_reads_is_there(place: Path) -> None:
    workdir = place / "runs" / "small"

    assert "<html" in (workdir / "report.html").read_text(encoding="utf-8")
    for gate in ("check-data", "train-trm", "train-stage-1", "train-stage-2", "evaluate"):
        assert "<html" in (workdir / "reports" / f"{gate}.html").read_text(encoding="utf-8")
    for task in TASKS:
        assert (workdir / "logs" / f"{task}.log").stat().st_size
    resolved = yaml.safe_load((workdir / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["features"]["path"] == str(workdir / "features")
    assert read_artifact(workdir / "bundle").kind == "bundle"


def test_resume_runs_what_a_change_touches_and_no_more(place: Path) -> None:
    done = run(place, "--resume", "--set", "evaluation.trajectories=3")

    assert done.returncode == 0, done.stdout + done.stderr
    ran = dict.fromkeys(("preflight", "resolve-data", "evaluate", "publish-bundle"), "ran")
    assert states(done.stdout) == dict.fromkeys(TASKS, "cached") | ran
    assert "deeprec serve" in done.stdout
    metrics = json.loads((place / "runs" / "small" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["seconds"]["train-trm"] > 0


def test_the_reference_of_artifacts_is_what_a_run_leaves(place: Path) -> None:
    run = min((place / "runs" / "small" / "pipeline").iterdir())  # the first, in which nothing was there before
    made = {}
    for task in TASKS:
        folder = next((one for one in folders(run) if one[0] == task), None)
        for manifest in sorted(folder[1].glob("*/manifest.json")) if folder else ():
            made[task] = read_artifact(manifest.parent, verify=False)
    written = runpy.run_path(str(ROOT / "docs" / "write.py"))["artifacts"](made)
    page = ROOT / "docs" / "reference" / "artifacts.md"
    if os.environ.get("DEEPREC_UPDATE_GOLDEN"):
        page.write_text(written, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == written, "DEEPREC_UPDATE_GOLDEN=1 writes it anew"


def folders(run: Path) -> list[tuple[str, Path]]:
    """Each task, and the directory that KFP's local runner has named after its component."""
    numbers = {"train-stage": "train-stage-1", "train-stage-2": "train-stage-2"}
    rolled = ("rollout-candidates", "rollout-start", "rollout-stage-1", "rollout-stage-2")
    numbers |= {f"rollout{'' if place == 0 else f'-{place + 1}'}": name for place, name in enumerate(rolled)}
    return [(numbers.get(folder.name, folder.name), folder) for folder in run.iterdir()]


def test_nothing_runs_after_a_failed_data_gate(place: Path) -> None:
    done = run(place, "--workdir", "failed", "--set", "checks.min_users=100000")

    assert done.returncode == 1
    reached = ("preflight", "resolve-data", "ingest", "check-data")
    assert states(done.stdout) == {**dict.fromkeys(reached, "ran"), "publish-features": "refused"}
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    report = place / "failed" / "reports" / "check-data.html"
    assert "100,000" in lines[0] or "100000" in lines[0]
    assert lines[0].endswith(f"(report: {report})")
    assert "<html" in report.read_text(encoding="utf-8")
    left = {path.name for path in (place / "failed").iterdir()}
    assert not left & {"bundle", "metrics.json", "report.html", "features"}


def test_nothing_is_published_after_a_failed_evaluation(place: Path) -> None:
    before = read_artifact(place / "runs" / "small" / "bundle").digest
    done = run(place, "--resume", "--set", "evaluation.gate.min_ndcg_10_trm=1.0")

    assert done.returncode == 1
    ran = {"preflight": "ran", "resolve-data": "ran", "evaluate": "ran", "refit": "refused"}
    assert states(done.stdout) == dict.fromkeys(TASKS[: TASKS.index("evaluate")], "cached") | ran
    assert read_artifact(place / "runs" / "small" / "bundle").digest == before


def test_a_resumed_run_reads_the_source_again_when_somebody_was_forgotten(place: Path) -> None:
    """Up to the first gate: whether the dataset is made anew is what is asked."""
    [dataset] = (place / "runs" / "small" / "pipeline").glob("*/ingest/dataset")
    user = next(iter(read_dataset(dataset).sequences))
    told = forkserver.run(
        forkserver.deeprec("data", "forget", user, "--features", "runs/small/features"), cwd=place, timeout=60
    )
    assert told.returncode == 0
    done = run(place, "--resume", "--set", "checks.min_users=100000")

    reached = ("preflight", "resolve-data", "ingest", "check-data")
    assert states(done.stdout) == {**dict.fromkeys(reached, "ran"), "publish-features": "refused"}
    made = max((place / "runs" / "small" / "pipeline").glob("*/ingest/dataset"), key=lambda path: path.stat().st_mtime)
    assert user not in read_dataset(made).sequences
