"""The quickstart as a user runs it: every row is there, and what is served agrees with the figures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deeprec.bundle.shelf import Shelf
from deeprec.store import read_artifact
from tests import forkserver

COMMAND = [sys.executable, "-c", "from deeprec.cli import main; main()", "run", "--config", "quickstart", "--workdir"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quickstart") / "run"
    done = forkserver.run([*COMMAND, str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert str(place / "report.html") in done.stdout
    return place


@pytest.fixture(scope="module")
def metrics(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "metrics.json").read_text())


def test_every_row_is_there(metrics: dict[str, Any]) -> None:
    assert set(metrics["baselines"]) - {"scripted"} == {"popularity", "trm", "trm_everything", "one_list", "fusion"}
    assert all(metrics["baselines"].values())
    assert set(metrics["policy"]) == {"start", "stage1", "stage2"}
    assert "candidate_recall" in metrics["baselines"]["one_list"]
    assert set(metrics["minutes"]) == {"trm_everything", "policy"}


def test_the_trm_recommends(metrics: dict[str, Any]) -> None:
    trm = metrics["baselines"]["trm"]["ndcg@10"]
    assert trm >= 0.34
    assert trm >= 3 * metrics["baselines"]["popularity"]["ndcg@10"]


def test_the_start_is_as_good_as_its_demonstrations(metrics: dict[str, Any]) -> None:
    assert metrics["policy"]["start"]["ndcg@10"] >= 0.9 * metrics["baselines"]["trm"]["ndcg@10"]


def test_answers_after_stage_1_are_valid_and_rest_on_calls(metrics: dict[str, Any]) -> None:
    assert metrics["policy"]["stage1"]["valid_rate"] >= 0.95
    assert metrics["policy"]["stage1"]["mean_calls"] >= 2


@pytest.mark.parametrize("step", ["stage1_minus_start", "stage2_minus_stage1"])
def test_no_stage_makes_it_worse(metrics: dict[str, Any], step: str) -> None:
    assert metrics["steps"][step]["ndcg@10"]["high"] >= 0


def test_what_is_served_agrees_with_the_figures(workdir: Path, metrics: dict[str, Any]) -> None:
    policy = metrics["policy"]["stage2"]["ndcg@10"]
    trm = max(metrics["baselines"][name]["ndcg@10"] for name in ("trm", "trm_everything"))
    serve = "policy" if policy >= trm else "trm"
    bundle = json.loads((workdir / "bundle" / "bundle.json").read_text())
    assert (metrics["verdict"]["serve"], bundle["serve"], bundle["refit"]) == (serve, serve, serve == "trm")


def test_every_user_is_evaluated_and_the_bundle_has_the_figures(workdir: Path, metrics: dict[str, Any]) -> None:
    assert metrics["users_evaluated"] == metrics["data"]["users"] == 1500
    assert metrics["data"]["items"] == 800
    assert read_artifact(workdir / "bundle", "bundle").kind == "bundle"
    published = json.loads((workdir / "bundle" / "metrics.json").read_text())
    ended = {name: metrics[name] for name in ("seconds", "cost")}
    assert published | ended == metrics, "but for what the run knew only when it had ended"
    shelf = Shelf(workdir / "shelf")
    assert shelf.live() == json.loads((workdir / "bundle" / "bundle.json").read_text())["version"]
